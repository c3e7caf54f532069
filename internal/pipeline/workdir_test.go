package pipeline_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func open(t *testing.T, path string) *pipeline.Dir {
	t.Helper()
	d, err := pipeline.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func refused(t *testing.T, path, want string) {
	t.Helper()
	d, err := pipeline.OpenDir(path)
	if err == nil {
		d.Close()
	}
	require.ErrorContains(t, err, want)
	assert.NotContains(t, err.Error(), "\n")
}

func mode(t *testing.T, path string) os.FileMode {
	st, err := os.Lstat(path)
	require.NoError(t, err)
	return st.Mode().Perm()
}

func asRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a directory to another user needs root")
	}
}

func TestTheDirectoryIsMadeForUsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "work")
	d := open(t, path)
	assert.EqualValues(t, 0o700, mode(t, path))
	assert.EqualValues(t, 0o600, mode(t, d.Path("lock")))
}

func TestOthersMayNotLookIntoADirectoryThatWasThere(t *testing.T) {
	path := t.TempDir()
	require.NoError(t, os.Chmod(path, 0o755))
	open(t, path)
	assert.EqualValues(t, 0o700, mode(t, path))
}

func TestADirectoryThatOthersMayWriteToIsRefused(t *testing.T) {
	for _, m := range []os.FileMode{0o777, 0o770, 0o722} {
		path := t.TempDir()
		require.NoError(t, os.Chmod(path, m))
		refused(t, path, "others may write to the work directory")
	}
}

func TestADirectoryOfSomebodyElseIsRefused(t *testing.T) {
	asRoot(t)
	path := filepath.Join(t.TempDir(), "work")
	require.NoError(t, os.Mkdir(path, 0o700))
	require.NoError(t, os.Chown(path, 4321, 4321))
	refused(t, path, "belongs to user 4321, not to us (0)")
}

func TestALinkOrAFileInItsPlaceIsRefused(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(dir, "link")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	refused(t, filepath.Join(dir, "link"), "is a symbolic link or no directory")
	refused(t, filepath.Join(dir, "file"), "is a symbolic link or no directory")
	refused(t, filepath.Join(dir, "file", "below"), "not a directory")
}

func TestADirectoryThatOthersCouldExchangeIsRefused(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "parent")
	require.NoError(t, os.Mkdir(parent, 0o700))
	work, beside := filepath.Join(parent, "deep", "work"), t.TempDir()
	link := filepath.Join(beside, "link")
	require.NoError(t, os.Symlink(parent, link))
	require.NoError(t, os.Chmod(parent, 0o777))
	refused(t, work, "others may write to "+parent)
	refused(t, filepath.Join(link, "work"), "others may write to "+parent)
	require.NoError(t, os.Chmod(parent, 0o777|os.ModeSticky))
	open(t, work)
	require.NoError(t, os.Chmod(parent, 0o755))
	require.NoError(t, os.Chmod(beside, 0o777))
	refused(t, filepath.Join(link, "work"), "others may write to "+beside)
}

func TestAGroupThatOthersAreInMayNotWriteAbove(t *testing.T) {
	asRoot(t)
	parent := filepath.Join(t.TempDir(), "parent")
	require.NoError(t, os.Mkdir(parent, 0o700))
	require.NoError(t, os.Chmod(parent, 0o775))
	require.NoError(t, os.Chown(parent, 0, 100))
	refused(t, filepath.Join(parent, "work"), "others may write to "+parent)
	require.NoError(t, os.Chown(parent, 0, 0)) // root's own group
	open(t, filepath.Join(parent, "work"))
}

func TestACacheThatOthersCouldFillIsRefused(t *testing.T) {
	asRoot(t)
	parent := t.TempDir()
	cache := filepath.Join(parent, "deep", "cache")
	require.NoError(t, pipeline.CheckCache(cache))
	require.NoError(t, pipeline.CheckCache(cache), "it is there")
	require.NoError(t, os.MkdirAll(filepath.Join(cache, "tools"), 0o755))
	link := filepath.Join(parent, "link")
	require.NoError(t, os.Symlink(cache, link))
	require.NoError(t, pipeline.CheckCache(link), "a link of ours to a folder of ours")
	refused := func(dir, words string) {
		t.Helper()
		err := pipeline.CheckCache(dir)
		require.ErrorContains(t, err, words)
		require.ErrorContains(t, err, "set CACHE_DIR to a folder of your own")
	}
	require.NoError(t, os.Chmod(cache, 0o1777))
	refused(cache, "others may write to "+cache)
	refused(link, "others may write to "+link)
	require.NoError(t, os.Chmod(cache, 0o755))
	require.NoError(t, os.Chown(cache, 65534, 65534))
	refused(cache, "belongs to user 65534")
	require.NoError(t, os.Chown(cache, 0, 0))
	require.NoError(t, os.Chmod(filepath.Dir(cache), 0o777))
	refused(cache, "others may write to "+filepath.Dir(cache))
	require.NoError(t, os.Chmod(filepath.Dir(cache), 0o755))
	file := filepath.Join(parent, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	refused(file, "is no folder")
	refused(filepath.Join(file, "below"), "not a directory")
}

func TestInAPodTheVolumesModeIsAccepted(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "emptydir")
	require.NoError(t, os.Mkdir(parent, 0o700))
	require.NoError(t, os.Chmod(parent, 0o777))
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
	work := filepath.Join(parent, "work")
	require.NoError(t, open(t, work).Close())
	require.NoError(t, os.Chmod(work, 0o770|os.ModeSetgid)) // another pod mounts the claim
	require.NoError(t, open(t, work).Close())
	require.NoError(t, os.Chmod(work, 0o777))
	refused(t, work, "others may write to the work directory")
}

func TestTwoBuildsDoNotShareADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work")
	first := open(t, path)
	refused(t, path, fmt.Sprintf("another diskforge build is using %s (process %d)", path, os.Getpid()))
	require.NoError(t, first.Close())
	require.NoError(t, first.Close(), "closing again does nothing")
	open(t, path)
}

func TestTheLockEndsWithCloseWhileOtherProgramsAreStarted(t *testing.T) {
	done := make(chan struct{})
	var starting sync.WaitGroup
	for range 4 {
		starting.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_ = exec.Command("true").Run()
				}
			}
		})
	}
	defer starting.Wait()
	defer close(done)
	path := filepath.Join(t.TempDir(), "work")
	times := 300
	if testing.Short() {
		times = 60
	}
	for range times {
		d, err := pipeline.OpenDir(path)
		require.NoError(t, err)
		require.NoError(t, d.Close())
	}
}

func TestAPlantedLockIsNotWrittenThrough(t *testing.T) {
	path, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.Chmod(path, 0o700))
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(victim, filepath.Join(path, "lock")))
	refused(t, path, "too many levels of symbolic links")
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(b))
}

func TestScratchIsGoneAfterClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work")
	d := open(t, path)
	a, err := d.Temp("provision")
	require.NoError(t, err)
	b, err := d.Temp("provision")
	require.NoError(t, err)
	assert.NotEqual(t, a, b)
	assert.EqualValues(t, 0o700, mode(t, a))
	require.NoError(t, os.WriteFile(filepath.Join(a, "seed.iso"), nil, 0o600))
	require.NoError(t, d.Close())
	assert.NoDirExists(t, filepath.Join(path, "tmp"))
}

func TestNoNameLeadsOutOfTheDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work")
	d := open(t, path)
	assert.Equal(t, filepath.Join(path, "disk.qcow2"), d.Path("disk.qcow2"))
	assert.Equal(t, filepath.Join(path, "a", "b"), d.Path("a", "b"))
	assert.Equal(t, filepath.Join(path, "etc", "passwd"), d.Path("..", "../../etc", "passwd"))
	assert.Equal(t, path, d.Path())
	_, err := d.Temp("../x")
	require.Error(t, err)
}

func TestAfterAKillTheDirectoryIsUsableAndCleared(t *testing.T) {
	const child = "DISKFORGE_TEST_HOLD_WORKDIR"
	if path := os.Getenv(child); path != "" {
		d, err := pipeline.OpenDir(path)
		require.NoError(t, err)
		scratch, err := d.Temp("sparsify")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(scratch, "disk"), nil, 0o600))
		require.NoError(t, os.WriteFile(d.Path("disk.qcow2.part"), nil, 0o600))
		require.NoError(t, os.WriteFile(d.Path("disk.qcow2"), nil, 0o600))
		fmt.Println("ready")
		time.Sleep(time.Minute)
	}
	path := filepath.Join(t.TempDir(), "work")
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	refused(t, path, "(process "+strconv.Itoa(cmd.Process.Pid)+")")
	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	require.Error(t, cmd.Wait())
	assert.DirExists(t, filepath.Join(path, "tmp"))
	d := open(t, path)
	assert.NoDirExists(t, d.Path("tmp"))
	assert.NoFileExists(t, d.Path("disk.qcow2.part"))
	assert.FileExists(t, d.Path("disk.qcow2"), "a finished output stays")
}

func TestClearingFollowsNoLink(t *testing.T) {
	path, outside := filepath.Join(t.TempDir(), "work"), t.TempDir()
	precious := filepath.Join(outside, "precious")
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	require.NoError(t, os.Mkdir(path, 0o700))
	require.NoError(t, os.Symlink(outside, filepath.Join(path, "tmp")))
	require.NoError(t, os.Symlink(outside, filepath.Join(path, "x.part")))
	d := open(t, path)
	assert.FileExists(t, precious)
	assert.NoFileExists(t, d.Path("tmp"))
	assert.NoFileExists(t, d.Path("x.part"))
}
