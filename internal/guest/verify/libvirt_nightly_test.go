//go:build nightly

package verify_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// domains is the folder of what KubeVirt's converter makes of a
// VirtualMachineInstance, beside the checkout: it is not ours to publish.
const domains = "../../../../shared/domains"

// libvirtd starts the daemon where nobody else sees its network, its sockets and what
// it keeps, and then what the arguments say, when it answers.
const libvirtd = `
ip link set lo up
for dir in /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do mkdir -p "$dir" && mount -t tmpfs none "$dir"; done
# Whom Debian's libvirt asks for, though QEMU runs as root.
for file in passwd group; do
	{ cat /etc/$file; echo libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin; } >/run/libvirt/$file
	mount --bind /run/libvirt/$file /etc/$file
done
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
END
libvirtd 2>/dev/null & # virsh says what is wrong with a machine
daemon=$!
trap 'virsh -q destroy ns_vm 2>/dev/null || :; kill $daemon; wait $daemon || :' EXIT
until virsh -q list >/dev/null 2>&1; do sleep 0.2; kill -0 $daemon; done
"$@"
`

// seen is what the guest says of the machine on its console, before a person of the
// cluster shuts it down.
const seen = `#cloud-config
runcmd:
  - |
    {
      echo "seen agent: $(ls /dev/virtio-ports)"
      echo "seen disks: $(lsblk -dno NAME,TRAN,TYPE | tr -s ' \n' ' ')"
      echo "seen interface: $(ip -o link | cut -d: -f2 | tr -d '\n')"
      echo "seen vendor: $(cat /sys/class/dmi/id/sys_vendor)"
      echo "seen secure boot: $(od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null)"
      echo "seen all"
    } >/dev/console
`

// The XML is KubeVirt's own, but for where this host has its files (disk, seed,
// sockets, firmware), and for one processor in place of four, libvirt's user network in
// place of a device that a container's network gives, no memory to plug in later, which
// libvirt 9 refuses without slots, and the SMM that KubeVirt asks for with Secure Boot.
func TestLibvirtStartsOurImagesAsKubeVirtAsksItTo(t *testing.T) {
	if _, err := os.Stat(domains); err != nil {
		t.Skip("NOT TESTED: there are no domains of KubeVirt in " + domains + " (from internal/guest/verify)")
	}
	i := image(t, "trixie")
	for name, want := range map[string]string{
		"real-virtio.xml": `seen secure boot: *\r?\n`, // a BIOS has none
		"real-efi.xml":    `seen secure boot: +6 +0 +0 +0 +1`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			overlay, seed, console := filepath.Join(dir, "root.qcow2"), filepath.Join(dir, "seed.iso"), filepath.Join(dir, "console")
			tool(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", i.Path, "-F", i.Format, overlay)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "user-data"), []byte(seen), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "meta-data"), []byte("instance-id: i-1\nlocal-hostname: vm\n"), 0o600))
			tool(t, dir, "xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", seed, "user-data", "meta-data")
			xml, err := os.ReadFile(filepath.Join(domains, name))
			require.NoError(t, err)
			domain := filepath.Join(dir, "domain.xml")
			require.NoError(t, os.WriteFile(domain, []byte(placed(string(xml), dir, i.Path, i.Format)), 0o600))

			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child",
				"sh", "-euc", libvirtd, "libvirtd", "sh", "-euc", `virsh create "$1"
until grep -q "seen all" "$2"; do sleep 2; done
virsh shutdown ns_vm
until ! virsh -q domstate ns_vm >/dev/null 2>&1; do sleep 1; done`, "machine", domain, console)
			c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := c.CombinedOutput()
			said, _ := os.ReadFile(console)
			require.NoError(t, err, "%s\n%s", out, said)
			for _, want := range []string{"seen agent: org.qemu.guest_agent.0", "seen disks: vda virtio disk vdb virtio disk", "seen interface: +lo enp1s0", "seen vendor: KubeVirt", want} {
				assert.Regexp(t, want, string(said))
			}
			assert.Regexp(t, `Power down|Reached target.*(poweroff|Power Off)`, string(said), "it was shut down, not killed")
		})
	}
}

// placed is the domain with what this host has.
func placed(xml, dir, backing, format string) string {
	run := regexp.MustCompile(`/var/run/kubevirt-private/[^"/]+/`)
	xml = run.ReplaceAllString(xml, dir+"/")
	xml = strings.NewReplacer(
		dir+"/virt-serial0-log", dir+"/console",
		"/var/run/kubevirt-ephemeral-disks/disk-data/root/disk.qcow2", dir+"/root.qcow2",
		"/var/run/kubevirt/container-disks/disk_0.img", backing,
		"/var/run/libvirt/cloud-init-dir/ns/vm/noCloud.iso", dir+"/seed.iso",
		"/var/lib/libvirt/qemu/nvram/", dir+"/",
		"OVMF_CODE.secboot.fd", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS.secboot.fd", "OVMF_VARS_4M.ms.fd",
		`<vmport state="off"></vmport>`, `<vmport state="off"></vmport><smm state="on"></smm>`,
		`<interface type="ethernet">`, `<interface type="user">`, "<source></source>", "",
		`sockets="4"`, `sockets="1"`, `<vcpu placement="static">4<`, `<vcpu placement="static">1<`,
		`<format type="qcow2"></format>`, fmt.Sprintf(`<format type=%q></format>`, format),
	).Replace(xml)
	return regexp.MustCompile(`(?s)<vcpus>.*</vcpus>|<maxMemory.*</maxMemory>`).ReplaceAllString(xml, "")
}

func tool(t *testing.T, dir string, args ...string) {
	t.Helper()
	c := exec.Command(args[0], args[1:]...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s: %s", args, out)
}
