package report_test

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// demoTasks are those of debian-base with their seconds on two cores without
// KVM.
var demoTasks = []struct {
	name   string
	took   float64
	status string
}{
	{"Gather the facts that the roles read", 11.9, report.OK},
	{"Check the distribution", 0.1, report.OK},
	{"apt : Set up apt for the time of the build", 12.1, report.Changed},
	{"apt : Use the mirror for the time of the build", 0.1, report.Skipped},
	{"apt : Stop the timers of apt and other housekeeping", 13.2, report.Changed},
	{"apt : Remove what nobody needs", 5, report.Changed},
	{"apt : Upgrade the system", 58.2, report.OK},
	{"apt : Install services and utilities", 115.7, report.Changed},
	{"kernel : List the kernels, oldest first, and whether they have virtiofs", 9.1, report.OK},
	{"kernel : Check that the kernel has virtiofs", 0.1, report.OK},
	{"kernel : Load virtiofs at boot", 4.4, report.Changed},
	{"kernel : Boot the newest kernel", 0.1, report.Skipped},
	{"kernel : Remove the older kernels", 0.1, report.Skipped},
	{"network : Use DHCP on any network card", 13.2, report.Changed},
	{"network : Wait for one network card only", 10.6, report.Changed},
	{"time_sync : Set the time servers", 0.3, report.Skipped},
	{"services : Enable the services", 18.6, report.Changed},
	{"desktop : Install the desktop", 0.1, report.Skipped},
	{"cloud_init : Limit cloud-init to NoCloud and to the modules of a lab", 8.1, report.Changed},
	{"cleanup : Remove packages that nothing needs any more", 14.4, report.Changed},
}

const (
	demoDigest = "sha256:7d0c64a8f1e53b29cc4f0de2bb7a1936e8f25d8c3a90b1476f52ce80d913a5be"
	diskDigest = "sha256:1f86b9ad03c7e25418ea7b60d4f9c35e82a7106bfd49ce85320b7ae61d98f04c"
	baseDigest = "sha512:9c1c4aa5f3be0b78d1e6c6bfb0d1eaa6c23a45bbd40ffb1aa3ad0b8e4bc7f5a09c1c4aa5f3be0b78d1e6c6bfb0d1eaa6c23a45bbd40ffb1aa3ad0b8e4bc7f5a0"
	inputs     = "sha256:aa31b0c95e7f2d4468309be1c7f25da80e64b93f17c8d20a5eb94630f8d17c29"
)

// demo is what a build of debian-base with a push leaves.
func demo(t testing.TB) *report.Report {
	t.Helper()
	r := &report.Report{
		Schema: report.Schema, Version: "0.1.0", Outcome: report.Published,
		Began: time.Date(2026, 11, 23, 8, 14, 48, 0, time.UTC),
		Image: report.Image{
			Name: "labs/debian-12", Tag: "2026-11-23", Digest: demoDigest, DiskDigest: diskDigest, Inputs: inputs,
			Reference: "harbor.example.org/labs/debian-12:2026-11-23@" + demoDigest, VirtualSize: 10 << 30,
		},
		Base:     report.Base{Name: "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2", Digest: baseDigest, Guest: "Debian 12", Release: "20261116-2299", SignedBy: "nobody"},
		Playbook: report.Playbook{File: "playbooks/debian-base.yml", Source: "https://github.com/netgroup-polito/diskforge.git", Revision: "0e343c5b1d6f2ab9c8e7d4f3a2b1c0d9e8f7a6b5"},
		Tools: map[string]string{
			"ansible-core": "2.14.18", "goss": "0.4.9", "Packer": "1.15.4", "packer-plugin-ansible": "1.0.3",
			"packer-plugin-qemu": "1.0.9", "QEMU": "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), TCG",
		},
		Settings: []report.Setting{
			{Name: "ANSIBLE_PLAYBOOK", Value: "debian-base"}, {Name: "IMAGE_NAME", Value: "debian-12"}, {Name: "IMAGE_TAG", Value: "2026-11-23"},
			{Name: "TARGET_REGISTRY", Value: "harbor.example.org"}, {Name: "REGISTRY_PREFIX", Value: "labs"}, {Name: "REGISTRY_USER", Value: "robot$labs+builder"},
		},
		Stages: []report.Stage{
			{Name: "base", Took: seconds(21.4), Result: "debian-12-genericcloud-amd64.qcow2, 424 MiB"},
			{Name: "tools", Took: seconds(0.6), Result: "Packer 1.15.4", Reused: true},
			{Name: "playbook", Start: seconds(21.5), Took: seconds(4.2), Result: "playbooks/debian-base.yml"},
			{Name: "registry", Start: seconds(25.7), Took: seconds(0.4), Result: "accepts pushes to harbor.example.org/labs/debian-12:2026-11-23"},
			{Name: "provision", Start: seconds(26.1), Took: seconds(466.5), Result: "20 Ansible tasks"},
			{Name: "sparsify", Start: seconds(492.6), Took: seconds(3.5), Result: "trim, 743 MiB to 198 MiB"},
			{Name: "verify", Start: seconds(496.1), Took: seconds(183.2), Result: "45 checks, ssh after 2m2s, cloud-init done after 2m27s"},
			{Name: "pack", Start: seconds(679.3), Took: seconds(0.7), Result: "out/labs_debian-12, a layer of 198 MiB"},
			{Name: "push", Start: seconds(680), Took: seconds(6.1), Result: "harbor.example.org/labs/debian-12:2026-11-23@" + demoDigest},
		},
		Boot: []report.Moment{
			{Name: "boot loader", At: seconds(1)}, {Name: "kernel", At: seconds(15.8)}, {Name: "initial ramdisk", At: seconds(26.4)},
			{Name: "systemd", At: seconds(35.9)}, {Name: "cloud-init", At: seconds(81.9)}, {Name: "login", At: seconds(118.9)},
			{Name: "ssh", At: seconds(122.4)}, {Name: "cloud-init done", At: seconds(147.5)},
		},
		Sizes:    []report.Size{{Name: "base", Bytes: 424 << 20}, {Name: "provisioned", Bytes: 743 << 20}, {Name: "sparsified", Bytes: 198 << 20}, {Name: "layer", Bytes: 198<<20 + 10240}},
		Checks:   demoChecks(),
		Changes:  []report.Change{{Name: "linux-image-6.1.0-40-cloud-amd64", To: "6.1.153-1"}, {Name: "openssl", From: "3.0.17-1~deb12u2", To: "3.0.17-1~deb12u3"}},
		Packages: packages(412),
		SBOM:     report.SBOM{Packages: 412, Files: []string{"sbom.spdx.json", "sbom.cdx.json"}},
		Pictures: []report.Picture{{Title: "the console at login", PNG: console(t)}, {Title: "the desktop through VNC", PNG: desktop(t)}},
	}
	for _, task := range demoTasks {
		r.Tasks = append(r.Tasks, report.Task{Name: task.name, Took: seconds(task.took), Status: task.status})
	}
	return r
}

func demoChecks() []report.Check {
	var all []report.Check
	for _, group := range []struct {
		name   string
		checks []string
	}{
		{"boot", []string{"cloud-init ended without a warning", "no failed systemd unit", "the root file system grew", "hostname of the seed", "user of the seed", "UID 1000 was free", "virtiofs is there", "ssh answers"}},
		{"hygiene", []string{"no build user", "no authorized keys of the build", "no ssh host keys", "an empty machine-id", "no cloud-init state", "no apt lists", "no logs with content", "no shell history", "no private keys", "no NOPASSWD rule"}},
		{"playbook", []string{"package openssh-server", "service ssh", "service systemd-timesyncd", "a lease from DHCP", "cloud-init reads NoCloud only", "port tcp:22"}},
		{"containerdisk", []string{"one layer", "owner 107:107", "no backing file", "OCI media types", "virtual size", "qemu-img's limits"}},
	} {
		for _, name := range group.checks {
			all = append(all, report.Check{Group: group.name, Name: name, OK: true})
		}
	}
	return append(all, report.Check{
		Group: "hygiene", Name: "no private keys in packages", Detail: "/etc/ssl/private/ssl-cert-snakeoil.key",
		Excused: "the key of Debian's ssl-cert package, made anew at the first boot",
	})
}

// failed is a build that ended in verify.
func failed(t testing.TB) *report.Report {
	t.Helper()
	r := demo(t)
	r.Outcome, r.Image.Reference, r.Image.Digest, r.Log = report.Failed, "", "", "out/work/logs/verify/console.log"
	r.Failure = []string{
		"verify: the disk boots, but 2 of 47 checks failed: correct the playbook or its checks; --keep-on-error leaves the guest running to look inside",
		`hygiene: no private keys: /home/crownlabs/.ssh/id_ed25519 (crownlabs:crownlabs 0600) holds an OpenSSH private key`,
		`playbook: command cloud-init reads NoCloud only stdout: Expected "object: *bytes.Reader" to have patterns ["NoCloud"] the missing elements were ["NoCloud"]`,
	}
	r.Stages = r.Stages[:7]
	r.Stages[6].Result, r.Stages[6].Failure = "", "2 of 47 checks failed"
	r.Sizes = r.Sizes[:3]
	r.Pictures = r.Pictures[:1]
	r.Checks = append(r.Checks,
		report.Check{Group: "hygiene", Name: "no private keys in homes", Detail: "/home/crownlabs/.ssh/id_ed25519 (crownlabs:crownlabs 0600) holds an OpenSSH private key"},
		report.Check{Group: "playbook", Name: "command cloud-init reads NoCloud only stdout", Detail: `Expected "object: *bytes.Reader" to have patterns ["NoCloud"] the missing elements were ["NoCloud"]`})
	return r
}

// brokenTask is a build that ended in provision.
func brokenTask(t testing.TB) *report.Report {
	t.Helper()
	r := demo(t)
	r.Outcome, r.Image, r.Log = report.Failed, report.Image{Name: "labs/debian-12", Tag: "2026-11-23"}, "out/work/logs/provision/ansible.log"
	r.Failure = []string{
		"provision: the task \"apt : Install services and utilities\" failed: No package matching 'qemu-guest-agnet' is available",
		"E: Unable to locate package qemu-guest-agnet",
	}
	r.Stages = r.Stages[:5]
	r.Stages[4].Result, r.Stages[4].Failure = "", "the task \"apt : Install services and utilities\" failed"
	r.Tasks = r.Tasks[:8]
	r.Tasks[7].Status, r.Tasks[7].Took, r.Tasks[7].Detail = report.Failed, seconds(4), "No package matching 'qemu-guest-agnet' is available"
	r.Boot, r.Sizes, r.Checks, r.Packages, r.Pictures = nil, nil, nil, nil, nil
	return r
}

// hostile has every trick in every text that a guest or a setting can fill.
func hostile(t testing.TB) *report.Report {
	t.Helper()
	const trick = "</script></style></pre><script>document.title='owned'</script><img src=x onerror=alert(1)>" +
		"javascript:alert(1) \x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07link \u202egnp.exe\u202c \xff\xfe\x00 | `x` **b** [a](http://evil.example) @all"
	long := trick + strings.Repeat("A", 1<<20)
	r := demo(t)
	r.Outcome = report.Failed
	r.Version, r.Failure, r.Log = trick, []string{long, long, trick}, trick
	r.Image = report.Image{Name: trick, Tag: long, Reference: "javascript:alert(1)" + long, Digest: trick, DiskDigest: trick, Inputs: trick, VirtualSize: -1}
	r.Base, r.Playbook = report.Base{Name: trick, Digest: trick, Guest: trick}, report.Playbook{File: trick, Source: long, Revision: trick}
	r.Tools, r.Settings = map[string]string{trick: long}, []report.Setting{{Name: trick, Value: long}}
	r.Stages = append(r.Stages, report.Stage{Name: trick, Start: -5, Took: 1 << 62, Result: long, Failure: long})
	r.Boot = append(r.Boot, report.Moment{Name: long, At: -1})
	r.Tasks = append(r.Tasks, report.Task{Name: long, Took: -1, Status: trick, Detail: trick}, report.Task{Name: trick, Status: report.Failed, Detail: long})
	r.Sizes = append(r.Sizes, report.Size{Name: long, Bytes: -3})
	r.Checks = append(r.Checks, report.Check{Group: long, Name: trick, Detail: long}, report.Check{Group: trick, Name: trick, Excused: long})
	r.Packages = append(r.Packages, report.Package{Name: long, Version: trick})
	r.Changes = append(r.Changes, report.Change{Name: long, From: trick, To: long}, report.Change{From: long})
	r.SBOM = report.SBOM{Packages: -1, Files: []string{long}, None: long}
	r.Pictures = append(r.Pictures, report.Picture{Title: trick, PNG: []byte("<svg onload=alert(1)>")}, report.Picture{Title: trick, PNG: console(t)})
	return r
}

// large is more than any playbook does.
func large(t testing.TB) *report.Report {
	t.Helper()
	r := demo(t)
	r.Tasks = nil
	for i := range 2000 {
		r.Tasks = append(r.Tasks, report.Task{Name: fmt.Sprintf("role_%d : Do the thing that has number %d", i/20, i), Took: seconds(float64(i*7919%101) / 10), Status: report.Changed})
	}
	r.Packages = packages(3000)
	return r
}

func packages(n int) []report.Package {
	names := []string{"adduser", "apt", "base-files", "bash", "ca-certificates", "cloud-init", "coreutils", "dbus", "e2fsprogs", "grub-pc", "libc6", "libsystemd0", "linux-image-cloud-amd64", "netplan.io", "openssh-server", "python3", "systemd", "util-linux"}
	var all []report.Package
	for i := range n {
		name := names[i%len(names)]
		if i >= len(names) {
			name = fmt.Sprintf("%s-part%d", name, i/len(names))
		}
		all = append(all, report.Package{Name: name, Version: fmt.Sprintf("1:%d.%d-%d+deb12u%d", i%9, i%31, i%4, i%7)})
	}
	return all
}

// console is like a text login screen: lines of cells on black.
func console(t testing.TB) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 720, 400))
	fill(img, img.Bounds(), color.RGBA{A: 255})
	for row, cells := range []int{48, 0, 26, 61, 33, 70, 0, 22} {
		for cell := range cells {
			if cell%7 != 6 {
				fill(img, image.Rect(8+cell*9, 8+row*16, 15+cell*9, 18+row*16), color.RGBA{170, 170, 170, 255})
			}
		}
	}
	return encoded(t, img)
}

// desktop is a panel on a wallpaper.
func desktop(t testing.TB) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 1280, 800))
	for y := range 800 {
		fill(img, image.Rect(0, y, 1280, y+1), color.RGBA{20, uint8(50 + y/12), uint8(90 + y/10), 255})
	}
	fill(img, image.Rect(0, 0, 1280, 28), color.RGBA{32, 36, 42, 255})
	fill(img, image.Rect(120, 120, 820, 560), color.RGBA{240, 240, 240, 255})
	return encoded(t, img)
}

func fill(img *image.RGBA, area image.Rectangle, c color.RGBA) {
	for y := area.Min.Y; y < area.Max.Y; y++ {
		for x := area.Min.X; x < area.Max.X; x++ {
			img.SetRGBA(x, y, c)
		}
	}
}

func encoded(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, img))
	return b.Bytes()
}
