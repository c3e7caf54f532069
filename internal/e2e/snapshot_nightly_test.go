//go:build nightly

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// used is what a person leaves in a machine, and what a machine leaves in itself.
const used = `
useradd --create-home --shell /bin/bash crownlabs
echo crownlabs:lovelace | chpasswd
install -d -o crownlabs -g crownlabs -m 700 /home/crownlabs/.ssh
echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHe2qwzbKOXo0dXOrLDLKrgqY2ww0ATBq0eJVJLgA1o3 ada' >/home/crownlabs/.ssh/authorized_keys
echo 'engine --start' >/home/crownlabs/.bash_history
echo 'the course' >/home/crownlabs/notes
chown -R crownlabs:crownlabs /home/crownlabs
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
ssh-keygen -A
mkdir -p /var/lib/cloud/instances/i-1 /var/log/journal/0123456789abcdef0123456789abcdef
echo 'a message' >>/var/log/messages
dd if=/dev/urandom of=/swapfile bs=1M count=64 status=none
chmod 600 /swapfile
mkswap /swapfile
echo '/swapfile none swap sw 0 0' >>/etc/fstab
`

// As CrownLabs' operator does it with the volume of an Instance: two containers, one
// after the other. Machines of the image share nothing with the one that was used, nor
// with one another.
func TestAUsedMachineBecomesAnImageWhoseMachinesDiffer(t *testing.T) {
	address, volume, handed := registry(t), t.TempDir(), t.TempDir()
	machine := filepath.Join(volume, "disk.img")
	for _, args := range [][]string{
		{"qemu-img", "convert", "-O", "raw", cloudImage(t), machine},
		{"virt-customize", "--quiet", "--no-network", "--format", "raw", "-a", machine, "--run-command", used},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", args, out)
	}
	// The Instance's user is in its disk.
	env := map[string]string{"DOCKER_CONFIG": filepath.Dir(dockerLogin(t, address)), "BAKE_USER": "true"}
	dockerfile := "--dockerfile=" + filepath.Join(handed, "Dockerfile")
	r := start(t, env, diskforge(t), "snapshot", "--source", machine, dockerfile)
	require.Zero(t, r.wait(10*time.Minute), r.errors())
	ref := address + "/ada/course:20261130t101010"
	r = start(t, env, diskforge(t), "snapshot", dockerfile, "--destination="+ref)
	require.Zero(t, r.wait(time.Hour), r.errors())
	assert.Contains(t, r.lastLine(), ref+"@sha256:")
	assert.Empty(t, holdsSecret(t, handed))

	out := t.TempDir()
	r = start(t, with(env, "OUTPUTS", "qcow2"), diskforge(t), "export", ref, "-o", out)
	require.Zero(t, r.wait(10*time.Minute), r.errors())
	disk := filepath.Join(out, "course.qcow2")
	r = start(t, env, diskforge(t), "verify", "--full", disk)
	require.Zero(t, r.wait(time.Hour), r.errors())

	r = start(t, env, diskforge(t), "report", disk, "-o", out)
	require.Zero(t, r.wait(time.Minute), r.errors())
	differ := 0
	for _, c := range readReport(t, out).Checks {
		if strings.HasSuffix(c.Name, ": machine-id and ssh host keys") && c.OK {
			differ++
		}
	}
	assert.Positive(t, differ, "two machines of the image were compared")

	look := exec.Command("guestfish", "--ro", "--format=qcow2", "--add", disk, "--inspector", "glob-expand", "/home/crownlabs/*", ":", "glob-expand", "/home/crownlabs/.*",
		":", "cat", "/etc/machine-id", ":", "glob-expand", "/etc/ssh/ssh_host_*", ":", "filesize", "/swapfile", ":", "checksum", "md5", "/swapfile")
	told, err := look.Output()
	require.NoError(t, err)
	t.Logf("%s", told)
	assert.Contains(t, string(told), "/home/crownlabs/notes")
	for _, gone := range []string{"0123456789abcdef", "ssh_host", ".bash_history", "authorized_keys"} {
		assert.NotContains(t, string(told), gone)
	}
	_, err = os.Stat(filepath.Join(handed, "out", "work", "captured.qcow2"))
	assert.ErrorIs(t, err, os.ErrNotExist, "nothing but the layout and the report stays")
}
