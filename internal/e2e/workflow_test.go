//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// These tests run the workflows with act in its self-hosted mode: what GitHub's runner
// does, on this host, with a real Dagger engine and a real registry. Replaced are:
//
//   - the actions, which come from GitHub (standIns);
//   - YAML's aliases, which act does not read, by what they stand for;
//   - job.workflow_repository and workflow_sha, which act does not know: the checkout
//     of diskforge is this one's;
//   - the rules for /dev/kvm, and ACCELERATOR=kvm: this host may have no KVM;
//   - the images that the toolbox is made of, where the engine is told others;
//   - the registry on this host's loopback, by a service of the same name: an engine's
//     execs have a loopback of their own.

// standIns are composite actions by the name of those that they stand for.
var standIns = map[string]string{
	"actions/checkout": `git clone --quiet "$CHECKOUT" "$GITHUB_WORKSPACE/${{ inputs.path }}"`,
	"actions/upload-artifact": `mkdir -p "$ARTIFACTS/${{ inputs.name }}"
while read -r path; do
  [ ! -e "$path" ] || cp -r "$path" "$ARTIFACTS/${{ inputs.name }}"
done <<'END'
${{ inputs.path }}
END`,
	"actions/download-artifact": `mkdir -p '${{ inputs.path }}'
cp -r "$ARTIFACTS/${{ inputs.name }}/." '${{ inputs.path }}'`,
	"actions/setup-go":          `go version`,
	"dagger/dagger-for-github":  `dagger version`,
	"sigstore/cosign-installer": `cosign version`,
}

// daggerWrapper names the images that an engine without a way to Docker Hub is given.
const daggerWrapper = `#!/bin/bash
set -eu
args=()
for arg; do
	args+=("${arg/ACCELERATOR=kvm/ACCELERATOR=auto}")
	if [ "$arg" = with-registry ]; then
		args+=(--service="tcp://$REGISTRY")
	elif [ "$arg" = build ] && [ -n "${REGISTRY-}" ]; then
		args=("${args[@]::${#args[@]}-1}" with-registry --host="$REGISTRY" --service="tcp://$REGISTRY" build)
	fi
	[ "$arg" != call ] || args+=(${DISKFORGE_BASE_IMAGE:+"--base-image=$DISKFORGE_BASE_IMAGE"} \
		${DISKFORGE_GO_IMAGE:+"--go-image=$DISKFORGE_GO_IMAGE"} ${DISKFORGE_APT_MIRROR:+"--apt-mirror=$DISKFORGE_APT_MIRROR"})
done
if [ "$1" = check ]; then
	git checkout --quiet -- .github # what is checked are the workflows as they are
	# It takes what it is made of from this file alone.
	printf '%s\n' ${DISKFORGE_BASE_IMAGE:+"baseImage=$DISKFORGE_BASE_IMAGE"} \
		${DISKFORGE_GO_IMAGE:+"goImage=$DISKFORGE_GO_IMAGE"} ${DISKFORGE_APT_MIRROR:+"aptMirror=$DISKFORGE_APT_MIRROR"} >.env
fi
[ ! -e settings.json ] || sed -i 's/"ACCELERATOR": "kvm"/"ACCELERATOR": "auto"/' settings.json
exec "$REAL_DAGGER" "${args[@]}"
`

// runner is act with what stands for GitHub.
type runner struct {
	t                       *testing.T
	act                     string
	dir, checkout, artifact string
	env                     map[string]string
	args                    []string
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	cli := daggerCLI(t)
	dir := t.TempDir()
	r := &runner{t: t, act: testkit.Tool(t, "../../.ci/act", "act"), dir: dir, checkout: filepath.Join(dir, "checkout"), artifact: filepath.Join(dir, "artifacts")}
	bin := filepath.Join(dir, "bin")
	put := func(file, text string, mode os.FileMode) {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), mode))
	}
	put(filepath.Join(bin, "dagger"), daggerWrapper, 0o755)
	put(filepath.Join(bin, "sudo"), "#!/bin/sh\n[ \"$1\" != tee ] || cat >/dev/null\n", 0o755)
	for _, args := range [][]string{
		{"git", "clone", "--quiet", root(t), r.checkout},
		{"git", "-C", r.checkout, "checkout", "--quiet", "-B", "main"},
		{"git", "-C", r.checkout, "remote", "set-url", "origin", "https://github.com/netgroup-polito/diskforge.git"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	pinned := regexp.MustCompile(`uses: ([a-z-]+/[a-z-]+)@([0-9a-f]{40})`)
	workflows, err := filepath.Glob(filepath.Join(r.checkout, ".github", "workflows", "*.yml"))
	require.NoError(t, err)
	for _, file := range workflows {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var workflow any
		require.NoError(t, yaml.Unmarshal(text, &workflow))
		plain, err := yaml.Marshal(workflow)
		require.NoError(t, err)
		put(file, string(plain), 0o644)
		for _, u := range pinned.FindAllStringSubmatch(string(text), -1) {
			require.Contains(t, standIns, u[1])
			action := filepath.Join(dir, "actions", u[1])
			put(filepath.Join(action, "action.yml"), fmt.Sprintf(`
name: stand-in
inputs: {path: {default: ""}, name: {default: ""}}
runs:
  using: composite
  steps:
    - shell: bash
      run: |
        %s
`, strings.ReplaceAll(standIns[u[1]], "\n", "\n        ")), 0o644)
			r.args = append(r.args, "--local-repository", u[1]+"@"+u[2]+"="+action)
		}
	}
	r.env = map[string]string{
		"PATH": bin + ":" + os.Getenv("PATH"), "REAL_DAGGER": cli, "CHECKOUT": r.checkout, "ARTIFACTS": r.artifact,
		"XDG_CACHE_HOME": filepath.Join(dir, "cache"), "GOCACHE": goCache(t),
		"DAGGER_PROGRESS": "plain", // act gives it a terminal, GitHub none
	}
	return r
}

// goCache is this user's, which the workflows' Go may use as well.
func goCache(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOCACHE").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// run runs a workflow that somebody starts by hand, and returns what it said.
func (r *runner) run(workflow string, secrets, inputs map[string]string, args ...string) (said string, code int) {
	r.t.Helper()
	file := filepath.Join(r.dir, "secrets")
	var lines strings.Builder
	for k, v := range secrets {
		fmt.Fprintf(&lines, "%s=%s\n", k, v)
	}
	require.NoError(r.t, os.WriteFile(file, []byte(lines.String()), 0o600))
	all := append([]string{"workflow_dispatch", "--directory", r.checkout, "--workflows", filepath.Join(".github", "workflows", workflow),
		"--platform", "ubuntu-24.04=-self-hosted", "--defaultbranch", "main", "--secret-file", file, "--env-file", "", "--no-cache-server"}, r.args...)
	for k, v := range inputs {
		all = append(all, "--input", k+"="+v)
	}
	began := time.Now()
	p := start(r.t, r.env, r.act, append(all, args...)...)
	code = p.wait(2 * longest)
	said = p.stdout.String() + p.errors()
	r.t.Logf("%s: %s", workflow, time.Since(began).Round(time.Second))
	assert.NotContains(r.t, said, secret)
	return said, code
}

// login are the workflows' secrets.
var workflowSecrets = map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}

func TestWorkflowBuildPublishesWhatItBuilt(t *testing.T) {
	r, address := newRunner(t), registry(t)
	inputs := map[string]string{"playbook": "debian-base", "name": "debian", "tag": "1", "further-tags": "2026-11", "registry": address, "prefix": "labs"}
	said, code := r.run("build.yml", workflowSecrets, inputs)
	require.Zero(t, code, said)
	for _, tag := range []string{"1", "2026-11"} {
		inspected(t, map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}, address+"/labs/debian:"+tag)
	}
	for _, name := range []string{"report/report.json", "build.log", "dagger.log"} {
		assert.FileExists(t, filepath.Join(r.artifact, "report-debian-1", name))
	}
	assert.Empty(t, holdsSecret(t, r.artifact))

	inputs["playbook"], inputs["name"] = "no-such-playbook", "missing"
	said, code = r.run("build.yml", workflowSecrets, inputs)
	assert.NotZero(t, code)
	assert.Contains(t, said, "no-such-playbook")
	assert.FileExists(t, filepath.Join(r.artifact, "report-missing-1", "dagger.log"), "what went wrong is kept")
	notPublished(t, address, "missing")
}

func TestWorkflowCatalogueBuildsAParentBeforeItsChild(t *testing.T) {
	r := newRunner(t)
	address, _ := testkit.StartRegistry(t, testkit.RegistryOptions{}) // children take their parents without a login
	// Here and in an engine's execs this name stands for this registry, and allows plain HTTP.
	address = strings.Replace(address, "127.0.0.1", "localhost", 1)
	r.env["REGISTRY"] = address
	require.NoError(t, os.WriteFile(filepath.Join(r.checkout, "catalogue.yaml"), []byte(`
defaults: {playbook: debian-base}
images:
  - {name: parent, base: {packages: bookworm}}
  - {name: child, from: parent, vars: {motd: child}}
`), 0o644))
	commit := exec.Command("git", "-C", r.checkout, "-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "--quiet", "--all", "--message", "catalogue")
	require.NoError(t, exec.Command("git", "-C", r.checkout, "add", "catalogue.yaml").Run())
	out, err := commit.CombinedOutput()
	require.NoError(t, err, string(out))
	inputs := map[string]string{"catalogue": "catalogue.yaml", "tag": "1", "registry": address, "prefix": "labs"}
	said, code := r.run("catalogue.yml", nil, inputs)
	require.Zero(t, code, said)
	parent := inspected(t, nil, address+"/labs/parent:1")
	child := inspected(t, nil, address+"/labs/child:1")
	assert.Equal(t, parent.Digest, child.Annotations["org.opencontainers.image.base.digest"])

	inputs["tag"] = "2" // nothing has changed: both get the tag
	said, code = r.run("catalogue.yml", nil, inputs)
	require.Zero(t, code, said)
	assert.Equal(t, child.Digest, inspected(t, nil, address+"/labs/child:2").Digest)
}

func TestWorkflowCIReadsAndChecksTheModule(t *testing.T) {
	said, code := newRunner(t).run("ci.yml", nil, nil, "--job", "module")
	require.Zero(t, code, said)
}
