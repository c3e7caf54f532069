package hygiene_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
)

const mib = 1 << 20

// file is one of a planted tree. A mode with fs.ModeDir is a directory's, one
// with fs.ModeSymlink a link's, whose target is the content.
type file struct {
	content string
	mode    fs.FileMode // 0 means 0644
}

// cleanTree is a small Linux system as it should leave a build.
func cleanTree() map[string]file {
	return map[string]file{
		"/bin":                           {"", fs.ModeDir | 0o755},
		"/etc/fstab":                     {"LABEL=root / ext4 defaults 0 1\n", 0},
		"/etc/group":                     {"root:x:0:\nsudo:x:27:\n", 0},
		"/etc/hostname":                  {"localhost\n", 0},
		"/etc/machine-id":                {"", 0},
		"/etc/os-release":                {"ID=debian\nVERSION_ID=13\n", 0},
		"/etc/passwd":                    {"root:x:0:0:root:/root:/bin/bash\n", 0},
		"/etc/shadow":                    {"root:*:20000:0:99999:7:::\nsshd:!:20000::::::\nnew:!*:20000::::::\n", 0o640},
		"/etc/sudoers":                   {"# NOPASSWD and Defaults !authenticate are not what we want\n%sudo ALL=(ALL:ALL) ALL\n", 0o440},
		"/etc/environment":               {"PATH=/usr/bin\n", 0},
		"/etc/iscsi/initiatorname.iscsi": {"GenerateName=yes\n", 0o600},
		"/etc/wireguard/README":          {"PrivateKey stands in wg0.conf\n", 0},
		"/opt/app/.env":                  {"TOKEN=\nPASSWORD=$OTHER\nKEYBOARD=italian\n", 0},
		"/opt/certificate.der":           {der("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=x"), 0},
		"/opt/public.jwk":                {`{"kty":"EC","crv":"P-256","x":"eA","y":"eQ"}`, 0},
		"/etc/netplan/a.yaml":            {"network: {version: 2}\n", 0},
		"/home":                          {"", fs.ModeDir | 0o755},
		"/loop":                          {"loop", fs.ModeSymlink},
		"/root/.docker/config.json":      {`{"auths": {"registry.example": {}}, "credsStore": "pass"}`, 0o600},
		"/root/.kube/config":             {"users:\n- name: nobody\n", 0o600},
		"/root/.ssh/authorized_keys":     {"# nobody\n\n", 0o600},
		"/tmp":                           {"", fs.ModeDir | fs.ModeSticky | 0o777},
		"/usr/bin/ssh-keygen":            {"\x7fELF\x00-----BEGIN OPENSSH PRIVATE KEY-----\n\x00", 0o755},
		"/usr/bin/sudo":                  {"\x7fELF", fs.ModeSetuid | 0o755},
		"/usr/lib/libgnutls.so.30":       {"\x7fELF\x00" + privateKey + "\x00", 0},
		"/usr/lib/python3/dist-packages/cc_ssh.py":                          {privateKey, 0},
		"/usr/lib/python3/dist-packages/__pycache__/cc_ssh.cpython-313.pyc": {"\x00" + privateKey, 0},
		"/usr/share/doc/cloud-init/examples/cloud-config-ssh-keys.txt":      {privateKey, 0},
		"/var/lib/apt/lists/lock":                                           {"", 0o640},
		"/var/lib/dbus/machine-id":                                          {"/etc/machine-id", fs.ModeSymlink},
		"/var/lib/dpkg/info/p.md5sums":                                      {"0  lib/libgnutls.so.30\n0  usr/lib/python3/dist-packages/cc_ssh.py\n", 0},
		"/var/log/dpkg.log":                                                 {"", 0},
		"/var/tmp":                                                          {"", fs.ModeDir | fs.ModeSticky | 0o777},
		"/srv/a name\nof two lines":                                         {"text", 0},
	}
}

const privateKey = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n-----END OPENSSH PRIVATE KEY-----\n"

// with is the clean tree with more files.
func with(more map[string]file) map[string]file {
	tree := cleanTree()
	for path, f := range more {
		tree[path] = f
	}
	return tree
}

// folder writes the tree to a directory of the host.
func folder(t testing.TB, tree map[string]file) string {
	t.Helper()
	root := t.TempDir()
	for path, f := range tree {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if f.mode&fs.ModeSymlink != 0 {
			require.NoError(t, os.Symlink(f.content, path))
			continue
		}
		if f.mode.IsDir() {
			require.NoError(t, os.MkdirAll(path, 0o755))
		} else {
			require.NoError(t, os.WriteFile(path, []byte(f.content), 0o644))
		}
		if f.mode != 0 {
			require.NoError(t, os.Chmod(path, f.mode&^fs.ModeDir))
		}
	}
	return root
}

// rawDisk makes a disk with one ext4 partition of the tree, without mounting
// anything. more are further arguments of mke2fs.
func rawDisk(t testing.TB, tree map[string]file, more ...string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(disk)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(64*mib))
	require.NoError(t, f.Close())
	pipe(t, "start=2048, type=83, bootable\n", "sfdisk", "--quiet", disk)
	if !slices.Contains(more, "-t") {
		more = append(more, "-t", "ext4")
	}
	tool(t, "mke2fs", append(more, "-q", "-F", "-L", "root", "-E", "offset=1048576", "-d", folder(t, tree), disk, "63M")...)
	return disk
}

// debugfs runs one command of debugfs, which may write, in the partition.
func debugfs(t testing.TB, disk, cmd string) {
	t.Helper()
	tool(t, "debugfs", "-w", "-R", cmd, disk+"?offset=1048576")
}

func qcow2(t testing.TB, raw string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, disk)
	return disk
}

func tool(t testing.TB, program string, args ...string) string {
	t.Helper()
	return pipe(t, "", program, args...)
}

func pipe(t testing.TB, stdin, program string, args ...string) string {
	t.Helper()
	c := exec.Command(find(t, program), args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s: %s", program, out)
	return string(out)
}

// find finds a program, in the system's directories too.
func find(t testing.TB, program string) string {
	t.Helper()
	for _, candidate := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: .ci/task packages installs what the tests need", program)
	return ""
}

// onlyPrograms makes a PATH of just these programs.
func onlyPrograms(t testing.TB, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		require.NoError(t, os.Symlink(find(t, name), filepath.Join(dir, name)))
	}
	t.Setenv("PATH", dir)
}

// guestfished are the options with a script in the place of guestfish, whose real
// run boots a virtual machine (see the nightly tests).
func guestfished(t testing.TB, disk, script string) hygiene.Options {
	t.Helper()
	program, err := filepath.Abs("testdata/guestfish")
	require.NoError(t, err)
	return options(t, disk).WithGuestfish(program, "SCRIPT="+script)
}

// recorder is a Reporter that remembers.
type recorder struct {
	mu       sync.Mutex
	warnings []string
	activity func(string)
}

func (r *recorder) Bytes(int64, int64) {}

func (r *recorder) Activity(what string) {
	if r.activity != nil {
		r.activity(what)
	}
}

func (r *recorder) Warn(message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, message)
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
