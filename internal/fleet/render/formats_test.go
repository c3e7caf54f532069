package render_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

var update = flag.Bool("update", false, "write the golden files")

const courses = `
defaults: {git: {url: "https://example.org/playbooks.git", branch: main}, tags: [2026-11-23, latest]}
images:
  - name: ubuntu-{kind}
    matrix: {kind: {server: , desktop: {desktop: true, memory: 4096}}}
    base: {url: "https://example.org/noble.img", checksum: "file:https://example.org/SHA256SUMS"}
    playbook: ubuntu-base.yml
  - {name: netlab, from: ubuntu-desktop, playbook: netlab.yml, desktop: true, size: 20G, memory: 4Gi, cpus: 2, bake-user: true,
     vars: {motd: "$(whoami) costs $5", list: [1, two]}}
  - {name: netlab_2.exam, from: netlab, playbook: exam.yml, vm-user: student, compression: zlib, tags: exam}
  - {name: unchanged, from: ubuntu-server, playbook: p.yml}
  - {name: retagged, from: ubuntu-server, playbook: p.yml}
  - {name: broken, from: ubuntu-server, playbook: p.yml}
`

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

var target = render.Target{Registry: "harbor.example.org", Prefix: "labs"}

// read returns the images of a catalogue.
func read(t testing.TB, text string) []catalogue.Image {
	t.Helper()
	c, err := catalogue.Parse("catalogue.yaml", "/checkout/images", []byte(text))
	require.NoError(t, err)
	return c.Images
}

// missing are facts where nothing was built.
func missing(images []catalogue.Image) map[string]fleet.Facts {
	facts := map[string]fleet.Facts{}
	for i, image := range images {
		facts[image.Name] = fleet.Facts{
			Inputs: fmt.Sprintf("sha256:%064d", i), Tags: image.Tags, MemoryMiB: 2048, DiskSize: 10 << 30,
			Reference: "harbor.example.org/labs/" + image.Name + ":" + strings.Join(image.Tags[:min(1, len(image.Tags))], ""),
		}
	}
	return facts
}

// planned is a plan with something of everything.
func planned(t testing.TB) []*fleet.Entry {
	t.Helper()
	images := read(t, courses)
	facts := missing(images)
	change := func(name string, with func(*fleet.Facts)) { f := facts[name]; with(&f); facts[name] = f }
	change("netlab", func(f *fleet.Facts) {
		f.MemoryMiB, f.DiskSize, f.Absent = 4096, 20<<30, "its inputs have changed"
		f.Notes = []string{"the whole tree of playbooks is digested: roles/netlab/tasks/main.yml:3 includes a file whose name is not known before the playbook runs"}
	})
	change("netlab_2.exam", func(f *fleet.Facts) { f.DiskSize = 20 << 30 })
	change("ubuntu-desktop", func(f *fleet.Facts) { f.MemoryMiB = 4096 })
	for _, name := range []string{"ubuntu-server", "unchanged", "retagged"} {
		change(name, func(f *fleet.Facts) {
			f.Found = &fleet.Found{Digest: "sha256:" + strings.Repeat("d", 64), Tags: f.Tags, Built: now.AddDate(0, 0, -1)}
		})
	}
	change("retagged", func(f *fleet.Facts) { f.Found.Tags = []string{"2026-11-01"} })
	change("broken", func(f *fleet.Facts) { f.Err = errors.New("registry harbor.example.org says no (403)") })
	return fleet.Decide(images, facts, fleet.Policy{Now: now})
}

// golden holds what was written against a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "go test ./internal/fleet/render -update")
}

func TestTheTableSaysWhatAndWhyInAHundredColumns(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, render.Text(&out, planned(t)))
	for line := range strings.Lines(out.String()) {
		assert.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100, line)
	}
	golden(t, "plan.txt", out.String())
}

func TestTheJSONIsStable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, render.JSON(&out, planned(t)))
	golden(t, "plan.json", out.String())
	out.Reset()
	require.NoError(t, render.JSON(&out, nil))
	assert.JSONEq(t, `{"images": []}`, out.String())
}

// matrices is what a workflow reads.
type matrices struct {
	Levels []struct{ Include []map[string]any }
	Tags   []struct {
		Reference string
		Tags      []string
	}
}

func TestMatricesBuildLevelAfterLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, render.GitHubMatrix(&out, planned(t), target, "/checkout"))
	var m matrices
	require.NoError(t, json.Unmarshal(out.Bytes(), &m))
	require.Len(t, m.Levels, 3)
	assert.Equal(t, []map[string]any{{
		"name": "netlab", "tag": "2026-11-23", "further-tags": "latest", "playbook": "netlab.yml", "desktop": true, "bake-user": true, "disk-size": "20G",
		"git-ansible-url": "https://example.org/playbooks.git", "git-ansible-branch": "main",
		"iso-url": "oci://harbor.example.org/labs/ubuntu-desktop:2026-11-23", "iso-checksum": fmt.Sprintf("inputs:sha256:%064d", 1),
		"settings": map[string]any{"MEMORY": "4Gi", "CPUS": "2", "EXTRA_VARS": `{"list":[1,"two"],"motd":"$(whoami) costs $5"}`},
	}}, m.Levels[1].Include)
	assert.Equal(t, map[string]any{"VM_USER": "student", "QCOW2_COMPRESSION": "zlib"}, m.Levels[2].Include[0]["settings"])
	require.Len(t, m.Tags, 1)
	assert.Equal(t, "harbor.example.org/labs/retagged@sha256:"+strings.Repeat("d", 64), m.Tags[0].Reference)
	assert.Equal(t, []string{"2026-11-23", "latest"}, m.Tags[0].Tags)

	out.Reset()
	require.NoError(t, render.GitHubMatrix(&out, nil, target, "/checkout"))
	assert.JSONEq(t, `{"levels": [], "tags": []}`, out.String())
}

// forTwo is a plan of a parent and a child, each for two architectures.
func forTwo(t testing.TB) []*fleet.Entry {
	t.Helper()
	images := read(t, `
defaults: {git: {url: "https://example.org/playbooks.git", branch: main}, architectures: [amd64, arm64]}
images:
  - {name: lab, base: {url: "https://example.org/{architecture}.img", checksum: "file:https://example.org/SHA256SUMS"}, playbook: lab}
  - {name: java, from: lab, playbook: java}
`)
	facts := missing(images)
	for _, i := range images {
		f, suffix := facts[i.Name], "-"+i.Settings["ARCHITECTURE"]
		f.Tags, f.Reference = []string{"v1" + suffix, "latest" + suffix}, "harbor.example.org/labs/"+i.Index+":v1"+suffix
		facts[i.Name] = f
	}
	return fleet.Decide(images, facts, fleet.Policy{Now: now})
}

func TestEachArchitectureGoesToItsOwnRunnerAndTheIndexesAreMadeLast(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, render.GitHubMatrix(&out, forTwo(t), target, "/checkout"))
	var m struct {
		matrices
		Indexes [][]string
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &m))
	require.Len(t, m.Levels, 2)
	arm := m.Levels[1].Include[1]
	assert.Equal(t, "java", arm["name"])
	assert.Equal(t, "v1-arm64", arm["tag"])
	assert.Equal(t, "latest-arm64", arm["further-tags"])
	assert.Equal(t, "ubuntu-24.04-arm", arm["runner"])
	assert.Equal(t, "oci://harbor.example.org/labs/lab:v1-arm64", arm["iso-url"])
	assert.Equal(t, map[string]any{"ARCHITECTURE": "arm64"}, arm["settings"])
	assert.NotContains(t, m.Levels[1].Include[0], "runner")
	require.Len(t, m.Indexes, 4, "lab and java, of two tags each")
	assert.Equal(t, []string{
		"harbor.example.org/labs/lab:v1-amd64", fmt.Sprintf("--inputs=sha256:%064d", 0),
		"harbor.example.org/labs/lab:v1-arm64", fmt.Sprintf("--inputs=sha256:%064d", 1), "harbor.example.org/labs/lab:latest",
	}, m.Indexes[1])

	out.Reset()
	require.NoError(t, render.Text(&out, forTwo(t)))
	assert.Contains(t, out.String(), "index of java-amd64, java-arm64")
	out.Reset()
	require.NoError(t, render.JSON(&out, forTwo(t)))
	assert.Contains(t, out.String(), `"reference": "harbor.example.org/labs/java:v1"`)

	all, _ := jobs(t, forTwo(t))
	require.Len(t, all, 6)
	child, index := all[3], all[5]
	assert.Equal(t, map[string]string{"kubernetes.io/arch": "arm64"}, child.Spec.Template.Spec.NodeSelector)
	assert.Equal(t, "java", child.container(t, "push").env()["IMAGE_NAME"])
	assert.Equal(t, []string{"push", "push-2"}, index.containers(), "none of them runs a playbook")
	assert.Equal(t, append([]string{"diskforge", "push"}, m.Indexes[2]...), index.container(t, "push").Command)
	assert.Equal(t, "8h0m0s", index.container(t, "push").env()["BASE_TIMEOUT"], "as long as its images' Jobs")
	assert.Equal(t, all[0].deadline()*3, index.deadline())
	assert.Equal(t, "diskforge-java-", index.Metadata.GenerateName)
}

// many is a plan with ten parents and so many children of each, none built.
func many(t testing.TB, children int) []*fleet.Entry {
	t.Helper()
	var b strings.Builder
	b.WriteString("defaults: {tags: [2026-11-23], git: {url: 'https://example.org/r.git'}}\nimages:\n")
	for i := range 10 {
		fmt.Fprintf(&b, "- {name: parent-%d, base: {url: 'https://example.org/%d.img', checksum: 'file:https://example.org/SUMS'}, playbook: base}\n", i, i)
		for j := range children {
			fmt.Fprintf(&b, "- {name: child-%d-%d, from: parent-%d, playbook: course-%d, vars: {number: %d}, size: 20G}\n", i, j, i, j, j)
		}
	}
	images := read(t, b.String())
	return fleet.Decide(images, missing(images), fleet.Policy{Now: now})
}

func TestALevelBeyondGitHubsLimitGoesOnInTheNext(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	entries := many(t, 50)
	require.NoError(t, render.GitHubMatrix(&out, entries, target, "/checkout"))
	var m matrices
	require.NoError(t, json.Unmarshal(out.Bytes(), &m))
	require.Len(t, m.Levels, 3)
	from := map[string]string{}
	for _, e := range entries {
		from[e.Name] = e.From
	}
	done := map[string]bool{"": true}
	total := 0
	for _, level := range m.Levels {
		assert.LessOrEqual(t, len(level.Include), 256)
		for _, image := range level.Include {
			assert.True(t, done[from[image["name"].(string)]], "%v before its parent", image["name"])
		}
		for _, image := range level.Include {
			done[image["name"].(string)] = true
			total++
		}
	}
	assert.Equal(t, 510, total)

	err := render.GitHubMatrix(io.Discard, many(t, 150), target, "/checkout")
	require.ErrorContains(t, err, "and GitHub passes on 1024: build a part of the catalogue at once, with --only")
}

func TestAFolderOfTheCheckoutIsNamedAsTheWorkflowSeesIt(t *testing.T) {
	t.Parallel()
	images := read(t, "images: [{name: x, base: {packages: bookworm}, playbook: p, ansible-dir: ../ansible, tags: '1'}]")
	entries := fleet.Decide(images, missing(images), fleet.Policy{})
	var out bytes.Buffer
	require.NoError(t, render.GitHubMatrix(&out, entries, target, "/checkout"))
	assert.Contains(t, out.String(), `"ansible-dir":"ansible"`)
	assert.Contains(t, out.String(), `"settings":{"SUITE":"bookworm"}`)
	assert.NotContains(t, out.String(), "iso-url")
	require.EqualError(t, render.GitHubMatrix(&out, entries, target, "/elsewhere"), "x: ansible-dir lies outside of the checkout, so a runner does not have it: move it beside the catalogue, or use git")
}

// manifest is what the tests read of a Job.
type manifest struct {
	Kind     string
	Metadata struct {
		GenerateName        string `yaml:"generateName"`
		Labels, Annotations map[string]string
	}
	Spec struct {
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     struct {
				ActiveDeadlineSeconds int         `yaml:"activeDeadlineSeconds"`
				InitContainers        []container `yaml:"initContainers"`
				Containers            []container
				Volumes               []map[string]any
				NodeSelector          map[string]string `yaml:"nodeSelector"`
			}
		}
	}
}

// deadline is how long a pod of the Job may run, in seconds.
func (m manifest) deadline() int { return m.Spec.Template.Spec.ActiveDeadlineSeconds }

type container struct {
	Name      string
	Command   []string
	Env       []variable
	Resources struct{ Requests, Limits map[string]string }
	Mounts    []struct{ Name string } `yaml:"volumeMounts"`
}

type variable struct {
	Name, Value string
	ValueFrom   struct {
		SecretKeyRef struct{ Name string } `yaml:"secretKeyRef"`
	} `yaml:"valueFrom"`
}

// secrets are the volumes that the container has and the secrets in its
// environment.
func (c container) secrets() (names []string) {
	for _, v := range c.Env {
		if of := v.ValueFrom.SecretKeyRef.Name; of != "" {
			names = append(names, of)
		}
	}
	for _, m := range c.Mounts {
		names = append(names, m.Name)
	}
	return names
}

// env is a container's environment as its process sees it.
func (c container) env() map[string]string {
	env := map[string]string{}
	for _, v := range c.Env {
		env[v.Name] = strings.ReplaceAll(v.Value, "$$", "$") // the kubelet's
	}
	return env
}

// container is the Job's of that name.
func (m manifest) container(t testing.TB, name string) container {
	t.Helper()
	spec := m.Spec.Template.Spec
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		if c.Name == name {
			return c
		}
	}
	require.FailNow(t, "no container "+name)
	return container{}
}

// containers are the names of a Job's, in the order in which they run.
func (m manifest) containers() (names []string) {
	spec := m.Spec.Template.Spec
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		names = append(names, c.Name)
	}
	return names
}

func jobs(t testing.TB, entries []*fleet.Entry) (all []manifest, text string) {
	t.Helper()
	return jobsBy(t, entries, "")
}

// jobsBy are the Jobs of which children have a secret to pull by.
func jobsBy(t testing.TB, entries []*fleet.Entry, secret string) (all []manifest, text string) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, entries, target, secret))
	return slices.Collect(decoded(t, out.Bytes())), out.String()
}

// decoded are the Jobs of a stream.
func decoded(t testing.TB, stream []byte) iter.Seq[manifest] {
	t.Helper()
	return func(yield func(manifest) bool) {
		for d := yaml.NewDecoder(bytes.NewReader(stream)); ; {
			var m manifest
			err := d.Decode(&m)
			if errors.Is(err, io.EOF) {
				return
			}
			require.NoError(t, err)
			if !yield(m) {
				return
			}
		}
	}
}

func TestEveryImageThatIsBuiltIsAJob(t *testing.T) {
	t.Parallel()
	all, text := jobs(t, planned(t))
	golden(t, "jobs.yaml", text) // which .ci/tools holds to Kubernetes' rules, and the next
	_, pulling := jobsBy(t, planned(t), "registry-read-only")
	golden(t, "jobs-pull-secret.yaml", pulling)
	require.Len(t, all, 3)
	var names []string
	for _, j := range all {
		names = append(names, j.Metadata.Labels["diskforge/image"])
		assert.Equal(t, j.Metadata.Labels, j.Spec.Template.Metadata.Labels)
		env := j.container(t, "push").env()
		assert.Equal(t, names[len(names)-1], env["IMAGE_NAME"])
		assert.Equal(t, j.Metadata.Annotations["diskforge/reference"], env["TARGET_REGISTRY"]+"/"+env["REGISTRY_PREFIX"]+"/"+env["IMAGE_NAME"]+":"+env["IMAGE_TAG"])
	}
	assert.Equal(t, []string{"ubuntu-desktop", "netlab", "netlab_2.exam"}, names)
}

func TestAJobHasItsImagesSettingsAndNoOther(t *testing.T) {
	t.Parallel()
	all, _ := jobs(t, planned(t))
	root, child := all[0], all[1]
	env := root.container(t, "build").env()
	assert.NotContains(t, env, "BAKE_USER", "the template's is about CrownLabs' playbooks")
	assert.NotContains(t, env, "BASE_TIMEOUT")
	assert.Equal(t, "https://example.org/noble.img", env["ISO_URL"])
	assert.Equal(t, "https://example.org/playbooks.git", env["GIT_ANSIBLE_URL"])
	env = child.container(t, "build").env()
	assert.Equal(t, map[string]string{
		"ISO_URL": "oci://harbor.example.org/labs/ubuntu-desktop:2026-11-23", "ISO_CHECKSUM": fmt.Sprintf("inputs:sha256:%064d", 1),
		"ANSIBLE_PLAYBOOK": "netlab.yml", "GIT_ANSIBLE_URL": "https://example.org/playbooks.git", "GIT_ANSIBLE_BRANCH": "main",
		"BAKE_USER": "true", "INSTALL_DESKTOP_ENVIRONMENT": "true", "EXTRA_VARS": `{"list":[1,"two"],"motd":"$(whoami) costs $5"}`,
		"MEMORY": "4096", "CPUS": "2", "DISK_SIZE": "20G", "ACCELERATOR": "kvm", "PUSH": "false",
		"TARGET_REGISTRY": "harbor.example.org", "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "netlab", "IMAGE_TAG": "2026-11-23",
		"OUTPUT_DIR": "/scratch/out", "CACHE_DIR": "/scratch/cache", "HOME": "/scratch", "TMPDIR": "/scratch",
	}, env)
	assert.Equal(t, []int{14400, 28800, 43200}, []int{root.deadline(), child.deadline(), all[2].deadline()}, "waiting for parents counts, too")
}

// hostile are texts that YAML 1.1, which Kubernetes reads, takes for something
// else where they are not quoted.
var hostile = []string{"on", "off", "yes", "n", "y", "null", "1e3", "0777", "1_000", "0x1f", "0o17", "12e03", "1.0", "2026-11-23"}

func TestATextStaysTextForAReaderOfYAML11(t *testing.T) {
	t.Parallel()
	images := read(t, `
defaults: {git: {url: "https://example.org/p.git", branch: main}, playbook: p.yml, base: {url: "https://example.org/n.img", checksum: "file:https://example.org/SHA256SUMS"}}
images:
  - {name: "on", tags: ["`+strings.Join(hostile, `", "`)+`"], vm-user: "yes"}
  - {name: "123", tags: "no"}
  - {name: "1e5", tags: "1e5"}
`)
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, fleet.Decide(images, missing(images), fleet.Policy{}), target, ""))
	reader := exec.Command("python3", "-c", `import json, sys, yaml
for job in yaml.safe_load_all(sys.stdin):
    pod = job["spec"]["template"]["spec"]
    for c in pod["initContainers"] + pod["containers"]:
        for e in c.get("env", []): print(json.dumps(e.get("value", "")))
        for a in c.get("command", []): print(json.dumps(a))
    for v in list(job["metadata"]["labels"].values()) + list(job["metadata"]["annotations"].values()): print(json.dumps(v))`)
	reader.Stdin = &out
	read, err := reader.Output()
	require.NoError(t, err, "python3 with PyYAML, which Ansible brings, reads YAML 1.1")
	for line := range strings.Lines(string(read)) {
		assert.True(t, strings.HasPrefix(line, `"`), "%s is no text", line)
	}
	for _, text := range []string{"on", "123", "1e5", "no", "yes"} {
		assert.Contains(t, string(read), "\""+text+"\"\n")
	}
	for _, tag := range hostile[1:] {
		assert.Contains(t, string(read), ":"+tag+"\"\n")
	}
}

func TestAJobsResourcesFitItsGuest(t *testing.T) {
	t.Parallel()
	var template manifest
	require.NoError(t, yaml.Unmarshal(deploy.Job, &template))
	images := read(t, courses)[:1]
	images[0].Settings["CPUS"] = "4"
	facts := missing(images)
	f := facts[images[0].Name]
	f.MemoryMiB, f.DiskSize = 4096, 10<<30 // the template's
	facts[images[0].Name] = f
	same, _ := jobs(t, fleet.Decide(images, facts, fleet.Policy{}))
	want, got := template.Spec.Template.Spec, same[0].Spec.Template.Spec
	want.InitContainers[0].Resources.Requests["memory"], want.InitContainers[0].Resources.Limits["memory"] = "5120Mi", "6144Mi"
	assert.Equal(t, want.InitContainers[0].Resources, got.InitContainers[0].Resources)
	assert.Equal(t, want.Containers[0].Resources, got.Containers[0].Resources)
	assert.Equal(t, want.Volumes, got.Volumes)

	all, _ := jobs(t, planned(t))
	build := all[1].container(t, "build")
	assert.Equal(t, map[string]string{"cpu": "1", "memory": "5120Mi", "ephemeral-storage": "20Gi"}, build.Resources.Requests, "CPUS is more than small nodes have")
	assert.Equal(t, "64Gi", build.Resources.Limits["ephemeral-storage"])
	assert.Equal(t, template.Spec.Template.Spec.Containers[0].Resources, all[1].container(t, "base").Resources)
	assert.Equal(t, template.Spec.Template.Spec.Containers[0].Resources, all[1].container(t, "push").Resources)
	assert.Contains(t, all[1].Spec.Template.Spec.Volumes, map[string]any{"name": "scratch", "emptyDir": map[string]any{"sizeLimit": "62Gi"}})
	assert.Contains(t, all[1].Spec.Template.Spec.Volumes, map[string]any{"name": "tmp", "emptyDir": map[string]any{"sizeLimit": "1Gi"}})
}

func TestFurtherTagsArePushedBeforeTheOneThatChildrenWaitFor(t *testing.T) {
	t.Parallel()
	all, _ := jobs(t, planned(t))
	assert.Equal(t, []string{"base", "build", "push-2", "push"}, all[1].containers())
	further := all[1].container(t, "push-2")
	assert.Equal(t, []string{"diskforge", "push", "/scratch/out/$(IMAGE_NAME)", "harbor.example.org/labs/netlab:latest"}, further.Command)
	assert.Equal(t, "netlab", further.env()["IMAGE_NAME"])
	assert.Equal(t, []string{"diskforge", "push", "/scratch/out/$(IMAGE_NAME)"}, all[1].container(t, "push").Command)
	assert.Equal(t, []string{"base", "build", "push"}, all[2].containers())
}

func TestAChildWaitsForItsParentInAContainerBeforeTheOneThatBuilds(t *testing.T) {
	t.Parallel()
	all, _ := jobs(t, planned(t))
	assert.Equal(t, []string{"build", "push-2", "push"}, all[0].containers(), "it has no parent")
	for i, timeout := range map[int]string{1: "4h0m0s", 2: "8h0m0s"} {
		base, build := all[i].container(t, "base"), all[i].container(t, "build")
		assert.Equal(t, []string{"diskforge", "base"}, base.Command)
		want := map[string]string{"BASE_TIMEOUT": timeout}
		for _, name := range []string{"ISO_URL", "ISO_CHECKSUM", "CACHE_DIR", "HOME", "TMPDIR"} {
			want[name] = build.env()[name]
		}
		assert.Equal(t, want, base.env(), "the one that builds looks for the same in the same place")
		assert.NotContains(t, build.env(), "BASE_TIMEOUT")
		assert.Equal(t, []string{"scratch"}, base.secrets())
	}
}

func TestNoContainerThatRunsPlaybooksHasAPassword(t *testing.T) {
	t.Parallel()
	all, _ := jobsBy(t, planned(t), "registry-read-only")
	for i, j := range all {
		spec := j.Spec.Template.Spec
		for _, c := range append(spec.InitContainers, spec.Containers...) {
			switch c.Name {
			case "build":
				assert.Equal(t, []string{"scratch"}, c.secrets())
			case "base":
				assert.Equal(t, []string{"registry-read-only", "scratch", "pull"}, c.secrets(), "it may pull, and not push")
				assert.Equal(t, "/registry/password", c.env()["REGISTRY_PASS_FILE"])
			default:
				assert.Equal(t, []string{"diskforge-registry", "scratch", "tmp", "registry"}, c.secrets())
			}
		}
		if i > 0 {
			volume := spec.Volumes[len(spec.Volumes)-1]
			assert.Equal(t, "pull", volume["name"])
			assert.Equal(t, "registry-read-only", volume["secret"].(map[string]any)["secretName"])
		} else {
			assert.Len(t, spec.Volumes, 3)
		}
	}
}

func TestAParentThatThereIsIsNamedByItsDigest(t *testing.T) {
	t.Parallel()
	entries := planned(t)
	images := read(t, courses)
	facts := missing(images)
	facts["ubuntu-server"] = fleet.Facts{Inputs: entries[0].Inputs, Tags: []string{"x"}, Found: &fleet.Found{Digest: "sha256:" + strings.Repeat("d", 64), Tags: []string{"old"}}}
	all, _ := jobs(t, fleet.Decide(images, facts, fleet.Policy{}))
	for _, j := range all {
		if j.Metadata.Labels["diskforge/image"] == "unchanged" {
			env := j.container(t, "base").env()
			assert.Equal(t, "oci://harbor.example.org/labs/ubuntu-server@sha256:"+strings.Repeat("d", 64), env["ISO_URL"])
			assert.NotContains(t, env, "BASE_TIMEOUT", "it is there")
		}
	}
}

// prefixForm is what Kubernetes takes as the beginning of a Job's name, so that
// its pods can be labelled with the whole.
var prefixForm = regexp.MustCompile(`^[a-z0-9][-a-z0-9]{0,56}-$`)

func TestNamesOfJobsAreGoodAndAnewForEachRun(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 45) + "." + strings.Repeat("b", 60)
	images := read(t, fmt.Sprintf("defaults: {tags: '1', base: {url: 'https://x/y', checksum: 'file:https://x/y'}, playbook: p}\nimages: [{name: a.b}, {name: a-b}, {name: a_b}, {name: %s-1}, {name: %s-2}]", long, long))
	all, text := jobs(t, fleet.Decide(images, missing(images), fleet.Policy{}))
	require.Len(t, all, 5)
	for _, j := range all {
		assert.Regexp(t, prefixForm, j.Metadata.GenerateName)
		assert.LessOrEqual(t, len(j.Metadata.Labels["diskforge/image"]), 63)
	}
	assert.NotRegexp(t, `(?m)^  name:`, text, "a second Job of that name would be refused while the first is there")
}

func TestWhatThePlannersSettingsSayOfAnyHostHoldsInEveryJob(t *testing.T) {
	t.Parallel()
	with := render.Target{Registry: target.Registry, Prefix: target.Prefix, CA: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", Host: map[string]string{
		"ACCELERATOR": "tcg", "REGISTRY_INSECURE": "true", "HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8", "CPUS": "8",
	}}
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, planned(t), with, "registry-read-only"))
	for j := range decoded(t, out.Bytes()) {
		spec := j.Spec.Template.Spec
		for _, c := range append(spec.InitContainers, spec.Containers...) {
			env := c.env()
			assert.Equal(t, []string{"true", "http://proxy:3128", "10.0.0.0/8", "/ca/ca.pem"}, []string{env["REGISTRY_INSECURE"], env["HTTPS_PROXY"], env["NO_PROXY"], env["CA_FILE"]}, c.Name)
			assert.Contains(t, c.secrets(), "ca")
		}
		build := j.container(t, "build")
		assert.Equal(t, "tcg", build.env()["ACCELERATOR"])
		assert.NotContains(t, build.Resources.Limits, "devices.kubevirt.io/kvm", "a node without KVM has none to give")
		assert.Equal(t, map[string]string{"ubuntu-desktop": "8", "netlab": "2", "netlab_2.exam": "8"}[j.Metadata.Labels["diskforge/image"]], build.env()["CPUS"], "an image's own setting wins")
		assert.Equal(t, with.CA, j.Spec.Template.Metadata.Annotations["diskforge/ca"])
		assert.Contains(t, spec.Volumes, map[string]any{"name": "ca", "downwardAPI": map[string]any{"items": []any{
			map[string]any{"path": "ca.pem", "fieldRef": map[string]any{"fieldPath": "metadata.annotations['diskforge/ca']"}},
		}}})
	}
	golden(t, "jobs-elsewhere.yaml", out.String())

	out.Reset()
	require.ErrorContains(t, render.GitHubMatrix(&out, planned(t), with, "/checkout"), "leave out REGISTRY_INSECURE and CA_FILE")
	with.CA = ""
	delete(with.Host, "REGISTRY_INSECURE")
	require.NoError(t, render.GitHubMatrix(&out, planned(t), with, "/checkout"))
	assert.Contains(t, out.String(), `"settings":{"ACCELERATOR":"tcg",`)
	assert.Contains(t, out.String(), `"HTTPS_PROXY":"http://proxy:3128"`)
}

func TestASecretOfThePlannersSettingsGoesIntoNoPlan(t *testing.T) {
	t.Parallel()
	for says, with := range map[string]render.Target{
		"HTTPS_PROXY names a user":    {Host: map[string]string{"HTTPS_PROXY": "http://me:hidden-word@proxy:3128"}},
		"CA_FILE holds a private key": {CA: "-----BEGIN PRIVATE KEY-----\nhidden-word"},
		"CA_FILE has 300 KiB":         {CA: strings.Repeat("hidden-word\n", 300<<10/12)},
	} {
		with.Registry = target.Registry
		var out bytes.Buffer
		err := render.Kubernetes(&out, deploy.Job, planned(t), with, "")
		require.ErrorContains(t, err, says)
		assert.NotContains(t, err.Error()+out.String(), "hidden-word")
	}
}

func TestATableSaysWhatEachImageStartsFrom(t *testing.T) {
	t.Parallel()
	images := read(t, `
defaults: {playbook: p}
images:
  - {name: packages, base: {packages: bookworm}}
  - {name: address, base: {url: "https://example.org/a/noble.img?token=1", checksum: "file:SUMS"}}
  - {name: file, base: {url: "disk.qcow2", checksum: "file:SUMS"}}
  - {name: disk, base: {url: "oci://example.org/labs/debian:v1@sha256:0000000000000000000000000000000000000000000000000000000000000000"}}
  - {name: child, from: disk}
`)
	var out bytes.Buffer
	require.NoError(t, render.Text(&out, fleet.Decide(images, missing(images), fleet.Policy{})))
	assert.Equal(t, `LEVEL  ACTION   IMAGE     FROM                WHY
0      build    packages  packages: bookworm  not built yet
0      build    address   noble.img           not built yet
0      build    file      disk.qcow2          not built yet
0      build    disk      debian:v1           not built yet
1      build    child     disk                not built yet
5 images: 5 to build
`, out.String())
}

func TestTheSameReasonOfSeveralImagesIsToldOnce(t *testing.T) {
	t.Parallel()
	entries := many(t, 1)
	for i := range entries {
		entries[i].Tags = nil
	}
	err := render.GitHubMatrix(io.Discard, entries, target, "/checkout")
	require.EqualError(t, err, "all 20 images: there is no tag: set IMAGE_TAG, or tags in the catalogue")

	entries[0].Tags = []string{"v1"}
	err = render.GitHubMatrix(io.Discard, entries, target, "/checkout")
	require.Error(t, err)
	assert.Regexp(t, `^([a-z0-9-]+, ){9}[a-z0-9-]+ and 9 more: there is no tag: set IMAGE_TAG`, err.Error())
}

func TestWhatCannotBeBuiltElsewhereIsRefusedInALineForEachReason(t *testing.T) {
	t.Parallel()
	images := read(t, `
defaults: {tags: "1", playbook: p}
images:
  - {name: packages, base: {packages: bookworm}}
  - {name: folder, base: {url: "https://x/y", checksum: "file:https://x/SUMS"}, ansible-dir: tree}
  - {name: file, base: {url: disk.qcow2, checksum: "file:https://x/SUMS"}}
  - {name: list, base: {url: "https://x/y", checksum: "file:SUMS"}}
  - {name: vars, base: {url: "https://x/y", checksum: "file:https://x/SUMS"}, vars: course.yaml, sparsify: virt-sparsify}
  - {name: repository, base: {url: "https://x/y", checksum: "file:https://x/SUMS"}, git: {url: "file:///srv/playbooks.git"}}
`)
	entries := fleet.Decide(images, missing(images), fleet.Policy{})
	var out bytes.Buffer
	err := render.Kubernetes(&out, deploy.Job, entries, target, "")
	require.Error(t, err)
	assert.Equal(t, []string{
		"packages: a base from packages takes user namespaces, which a restricted pod does not have: give base url and checksum, or push the base with another image",
		"folder: ansible-dir names a folder, which a pod does not have: use git",
		"file, list: base names a file, which a pod does not have: give an http(s) URL",
		"vars: vars names a file, which a pod does not have: write the variables into the catalogue",
		"vars: the toolbox has no virt-sparsify: sparsify: auto or trim",
		"repository: git names a folder, which a pod does not have: give an https URL",
	}, strings.Split(err.Error(), "\n"))
	assert.Empty(t, out.String())

	err = render.GitHubMatrix(&out, entries, render.Target{}, "/checkout")
	require.EqualError(t, err, "there is no registry to push to: set TARGET_REGISTRY, or registry in the catalogue")
	require.EqualError(t, render.Kubernetes(&out, deploy.Job, entries, render.Target{}, ""), err.Error())
	require.ErrorContains(t, render.GitHubMatrix(&out, entries, target, "/checkout"), "file, list: base names a file, which a runner does not have")
	assert.Empty(t, out.String())

	entries[0].Tags = nil
	require.ErrorContains(t, render.Kubernetes(&out, deploy.Job, entries, target, ""), "packages: there is no tag: set IMAGE_TAG, or tags in the catalogue")
}

func TestABaseOfWhichTheSignatureWasVerifiedIsNamedByItsDigest(t *testing.T) {
	t.Parallel()
	signed := target
	signed.Signed = true
	for checksum, refused := range map[string]bool{"inputs:sha256:" + strings.Repeat("a", 64): true, "sha256:" + strings.Repeat("a", 64): false} {
		images := read(t, "images: [{name: x, base: {url: 'oci://registry.example.org/lab:v1', checksum: '"+checksum+"'}, playbook: p, git: {url: 'https://example.org/r.git'}, tags: '1'}]")
		err := render.Kubernetes(io.Discard, deploy.Job, fleet.Decide(images, missing(images), fleet.Policy{}), signed, "")
		if !refused {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "x: with BASE_KEY a pod could take another image of the same inputs than the one whose signature was verified: name the base by its digest")
	}
}

func TestAParentThatIsBuiltAnewNeedsATagOfItsOwn(t *testing.T) {
	t.Parallel()
	images := read(t, courses)[:3]
	facts := missing(images)
	for name, f := range facts {
		f.Found = &fleet.Found{Digest: "sha256:x", Tags: f.Tags}
		facts[name] = f
	}
	err := render.Kubernetes(io.Discard, deploy.Job, fleet.Decide(images, facts, fleet.Policy{Force: true}), target, "")
	require.EqualError(t, err, "netlab: ubuntu-desktop is built anew, and its tag 2026-11-23 is that of the image there is: give a new tag, e.g. the date")
	for name, f := range facts {
		f.Tags = []string{"2026-11-24"}
		facts[name] = f
	}
	require.NoError(t, render.Kubernetes(io.Discard, deploy.Job, fleet.Decide(images, facts, fleet.Policy{Force: true}), target, ""))
}

func TestAPlanWithNothingToBuildIsAComment(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, nil, target, ""))
	assert.Equal(t, "# 0 images: 0 to build\n", out.String())
}

func TestATemplateThatLacksAPartIsNamed(t *testing.T) {
	t.Parallel()
	for _, broken := range []string{"spec: [", "a: b", "spec: {template: {spec: {initContainers: [{}], containers: [{}]}}}"} {
		assert.ErrorContains(t, render.Kubernetes(io.Discard, []byte(broken), planned(t), target, ""), "the Job's template", broken)
	}
}

// BenchmarkAThousandImages decides on a thousand images and writes the plan
// in each format.
func BenchmarkAThousandImages(b *testing.B) {
	entries := many(b, 99)
	images := make([]catalogue.Image, len(entries))
	for i, e := range entries {
		images[i] = catalogue.Image{Name: e.Name, From: e.From, Tags: e.Tags, Settings: e.Settings, Wanted: true}
	}
	facts := missing(images)
	for name, write := range map[string]func([]*fleet.Entry) error{
		"text":          func(entries []*fleet.Entry) error { return render.Text(io.Discard, entries) },
		"json":          func(entries []*fleet.Entry) error { return render.JSON(io.Discard, entries) },
		"github-matrix": func(entries []*fleet.Entry) error { return render.GitHubMatrix(io.Discard, entries, target, "/") },
		"kubernetes": func(entries []*fleet.Entry) error {
			return render.Kubernetes(io.Discard, deploy.Job, entries, target, "")
		},
	} {
		b.Run(name, func(b *testing.B) {
			require.NoError(b, testkit.ResetPeak())
			for b.Loop() {
				require.NoError(b, write(fleet.Decide(images, facts, fleet.Policy{Now: now, MaxAge: 1})))
			}
			mib, err := testkit.PeakMiB()
			require.NoError(b, err)
			b.ReportMetric(mib, "MiB-peak")
		})
	}
}
