package provision

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// marker is the environment variable by which a build knows its processes:
// those that made a session of their own are outside Packer's process group.
const marker = "DISKFORGE_BUILD="

// killLeftovers ends what still runs of this build once Packer has ended:
// Ansible's workers and its shared ssh connection. The latter overwrites its
// environment with its title, which names the socket in our directory.
func (b *build) killLeftovers() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		title, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if bytes.Contains(environ, []byte(marker+b.id)) || bytes.Contains(title, []byte("ssh: "+b.path("control")+"/")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
