package deploy_test

import (
	"bytes"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/deploy"
	"github.com/netgroup-polito/diskforge/internal/cli"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// container is what the tests read of a container.
type container struct {
	Name, Image   string
	Command, Args []string
	Env           []variable
	VolumeMounts  []mount `yaml:"volumeMounts"`
}

type variable struct {
	Name, Value string
	ValueFrom   struct {
		SecretKeyRef struct{ Name, Key string } `yaml:"secretKeyRef"`
	} `yaml:"valueFrom"`
}

type mount struct {
	Name, MountPath string
	ReadOnly        bool
}

// UnmarshalYAML reads a mount by Kubernetes' names.
func (m *mount) UnmarshalYAML(n *yaml.Node) error {
	var k struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	err := n.Decode(&k)
	*m = mount(k)
	return err
}

// manifest is what the tests read of a Job.
type manifest struct {
	Spec struct {
		Template struct {
			Spec struct {
				InitContainers []container `yaml:"initContainers"`
				Containers     []container
			}
		}
	}
}

// job returns the Job's two containers.
func job(t *testing.T) (build, push container) {
	t.Helper()
	var j manifest
	require.NoError(t, yaml.Unmarshal(deploy.Job, &j))
	spec := j.Spec.Template.Spec
	require.Len(t, spec.InitContainers, 1)
	require.Len(t, spec.Containers, 1)
	return spec.InitContainers[0], spec.Containers[0]
}

// rendered returns the Jobs of catalogue.yaml, none of which was built.
func rendered(t *testing.T) (jobs []manifest, entries []*fleet.Entry) {
	t.Helper()
	c, err := catalogue.Load("catalogue.yaml")
	require.NoError(t, err)
	facts := map[string]fleet.Facts{}
	for _, image := range c.Images {
		facts[image.Name] = fleet.Facts{Inputs: "sha256:" + strings.Repeat("0", 64), Tags: []string{"2026-11-23"}, MemoryMiB: 4096, DiskSize: 15 << 30}
	}
	entries = fleet.Decide(c.Images, facts, fleet.Policy{})
	var out bytes.Buffer
	require.NoError(t, render.Kubernetes(&out, deploy.Job, entries, render.Target{Registry: c.Registry, Prefix: c.Prefix}, ""))
	for document := range strings.SplitSeq(out.String(), "\n---\n") {
		var j manifest
		require.NoError(t, yaml.Unmarshal([]byte(document), &j))
		jobs = append(jobs, j)
	}
	return jobs, entries
}

// filled is the environment of a container, with what an administrator fills
// in, and with what the secret has.
func (c container) filled(in map[string]string) map[string]string {
	env := map[string]string{}
	for _, v := range c.Env {
		env[v.Name] = v.Value
		if v.ValueFrom.SecretKeyRef.Key != "" {
			env[v.Name] = "me"
		}
		if value, ok := in[v.Name]; ok {
			env[v.Name] = value
		}
	}
	return env
}

// command is the container's command with its $(VARIABLES) replaced.
func (c container) command(env map[string]string) []string {
	line := slices.Concat(c.Command, c.Args)
	for i := range line {
		for name, value := range env {
			line[i] = strings.ReplaceAll(line[i], "$("+name+")", value)
		}
	}
	return line
}

// inProcess runs a container's command in this process and returns its exit
// code and standard error. It is for commands that end at their settings.
func (c container) inProcess(t *testing.T, in map[string]string) (code int, stderr string) {
	t.Helper()
	for _, f := range settings.Fields() {
		t.Setenv(f.Env, "")
	}
	env := c.filled(in)
	for name, value := range env {
		t.Setenv(name, value)
	}
	line := c.command(env)
	require.Equal(t, "diskforge", line[0])
	var out, errors bytes.Buffer
	code = cli.Main(line[1:], &out, &errors)
	assert.Empty(t, out.String())
	return code, errors.String()
}

func TestAJobAsItIsPrintedFailsAtOnceAndNamesAllThatIsToBeFilledIn(t *testing.T) {
	build, _ := job(t)
	code, stderr := build.inProcess(t, nil)
	assert.Equal(t, 2, code)
	for _, name := range []string{"ISO_URL", "ANSIBLE_PLAYBOOK", "TARGET_REGISTRY", "IMAGE_NAME", "IMAGE_TAG"} {
		assert.Contains(t, stderr, name)
	}
	code, stderr = build.inProcess(t, map[string]string{"ISO_URL": "https://example.org/x.qcow2"})
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "ISO_CHECKSUM")
}

func TestAJobThatIsFilledInHasGoodSettings(t *testing.T) {
	build, _ := job(t)
	env := build.filled(map[string]string{
		"ISO_URL": "https://example.org/x.qcow2", "ISO_CHECKSUM": "sha256:" + strings.Repeat("0", 64), "ANSIBLE_PLAYBOOK": "ubuntu-base.yml",
		"TARGET_REGISTRY": "harbor.example.org", "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "ubuntu", "IMAGE_TAG": "1",
	})
	s, err := settings.Read(nil, func(key string) (string, bool) { v, ok := env[key]; return v, ok })
	require.NoError(t, err)
	c, err := pipeline.Parse(s, pipeline.NeedBase, pipeline.NeedPlaybook, pipeline.NeedReference)
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.org/labs/ubuntu:1", c.Reference)
	assert.False(t, c.Push)
	assert.Equal(t, "https://github.com/netgroup-polito/CrownLabs.git", c.GitURL)
	assert.Equal(t, "master", c.GitBranch)
	assert.True(t, c.BakeUser, "CrownLabs' playbooks write into the user's home")
}

func TestTheCataloguesImagesAreJobsWithGoodSettings(t *testing.T) {
	jobs, entries := rendered(t)
	require.Len(t, jobs, len(entries))
	require.Greater(t, len(jobs), 10)
	parents := 0
	for i, j := range jobs {
		init := j.Spec.Template.Spec.InitContainers
		env := init[len(init)-1].filled(nil)
		s, err := settings.Read(nil, func(key string) (string, bool) { v, ok := env[key]; return v, ok })
		require.NoError(t, err)
		c, err := pipeline.Parse(s, pipeline.NeedBase, pipeline.NeedPlaybook, pipeline.NeedReference)
		require.NoError(t, err, entries[i].Name)
		assert.Equal(t, "harbor.example.org/crownlabs-containerdisks/"+entries[i].Name+":2026-11-23", c.Reference)
		assert.Zero(t, c.BaseTimeout)
		if entries[i].From == "" {
			parents++
		} else {
			base := init[0].filled(nil)
			s, err = settings.Read(nil, func(key string) (string, bool) { v, ok := base[key]; return v, ok })
			require.NoError(t, err)
			fetches, err := pipeline.Parse(s, pipeline.NeedBase)
			require.NoError(t, err)
			parent := "harbor.example.org/crownlabs-containerdisks/" + entries[i].From + ":2026-11-23"
			assert.Equal(t, settings.BaseImage{Reference: parent, Inputs: "sha256:" + strings.Repeat("0", 64)}, c.BaseImage)
			assert.Equal(t, c.BaseImage, fetches.BaseImage)
			assert.Equal(t, c.CacheDir, fetches.CacheDir)
			level := 1
			if entries[i].From == "debian-desktop" {
				level = 2
			}
			assert.Equal(t, time.Duration(level)*4*time.Hour, fetches.BaseTimeout, "as long as its parents may take")
		}
		assert.False(t, c.BakeUser)
		assert.Equal(t, strings.Contains(entries[i].Name+entries[i].From, "-desktop"), c.Desktop, entries[i].Name)
		assert.Equal(t, entries[i].Name != "debian-desktop-vm", c.CrownLabsMode)
		assert.Equal(t, 4096, c.MemoryMiB)
		push := j.Spec.Template.Spec.Containers[0]
		assert.Equal(t, "/scratch/out/"+entries[i].Name, push.command(push.filled(nil))[2])
	}
	assert.Equal(t, 2, parents)
}

func TestOnlyTheContainersThatPushSeeTheSecretOfARenderedJob(t *testing.T) {
	jobs, _ := rendered(t)
	for _, j := range jobs {
		spec := j.Spec.Template.Spec
		for _, c := range spec.InitContainers {
			for _, v := range c.Env {
				assert.Empty(t, v.ValueFrom.SecretKeyRef.Name, v.Name)
			}
			assert.Equal(t, []mount{{"scratch", "/scratch", false}}, c.VolumeMounts)
		}
		assert.Len(t, spec.Containers[0].VolumeMounts, 3)
	}
}

func TestOnlyKnownSettingsStandInTheJob(t *testing.T) {
	known := map[string]bool{"HOME": true, "TMPDIR": true}
	for _, f := range settings.Fields() {
		known[f.Env] = true
	}
	build, push := job(t)
	for _, v := range slices.Concat(build.Env, push.Env) {
		assert.True(t, known[v.Name], v.Name)
	}
}

func TestOnlyTheContainerThatPushesSeesTheSecret(t *testing.T) {
	build, push := job(t)
	for _, name := range []string{"TARGET_REGISTRY", "REGISTRY_PREFIX", "IMAGE_NAME", "IMAGE_TAG"} {
		assert.Contains(t, slices.Collect(maps.Keys(push.filled(nil))), name, "a playbook could name another registry in the layout")
	}
	for _, v := range build.Env {
		assert.False(t, strings.HasPrefix(v.Name, "REGISTRY_") && v.Name != "REGISTRY_PREFIX", v.Name)
		assert.Empty(t, v.ValueFrom.SecretKeyRef.Name, v.Name)
	}
	assert.Equal(t, []mount{{"scratch", "/scratch", false}}, build.VolumeMounts)
	assert.Contains(t, push.VolumeMounts, mount{"registry", path.Dir(push.filled(nil)["REGISTRY_PASS_FILE"]), true})
	assert.Equal(t, build.Image, push.Image)

	text, err := os.ReadFile("registry-secret.yaml")
	require.NoError(t, err)
	var secret struct {
		Metadata   struct{ Name string }
		StringData map[string]string `yaml:"stringData"`
	}
	require.NoError(t, yaml.Unmarshal(text, &secret))
	for _, v := range push.Env {
		if ref := v.ValueFrom.SecretKeyRef; ref.Name != "" {
			assert.Equal(t, secret.Metadata.Name, ref.Name)
			assert.Contains(t, secret.StringData, ref.Key)
		}
	}
	assert.Contains(t, slices.Collect(maps.Keys(secret.StringData)), path.Base(push.filled(nil)["REGISTRY_PASS_FILE"]))
	for _, value := range secret.StringData {
		assert.Empty(t, value, "no password is committed")
	}
}

// writable says whether a volume is mounted there that the container may write to.
func (c container) writable(folder string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return !m.ReadOnly && strings.HasPrefix(folder+"/", m.MountPath+"/") })
}

func TestAllThatAContainerWritesLiesOnAVolumeThatItMayWriteTo(t *testing.T) {
	all, _ := rendered(t)
	var template manifest
	require.NoError(t, yaml.Unmarshal(deploy.Job, &template))
	for _, j := range append(all, template) {
		spec := j.Spec.Template.Spec
		for _, c := range append(spec.InitContainers, spec.Containers...) {
			env := c.filled(nil)
			for _, name := range []string{"OUTPUT_DIR", "CACHE_DIR", "HOME", "TMPDIR"} {
				if folder, ok := env[name]; ok || name == "TMPDIR" {
					assert.True(t, c.writable(folder), "%s: %s=%s", c.Name, name, folder)
				}
			}
		}
	}
	build, push := job(t)
	env := build.filled(nil)
	assert.Equal(t, env["OUTPUT_DIR"]+"/ubuntu", push.command(map[string]string{"IMAGE_NAME": "ubuntu"})[2], "what build wrote is what is pushed")
}

func TestThePasswordGoesToTheJobsRegistryWhateverTheLayoutSays(t *testing.T) {
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	var asked atomic.Int32
	theirs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(http.StatusTeapot) }))
	defer theirs.Close()
	ours := httptest.NewServer(registry.New(quiet))
	defer ours.Close()
	disk, layout := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	sectors := make([]byte, 1<<20)
	copy(sectors[510:], "\x55\xAA") // a partition table without partitions
	require.NoError(t, os.WriteFile(disk, sectors, 0o600))
	_, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{
		Architecture: "amd64", Reference: strings.TrimPrefix(theirs.URL, "http://") + "/labs/course:1", // as a playbook could write it
	}, progress.Discard)
	require.NoError(t, err)
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("secret"), 0o600))

	_, push := job(t)
	address := strings.TrimPrefix(ours.URL, "http://")
	env := push.filled(map[string]string{"TARGET_REGISTRY": address, "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "course", "IMAGE_TAG": "1", "REGISTRY_PASS_FILE": password})
	for name, value := range env {
		t.Setenv(name, value)
	}
	var out, said bytes.Buffer
	line := push.command(env)
	require.Zero(t, cli.Main([]string{line[1], layout, "--unverified"}, &out, &said), said.String())
	assert.True(t, strings.HasPrefix(out.String(), address+"/labs/course:1@sha256:"), out.String())
	assert.Zero(t, asked.Load())
}
