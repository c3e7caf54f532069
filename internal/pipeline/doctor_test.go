package pipeline

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// lookAndPrint looks at the host, in a process of somebody else.
func lookAndPrint(dir string) {
	f := ssh(context.Background())
	fmt.Println(f.State, f.Detail, f.Remedy)
	fmt.Println(writable(dir))
	fmt.Println(writable(filepath.Join(dir, "not", "there")))
}

func TestAUserIDWithoutANameIsToldWhatStopsSSHAndWhatItMayNotWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming somebody else needs root")
	}
	self, err := os.Executable()
	require.NoError(t, err)
	text, err := os.ReadFile(self)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "doctor") // t.TempDir is nobody else's to enter
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	copied := filepath.Join(dir, "doctor")
	require.NoError(t, os.WriteFile(copied, text, 0o755))
	cmd := exec.Command(copied)
	cmd.Env, cmd.Dir = append(os.Environ(), "TEST_LOOK="+dir, "HOME=/"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000650000, Gid: 0}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, "missing ssh refuses to run: the user id 1000650000 has no entry in /etc/passwd "+
		"add one when the container starts (echo build:x:1000650000:0::$HOME:/bin/sh >>/etc/passwd, which must be writable), or run as a user that has one\n"+
		dir+" cannot be written to by user 1000650000\n"+
		dir+"/not/there cannot be made: user 1000650000 may not write to "+dir+"\n", string(out))
	assert.NoError(t, writable(filepath.Join(dir, "not", "there")))
	assert.ErrorContains(t, writable(filepath.Join(copied, "below")), "not a directory")
}

// TestMain looks at the host, where a test starts it as a process.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_LOOK"); dir != "" {
		lookAndPrint(dir)
		return
	}
	os.Exit(testkit.Run(m))
}
