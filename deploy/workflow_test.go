package deploy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/fleet/render"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

const (
	workflows = "../.github/workflows/"
	keyless   = "./.github/workflows/keyless.yml"
)

type workflow struct {
	Permissions map[string]string
	Env         map[string]string
	Jobs        map[string]struct {
		Permissions map[string]string
		If, Uses    string
		Needs       any
		With        map[string]string
		Strategy    struct{ Matrix any }
		Steps       []step
	}
}

type step struct {
	ID, Run string
	Env     map[string]string
}

func read(t *testing.T, name string) (w workflow, text string) {
	t.Helper()
	b, err := os.ReadFile(workflows + name)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(b, &w))
	return w, string(b)
}

// script is the script of the step with the id.
func (w workflow) script(t *testing.T, job, id string) string {
	t.Helper()
	for _, s := range w.Jobs[job].Steps {
		if s.ID == id {
			return s.Run
		}
	}
	t.Fatalf("the job %s has no step %s", job, id)
	return ""
}

func all(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(workflows + "*.yml")
	require.NoError(t, err)
	require.Len(t, files, 5)
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

func TestEveryActionIsPinnedByItsCommitAndNamesItsVersion(t *testing.T) {
	pinned := regexp.MustCompile(`^[a-z-]+/[a-z-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+$`)
	uses := regexp.MustCompile(`(?m)^ *(?:- )?uses: (.*)$`)
	for _, name := range all(t) {
		_, text := read(t, name)
		for _, u := range uses.FindAllStringSubmatch(text, -1) {
			if u[1] != "*build" && !strings.HasSuffix(u[1], "./.github/workflows/build.yml") && u[1] != keyless { // our own, of the same commit
				assert.Regexp(t, pinned, u[1])
			}
		}
	}
}

func TestTheTokenMayWritePackagesInTheJobThatPublishesOnly(t *testing.T) {
	for _, name := range all(t) {
		w, _ := read(t, name)
		for job, j := range w.Jobs {
			switch {
			case name == "keyless.yml", j.Uses == keyless: // they have their caller's
				assert.Nil(t, w.Permissions)
				assert.Nil(t, j.Permissions)
			case job == "publish", j.Uses == "./.github/workflows/build.yml": // which narrows it itself
				assert.Equal(t, map[string]string{"contents": "read", "packages": "write"}, j.Permissions)
			case job == "plan":
				assert.Equal(t, map[string]string{"contents": "read", "packages": "read"}, j.Permissions)
			case j.Permissions != nil:
				assert.Equal(t, map[string]string{"contents": "read"}, j.Permissions, name+": "+job)
			default:
				assert.Equal(t, map[string]string{"contents": "read"}, w.Permissions, name+": "+job)
			}
		}
	}
	w, _ := read(t, "build.yml")
	assert.NotContains(t, w.Jobs["publish"].If, "pull_request")
	for _, s := range w.Jobs["build"].Steps {
		for _, value := range s.Env {
			assert.NotContains(t, value, "secrets.", "playbooks run in this job")
			assert.NotContains(t, value, "github.token")
		}
	}
}

func TestNoScriptHasAValuePastedIntoIt(t *testing.T) {
	for _, name := range all(t) {
		w, _ := read(t, name)
		for job, j := range w.Jobs {
			for _, s := range j.Steps {
				assert.NotContains(t, s.Run, "${{", name+": "+job)
			}
		}
	}
}

// play runs a step's script as the runner does, with a stand-in for a program
// that writes its arguments, one a line, and returns these lines and the
// folder.
func play(t *testing.T, script, stand, does string, env ...string) (called [][]string, dir string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(stand)), 0o755))
	program := "#!/bin/sh\nprintf '%s\\n' \"$@\" END >>" + dir + "/called\n" + does + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, stand), []byte(program), 0o755))
	cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + dir + ":" + os.Getenv("PATH"), "GITHUB_STEP_SUMMARY=" + dir + "/summary", "GITHUB_OUTPUT=" + dir + "/output"}, env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	text, err := os.ReadFile(filepath.Join(dir, "called"))
	require.NoError(t, err)
	for call := range strings.SplitSeq(strings.TrimSuffix(string(text), "END\n"), "END\n") {
		called = append(called, strings.Split(strings.TrimSuffix(call, "\n"), "\n"))
	}
	return called, dir
}

// packs stands for dagger: it writes an OCI layout with a digest as image.tar,
// and a report.
const packs = `printf '{"manifests":[{"digest":"sha256:0123"}]}' >index.json && tar -cf image.tar ./index.json
mkdir -p report && echo 'what was built from what' >report/summary.md`

// given are the settings that a script wrote for the module.
func given(t *testing.T, dir string) (all map[string]any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "settings.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &all))
	return all
}

func TestHostileInputsReachDaggerAsTheyAre(t *testing.T) {
	w, _ := read(t, "build.yml")
	const hostile = `x"; touch owned; $(touch owned) --registry-pass=env://HOME #`
	called, dir := play(t, w.script(t, "build", "build"), "dagger", packs,
		"ANSIBLE_PLAYBOOK="+hostile, "IMAGE_NAME="+hostile, "IMAGE_TAG=1", "ISO_URL="+hostile, "ISO_CHECKSUM="+hostile, "ANSIBLE_DIR="+hostile,
		"GIT_ANSIBLE_URL="+hostile, "GIT_ANSIBLE_BRANCH="+hostile, "DISK_SIZE="+hostile, "SETTINGS=", "ACCELERATOR=kvm", "INSTALL_DESKTOP_ENVIRONMENT=true", "BAKE_USER=false")
	assert.NoFileExists(t, filepath.Join(dir, "owned"))
	require.Len(t, called, 3)
	assert.Equal(t, []string{
		"-m", "./diskforge", "call", "build", "--ansible-playbook=" + hostile, "--settings=settings.json", "--ansible=caller/" + hostile, "oci", "export", "--path=image.tar",
	}, called[0])
	assert.Equal(t, map[string]any{
		"ISO_URL": hostile, "ISO_CHECKSUM": hostile, "BASE_FROM_PACKAGES": nil, "GIT_ANSIBLE_URL": hostile, "GIT_ANSIBLE_BRANCH": hostile, "DISK_SIZE": hostile,
		"INSTALL_DESKTOP_ENVIRONMENT": "true", "BAKE_USER": "false", "ACCELERATOR": "kvm", "IMAGE_NAME": hostile, "IMAGE_TAG": "1",
	}, given(t, dir))
	summary, err := os.ReadFile(filepath.Join(dir, "summary"))
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(summary), "what was built from what\n"), "the report is the summary")
	assert.Contains(t, string(summary), "`sha256:0123`")
}

func TestAGatesFindingIsTheSummaryOfABuildThatFailed(t *testing.T) {
	w, _ := read(t, "build.yml")
	script := "set +e; (set -e; " + w.script(t, "build", "build") + "); echo $? >code; set -e\n" + w.script(t, "build", "why")
	const finding = "/etc/machine-id is not empty; </pre>"
	called, dir := play(t, script, "dagger", "echo '"+finding+"' >&2; exit 1",
		"ANSIBLE_PLAYBOOK=p", "IMAGE_NAME=x", "IMAGE_TAG=1", "ISO_URL=", "ISO_CHECKSUM=", "ANSIBLE_DIR=",
		"GIT_ANSIBLE_URL=", "GIT_ANSIBLE_BRANCH=", "DISK_SIZE=10G", "ACCELERATOR=kvm", "INSTALL_DESKTOP_ENVIRONMENT=false", "BAKE_USER=false", "SETTINGS=")
	assert.Len(t, called, 1, "nothing is asked for after the failure")
	code, err := os.ReadFile(filepath.Join(dir, "code"))
	require.NoError(t, err)
	assert.Equal(t, "1\n", string(code))
	summary, err := os.ReadFile(filepath.Join(dir, "summary"))
	require.NoError(t, err)
	assert.Equal(t, "`x:1` was not built:\n\n    "+finding+"\n", string(summary))
}

func TestFurtherSettingsReachDaggerAsTheyAre(t *testing.T) {
	w, _ := read(t, "build.yml")
	const hostile = `{"EXTRA_VARS": "{\"motd\": \"$(touch owned) \\\"; touch owned #\"}", "MEMORY": "4096"}`
	called, dir := play(t, w.script(t, "build", "build"), "dagger", packs,
		"ANSIBLE_PLAYBOOK=p", "IMAGE_NAME=x", "IMAGE_TAG=1", "ISO_URL=", "ISO_CHECKSUM=", "ANSIBLE_DIR=",
		"GIT_ANSIBLE_URL=", "GIT_ANSIBLE_BRANCH=", "DISK_SIZE=10G", "ACCELERATOR=kvm", "INSTALL_DESKTOP_ENVIRONMENT=false", "BAKE_USER=false", "SETTINGS="+hostile)
	assert.NoFileExists(t, filepath.Join(dir, "owned"))
	assert.Equal(t, []string{"--settings=settings.json", "oci"}, called[0][5:7])
	settings := given(t, dir)
	assert.Equal(t, `{"motd": "$(touch owned) \"; touch owned #"}`, settings["EXTRA_VARS"])
	assert.Equal(t, []any{"4096", "10G"}, []any{settings["MEMORY"], settings["DISK_SIZE"]})
}

func TestABuildWithoutAURLIsMadeFromPackages(t *testing.T) {
	w, _ := read(t, "build.yml")
	called, dir := play(t, w.script(t, "build", "build"), "dagger", packs,
		"ANSIBLE_PLAYBOOK=debian-base", "IMAGE_NAME=x", "IMAGE_TAG=1", "ISO_URL=", "ISO_CHECKSUM=", "ANSIBLE_DIR=",
		"GIT_ANSIBLE_URL=", "GIT_ANSIBLE_BRANCH=", "DISK_SIZE=10G", "ACCELERATOR=kvm", "INSTALL_DESKTOP_ENVIRONMENT=false", "BAKE_USER=false", "SETTINGS=")
	assert.Equal(t, "true", given(t, dir)["BASE_FROM_PACKAGES"])
	assert.Equal(t, []string{
		"-m", "./diskforge", "call", "build", "--ansible-playbook=debian-base", "--settings=settings.json", "report", "export", "--path=report",
	}, called[1])
}

// calls are the parts of the workflows and of the documents that call the
// module.
func calls(t *testing.T) (found []string) {
	t.Helper()
	inWorkflows := regexp.MustCompile(`(?s)dagger call .*?export --path|(?:build|plan)\+=\([^)]*\)|(?:build|plan)=\(.*?\)|"\$\{build\[@\]\}"[^\n]*`)
	inDocuments := regexp.MustCompile("dagger (?:-m [^ ]+ )?call (?:[^`\n\\\\]|\\\\\n)*")
	for _, name := range all(t) {
		_, text := read(t, name)
		found = append(found, inWorkflows.FindAllString(text, -1)...)
	}
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		found = append(found, inDocuments.FindAllString(string(text), -1)...)
	}
	return found
}

func TestEveryArgumentInWorkflowsAndDocumentsIsOneOfTheModules(t *testing.T) {
	var module strings.Builder
	for _, name := range []string{"build.go", "image.go", "main.go", "all.go"} {
		b, err := os.ReadFile("../ci/" + name)
		require.NoError(t, err)
		module.Write(b)
	}
	flag := regexp.MustCompile(`--([a-z0-9-]+)`)
	seen := map[string]bool{}
	for _, call := range calls(t) {
		for _, m := range flag.FindAllStringSubmatch(call, -1) {
			if m[1] == "path" || m[1] == "help" || m[1] == "address" {
				continue // Dagger's own
			}
			seen[m[1]] = true
			words := strings.Split(m[1], "-")
			for i := range words[1:] {
				words[i+1] = strings.ToUpper(words[i+1][:1]) + words[i+1][1:]
			}
			assert.Regexp(t, `(?m)^\t`+strings.Join(words, "")+` [^:]`, module.String(), call)
		}
	}
	for _, name := range []string{"iso-url", "iso-checksum", "base-from-packages", "ansible", "set", "settings", "pass", "catalogue"} {
		assert.True(t, seen[name], "the test found no --"+name)
	}
}

func TestTheWorkflowsUseTheModulesDaggerAndGo(t *testing.T) {
	module, err := os.ReadFile("../dagger.json")
	require.NoError(t, err)
	images, err := os.ReadFile("../ci/main.go")
	require.NoError(t, err)
	for _, name := range all(t) {
		_, text := read(t, name)
		for _, m := range regexp.MustCompile(`(?m)^ *version: (.*)$`).FindAllStringSubmatch(text, -1) {
			assert.Contains(t, string(module), `"engineVersion": "`+m[1]+`"`)
		}
		for _, m := range regexp.MustCompile(`(?m)^ *image: (.*)$`).FindAllStringSubmatch(text, -1) {
			assert.Contains(t, string(images), `"`+m[1]+`"`)
		}
	}
}

func TestPublishingNamesTheRepositoryOnGitHubsRegistryInLowerCase(t *testing.T) {
	w, _ := read(t, "build.yml")
	script := "mkdir -p out && tar -cf out/image.tar --files-from=/dev/null\n" + w.script(t, "publish", "push")
	says := `echo "$TARGET_REGISTRY/$REGISTRY_PREFIX/x:1@sha256:0123"`
	pushed := []string{"push", "out/layout", "--provenance=published/provenance.json"}
	called, dir := play(t, script, "bin/diskforge", says, "TARGET_REGISTRY=ghcr.io", "REGISTRY_PREFIX=", "GITHUB_REPOSITORY=Netgroup-Polito/Images")
	assert.Equal(t, [][]string{pushed}, called)
	output, err := os.ReadFile(filepath.Join(dir, "output"))
	require.NoError(t, err)
	assert.Equal(t, "reference=ghcr.io/netgroup-polito/images/x:1@sha256:0123\n", string(output))

	called, dir = play(t, script, "bin/diskforge", says, "FURTHER_TAGS=latest 1.0", "TARGET_REGISTRY=harbor.example.org", "REGISTRY_PREFIX=labs", "GITHUB_REPOSITORY=a/b")
	output, err = os.ReadFile(filepath.Join(dir, "output"))
	require.NoError(t, err)
	assert.Equal(t, "reference=harbor.example.org/labs/x:1@sha256:0123\n", string(output))
	assert.Equal(t, [][]string{pushed, {"push", "out/layout", "harbor.example.org/labs/x:latest"}, {"push", "out/layout", "harbor.example.org/labs/x:1.0"}}, called)
}

// matrix is a plan of two levels, as diskforge writes it for the workflow.
func matrix(t *testing.T) string {
	t.Helper()
	c, err := catalogue.Load("catalogue.yaml")
	require.NoError(t, err)
	facts := map[string]fleet.Facts{}
	for _, image := range c.Images {
		facts[image.Name] = fleet.Facts{Inputs: "sha256:" + strings.Repeat("0", 64), Tags: []string{"1", "latest"}}
	}
	var out strings.Builder
	require.NoError(t, render.GitHubMatrix(&out, fleet.Decide(c.Images, facts, fleet.Policy{}), render.Target{Registry: c.Registry, Prefix: c.Prefix}, "/"))
	return strings.TrimSpace(out.String())
}

func TestTheCataloguesWorkflowPassesThePlanOn(t *testing.T) {
	w, _ := read(t, "catalogue.yml")
	says := `case "$*" in *github-matrix) echo '` + matrix(t) + `' ;; *) echo table ;; esac`
	const hostile = `a b"; touch owned; $(touch owned) #.yaml`
	called, dir := play(t, w.script(t, "plan", "plan"), "dagger", says, "CATALOGUE="+hostile, "ONLY=x*", "FORCE=false", "MAX_AGE=7d", "IMAGE_TAG=2026-11-23",
		"TARGET_REGISTRY=ghcr.io", "REGISTRY_PREFIX=", "GITHUB_REPOSITORY=Netgroup-Polito/Images", "REGISTRY_USER=me", "REGISTRY_PASS=secret")
	assert.NoFileExists(t, filepath.Join(dir, "owned"))
	assert.Equal(t, []string{
		"-m", "./diskforge", "call", "with-registry", "--host=ghcr.io", "--user=me", "--pass=env://REGISTRY_PASS", "plan", "--catalogue=caller", "--file=" + hostile,
		"--force=false", "--set=IMAGE_TAG=2026-11-23", "--set=REGISTRY_PREFIX=netgroup-polito/images", "--only=x*", "--max-age=7d", "github-matrix",
	}, called[1])
	output, err := os.ReadFile(filepath.Join(dir, "output"))
	require.NoError(t, err)
	assert.Equal(t, "plan="+matrix(t)+"\nprefix=netgroup-polito/images\n", string(output))
	summary, err := os.ReadFile(filepath.Join(dir, "summary"))
	require.NoError(t, err)
	assert.Contains(t, string(summary), "table")
}

func TestEveryLevelOfAPlanIsBuiltByTheSameWorkflow(t *testing.T) {
	w, _ := read(t, "catalogue.yml")
	_, text := read(t, "build.yml")
	var called struct {
		On struct {
			Call struct{ Inputs map[string]any } `yaml:"workflow_call"`
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(text), &called))
	for level := range 4 {
		j := w.Jobs[fmt.Sprintf("level-%d", level+1)]
		assert.Equal(t, "./.github/workflows/build.yml", j.Uses)
		assert.Equal(t, fmt.Sprintf("${{ fromJSON(needs.plan.outputs.plan).levels[%d] }}", level), j.Strategy.Matrix)
		assert.Regexp(t, fmt.Sprintf(`levels\[%d\]$`, level), strings.TrimSpace(j.If), "null is false, and act takes null for != null")
		if level > 0 {
			assert.Equal(t, []any{"plan", fmt.Sprintf("level-%d", level)}, j.Needs)
		}
		for input := range called.On.Call.Inputs {
			assert.Contains(t, j.With, input)
		}
	}
	var m struct {
		Levels []struct{ Include []map[string]any }
	}
	require.NoError(t, json.Unmarshal([]byte(matrix(t)), &m))
	require.Len(t, m.Levels, 3)
	for _, key := range slices.Collect(maps.Keys(m.Levels[1].Include[0])) {
		assert.Contains(t, called.On.Call.Inputs, key, "build.yml has no such input")
	}
}

func TestEverySettingOfACatalogueIsAnInputOrASetting(t *testing.T) {
	c, err := catalogue.Parse("x", "/x", []byte(`
images: [{name: x, base: {packages: bookworm}, playbook: p, git: {url: "https://x/y", branch: b, path: p}, desktop: true, vars: {a: b}, memory: 2048, cpus: 2,
  size: 10G, architecture: amd64, boot-timeout: 5m, build-user: b, vm-user: v, bake-user: true, sparsify: trim, compression: zlib, tags: "1"}]`))
	require.NoError(t, err)
	c.Images[0].Settings["IMAGE_INPUTS"], c.Images[0].Settings["APT_MIRROR"] = "sha256:0", "https://deb.example.org" // the plan adds these
	var out strings.Builder
	require.NoError(t, render.GitHubMatrix(&out, fleet.Decide(c.Images, map[string]fleet.Facts{"x": {Tags: []string{"1"}}}, fleet.Policy{}), render.Target{Registry: "r"}, "/x"))
	var m struct {
		Levels []struct {
			Include []struct{ Settings map[string]string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out.String()), &m))
	given := m.Levels[0].Include[0].Settings
	require.Len(t, given, 13)
	for name := range given {
		_, known := settings.By(name)
		assert.True(t, known, name)
	}
}

func TestImagesAreTaggedByTheirDigest(t *testing.T) {
	w, _ := read(t, "catalogue.yml")
	called, _ := play(t, w.script(t, "publish", "tag"), "bin/diskforge", "cat >/dev/null",
		`PLAN={"levels": [], "tags": [{"reference": "r/a@sha256:0", "tags": ["1", "latest"]}, {"reference": "r/b@sha256:1", "tags": ["1"]}]}`)
	assert.Equal(t, [][]string{
		{"images", "tag", "r/a@sha256:0", "1", "latest"}, {"images", "tag", "r/b@sha256:1", "1"},
	}, called)
}

func TestWhatIsPublishedIsSignedWithACertificateByItsDigest(t *testing.T) {
	build, _ := read(t, "build.yml")
	w, _ := read(t, "keyless.yml")
	publish := "mkdir -p out bin && tar -cf out/image.tar --files-from=/dev/null && ln -s ../stand bin/diskforge\n" + build.script(t, "publish", "push") +
		"\nmv published published-x-1\n"
	const image = "harbor.example.org/labs/x@sha256:0123"
	called, dir := play(t, publish+"ln -s stand cosign\n"+w.script(t, "sign", "sign"), "stand", "[ \"$1\" != push ] || echo harbor.example.org/labs/x:1@sha256:0123",
		"TARGET_REGISTRY=harbor.example.org", "REGISTRY_PREFIX=labs", "REGISTRY_USER=me", "REGISTRY_PASS=secret", "ACTIONS_ID_TOKEN_REQUEST_URL=https://x")
	assert.Equal(t, [][]string{
		{"login", "harbor.example.org", "--username", "me", "--password-stdin"},
		{"attest", "--yes", "--type", "slsaprovenance1", "--predicate", "published-x-1/provenance.json", image},
		{"attest", "--yes", "--type", "spdxjson", "--predicate", "report-x-1/report/sbom.spdx.json", image},
		{"attest", "--yes", "--type", "cyclonedx", "--predicate", "report-x-1/report/sbom.cdx.json", image},
		{"sign", "--yes", image},
	}, called[1:])
	summary, err := os.ReadFile(filepath.Join(dir, "summary"))
	require.NoError(t, err)
	assert.Contains(t, string(summary), "Signed `"+image+"`")

	called, _ = play(t, "cosign; ! ("+w.script(t, "sign", "sign")+")", "cosign", "")
	assert.Len(t, called, 1, "without the permission nothing is signed")
}

func TestImagesAreRefreshedByNameWithAKeyThatIsASecret(t *testing.T) {
	w, _ := read(t, "refresh.yml")
	const keeps = `[ -z "$SIGNING_KEY" ] || { stat -c %a "$SIGNING_KEY"; cat "$SIGNING_KEY"; } >kept; ! env | grep -q ^KEY=; echo r/x:1@sha256:0123`
	run := func(images, key string) ([][]string, string) {
		return play(t, "RUNNER_TEMP=$PWD\n"+w.script(t, "publish", "refresh"), "bin/diskforge", keeps, "IMAGES="+images, "KEY="+key,
			"SECURITY=true", "TARGET_REGISTRY=ghcr.io", "REGISTRY_PREFIX=", "GITHUB_REPOSITORY=Netgroup-Polito/Images")
	}
	called, dir := run("x $(touch owned)", "the\nkey")
	assert.NoFileExists(t, filepath.Join(dir, "owned"))
	assert.Equal(t, [][]string{{
		"refresh", "--security=true", "ghcr.io/netgroup-polito/images/x", "ghcr.io/netgroup-polito/images/$(touch", "ghcr.io/netgroup-polito/images/owned)",
	}}, called)
	kept, err := os.ReadFile(filepath.Join(dir, "kept"))
	require.NoError(t, err)
	assert.Equal(t, "600\nthe\nkey\n", string(kept))
	summary, err := os.ReadFile(filepath.Join(dir, "summary"))
	require.NoError(t, err)
	assert.Equal(t, "Published `r/x:1@sha256:0123`\n\n", string(summary))

	called, dir = run("", "")
	assert.Equal(t, [][]string{{"refresh", "--security=true"}}, called, "what the settings name")
	assert.NoFileExists(t, filepath.Join(dir, "kept"))
}

func TestAScheduleOfTheDefaultBranchPublishes(t *testing.T) {
	for _, name := range []string{"build.yml", "catalogue.yml", "refresh.yml"} {
		_, text := read(t, name)
		assert.Regexp(t, `github\.event_name == 'schedule' \|\| `, text, "its event names no repository, and so no default branch")
	}
}
