package host_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/host"
)

func TestAFileIsReadUpToItsBound(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte(strings.Repeat("x", 2048)), 0o600))
	content, err := host.ReadFile(name, 2048)
	require.NoError(t, err)
	assert.Len(t, content, 2048)
	_, err = host.ReadFile(name, 1024)
	require.EqualError(t, err, name+" is longer than 1 KiB")
	_, err = host.ReadFile(name+".gone", 1)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDevicesFoldersAndSocketsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	for _, name := range []string{"/dev/zero", "/dev/null", "/dev/tty", t.TempDir(), socket} {
		_, err := host.ReadFile(name, 1<<20)
		require.Error(t, err, name)
	}
}

func TestAPipeIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	writer := exec.Command("sh", "-c", "sleep 0.3; { printf 'pass'; sleep 0.3; printf 'word'; } >"+name)
	require.NoError(t, writer.Start())
	content, err := host.ReadFile(name, 100)
	require.NoError(t, err)
	assert.Equal(t, "password", string(content))
	require.NoError(t, writer.Wait())
}

func TestAPipeThatThisProcessWasStartedWithIsNotWaitedForLonger(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, w.Close()) // a program that failed wrote nothing
	content, err := host.ReadFile(fmt.Sprintf("/dev/fd/%d", r.Fd()), 100)
	require.NoError(t, err)
	assert.Empty(t, content)
}

func TestAPipeThatEndsNeverIsGivenUp(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	for what, script := range map[string]string{"nobody writes": "true", "never ends": "exec sleep 60 >" + name, "too much": "exec yes >" + name} {
		t.Run(what, func(t *testing.T) {
			writer := exec.Command("sh", "-c", script)
			require.NoError(t, writer.Start())
			defer writer.Wait()
			defer writer.Process.Kill()
			_, err := host.ReadFile(name, 1024)
			require.ErrorContains(t, err, name+" is ")
		})
	}
}
