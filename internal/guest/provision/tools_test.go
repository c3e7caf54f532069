package provision_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestTheEmbeddedModuleIsTheToolsModule(t *testing.T) {
	for _, name := range []string{"go.mod", "go.sum", "tools.go"} {
		want, err := os.ReadFile(filepath.Join("..", "..", "..", "tools", name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join("module", name+".txt"))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), "run go generate ./internal/guest/provision")
	}
}

func TestTheVersionsAreThosePinnedAndThoseOfTheTemplate(t *testing.T) {
	versions := provision.ToolsVersions()
	assert.Len(t, versions, 4)
	template, err := os.ReadFile("../../../packer/image.pkr.hcl")
	require.NoError(t, err)
	for _, plugin := range []string{"packer-plugin-qemu", "packer-plugin-ansible"} {
		assert.Contains(t, string(template), `"= `+versions[plugin]+`"`)
	}
	for name, v := range versions {
		assert.Regexp(t, `^\d+\.\d+\.\d+$`, v, name)
	}
}

// fakeGo puts a go command on the PATH that counts its builds in a file and
// "compiles" empty shell scripts.
func fakeGo(t *testing.T, build string) (builds string) {
	t.Helper()
	dir := t.TempDir()
	builds = filepath.Join(dir, "builds")
	script := `#!/bin/sh
` + build + `
echo one >>` + builds + `
while [ "$1" != -o ]; do shift; done
mkdir -p "$(dirname "$2")"
echo '#!/bin/sh' >"$2"
chmod 755 "$2"
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(provision.ToolsDirVariable, "") // a toolbox has ready binaries
	return builds
}

func count(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	require.NoError(t, err)
	return strings.Count(string(b), "\n")
}

func TestTwoBuildersCompileOnceAndLaterOnesNever(t *testing.T) {
	builds := fakeGo(t, "sleep 0.05")
	cache := filepath.Join(t.TempDir(), "cache")
	assert.False(t, provision.ToolsReady(cache, runtime.GOARCH))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			set, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
			assert.NoError(t, err)
			assert.FileExists(t, set.Packer)
			assert.FileExists(t, set.Goss)
			assert.DirExists(t, set.PluginDir)
		})
	}
	wg.Wait()
	assert.True(t, provision.ToolsReady(cache, runtime.GOARCH))
	_, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, 4, count(t, builds))
	left, err := filepath.Glob(filepath.Join(cache, "building-*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestAnIncompleteSetIsBuiltAgain(t *testing.T) {
	builds := fakeGo(t, "")
	cache := t.TempDir()
	set, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	require.NoError(t, os.Remove(set.Goss))
	_, err = provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, 8, count(t, builds))
}

func TestGuestsOfAnotherArchitectureHaveAGossOfTheirOwn(t *testing.T) {
	builds := fakeGo(t, `echo "$GOARCH $*" >>"$(dirname "$0")/log"`)
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	set, err := provision.EnsureTools(t.Context(), t.TempDir(), other, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "goss-"+other, filepath.Base(set.Goss))
	assert.FileExists(t, set.Packer)
	assert.Equal(t, 5, count(t, builds), "this host's, too: a toolbox has both")
	log, err := os.ReadFile(filepath.Join(filepath.Dir(builds), "log"))
	require.NoError(t, err)
	assert.Len(t, regexp.MustCompile(`(?m)^`+other+` .*/cmd/goss$`).FindAll(log, -1), 1)
	assert.Len(t, regexp.MustCompile(`(?m)^`+runtime.GOARCH+` `).FindAll(log, -1), 4)
}

func TestAHostWithoutGoIsToldWhatToDoUnlessTheToolsAreThere(t *testing.T) {
	t.Setenv(provision.ToolsDirVariable, "")
	t.Run("nothing there", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := provision.EnsureTools(t.Context(), t.TempDir(), runtime.GOARCH, progress.Discard)
		require.ErrorContains(t, err, "has no Go")
		require.ErrorContains(t, err, "install Go")
		_, ok := failure.In(err)
		assert.True(t, ok)
	})
	t.Run("compiled before", func(t *testing.T) {
		path := os.Getenv("PATH")
		fakeGo(t, "")
		cache := t.TempDir()
		want, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
		require.NoError(t, err)
		t.Setenv("PATH", t.TempDir())
		got, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, want, got)
		t.Setenv("PATH", path)
	})
}

func TestReadyBinariesAreUsedAndMissingOnesNamed(t *testing.T) {
	fakeGo(t, "")
	cache := t.TempDir()
	set, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	t.Setenv(provision.ToolsDirVariable, filepath.Dir(set.Packer))
	t.Setenv("PATH", t.TempDir())
	again, err := provision.EnsureTools(t.Context(), "", runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, set, again)
	require.NoError(t, os.Remove(set.Goss))
	_, err = provision.EnsureTools(t.Context(), "", runtime.GOARCH, progress.Discard)
	require.ErrorContains(t, err, "goss")
	require.ErrorContains(t, err, provision.ToolsDirVariable)
}

func TestACompilationThatFailsShowsItsLastLines(t *testing.T) {
	fakeGo(t, "echo 'dial tcp: no route to host' >&2; exit 1")
	cache := t.TempDir()
	_, err := provision.EnsureTools(t.Context(), cache, runtime.GOARCH, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Contains(t, f.Lines, "dial tcp: no route to host")
	assert.FileExists(t, f.Log)
}

func TestTheEndOfTheContextEndsACompilationAndTheWaitForOne(t *testing.T) {
	fakeGo(t, "sleep 60")
	cache := t.TempDir()
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { cancel(stop) })
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			_, err := provision.EnsureTools(ctx, cache, runtime.GOARCH, progress.Discard)
			assert.ErrorIs(t, err, stop)
		})
	}
	wg.Wait()
	left, err := filepath.Glob(filepath.Join(cache, "building-*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestTheRealToolsWork(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles Packer and its plugins where the cache has none: minutes")
	}
	base, err := os.UserCacheDir()
	require.NoError(t, err)
	set, err := provision.EnsureTools(t.Context(), filepath.Join(base, "diskforge", "tools"), runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	for args, want := range map[string]string{
		set.Packer + " version":           "Packer v" + set.Versions["packer"],
		set.Packer + " plugins installed": "packer-plugin-ansible_v" + set.Versions["packer-plugin-ansible"],
		set.Goss + " --version":           set.Versions["goss"],
	} {
		fields := strings.Fields(args)
		cmd := exec.Command(fields[0], fields[1:]...)
		cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_PLUGIN_PATH="+set.PluginDir, "PACKER_CONFIG_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Contains(t, string(out), want)
	}
}
