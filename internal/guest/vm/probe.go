package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// firstLine is what every Linux kernel prints first.
const firstLine = "Linux version "

// probing is what the probe looks at; tests give it another device and QEMU.
type probing struct {
	arch     arch.Arch
	platform string   // GOOS/GOARCH
	device   string   // /dev/kvm
	pod      bool     // whether this is a container of Kubernetes
	qemu     string   // program
	kernels  []string // patterns of kernel files, best first
	bootID   string   // file with the identity of this boot of the host
	// patience is how long a kernel may take to print its first line. Under
	// working KVM that is less than a second, on a loaded host a few.
	patience time.Duration
}

func thisHost(a arch.Arch) probing {
	return probing{
		arch:     a,
		platform: runtime.GOOS + "/" + runtime.GOARCH,
		device:   "/dev/kvm",
		pod:      host.InPod(),
		qemu:     a.QEMU,
		// Where the distributions keep it, then the copy in libguestfs' appliance of this user.
		kernels: []string{
			"/boot/vmlinuz-*", "/boot/vmlinuz", "/usr/lib/modules/*/vmlinuz",
			filepath.Join(cmp.Or(os.Getenv("TMPDIR"), "/var/tmp"), fmt.Sprintf(".guestfs-%d", os.Getuid()), "appliance.d", "kernel"),
		},
		bootID:   "/proc/sys/kernel/random/boot_id",
		patience: 8 * time.Second,
	}
}

// probe finds out whether KVM works, cheap questions first. Only what the
// boot of a kernel showed is cached: the rest can be put right while the host
// runs (a group joined, a module loaded).
func (h probing) probe(ctx context.Context, version string, errVersion error, cacheDir string, p progress.Reporter) (Verdict, error) {
	if h.platform != "linux/"+h.arch.Name {
		return not(fmt.Sprintf("KVM for %s guests needs an %[1]s Linux host, this is %s", h.arch.Name, h.platform)), nil
	}
	if why := h.deviceFault(); why != "" {
		return not(why), nil
	}
	if errVersion != nil {
		return Verdict{}, errVersion
	}
	key, file := h.key(version), filepath.Join(cacheDir, "accelerator.json")
	kept := cacheDir != "" && key != ""
	var known proof
	if kept && host.ReadJSON(file, &known) == nil && known.Key == key {
		return known.Verdict, nil
	}
	kernel := h.kernel(cacheDir)
	if kernel == "" {
		return not("no Linux kernel on this host can be read to prove it (" + strings.Join(h.kernels, ", ") + "); " +
			"sudo chmod +r /boot/vmlinuz-* makes the host's readable"), nil
	}
	p.Activity("proving that KVM boots a kernel")
	v, err := h.boot(ctx, kernel)
	if err != nil || !kept {
		return v, err
	}
	if err = os.MkdirAll(cacheDir, 0o755); err == nil {
		err = host.WriteJSON(file, 0o600, proof{key, v})
	}
	if err != nil {
		p.Warn("the verdict on KVM is not kept: " + err.Error())
	}
	return v, nil
}

// emulatedBy completes a verdict for emulation by the QEMU that says this of
// its version. One that says nothing is taken for an old one.
func (v Verdict) emulatedBy(version string) Verdict {
	var major, minor int
	_, err := fmt.Sscanf(version, "QEMU emulator version %d.%d", &major, &minor)
	v.OneThread = err != nil || major < 8 || major == 8 && minor < 1
	return v
}

func not(why string) Verdict { return Verdict{Accelerator: TCG, Why: why} }

// deviceFault says why this user cannot use the device, or "".
func (h probing) deviceFault() string {
	f, err := os.OpenFile(h.device, os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		return ""
	case errors.Is(err, fs.ErrNotExist) && h.pod:
		return h.device + ` is missing: ask for it in the container's resources, devices.kubevirt.io/kvm: "1" among the limits`
	case errors.Is(err, fs.ErrNotExist):
		return h.device + " is missing: switch virtualisation on in the firmware (or for this virtual machine), " +
			"load kvm_intel or kvm_amd, and in a container pass the device in"
	case errors.Is(err, unix.EACCES):
		return h.refused()
	case errors.Is(err, unix.EPERM): // the cgroup's list of devices, whatever the mode
		return h.device + " is shut to this container: a mount alone does not open it, ask the runtime for the device " +
			"(resource devices.kubevirt.io/kvm in Kubernetes, --device /dev/kvm with Docker and Podman)"
	}
	return fmt.Sprintf("%s does not open: %v", h.device, errors.Unwrap(err))
}

// refused says what lets this user open a device whose mode does not.
func (h probing) refused() string {
	var s unix.Stat_t
	if err := unix.Stat(h.device, &s); err != nil {
		return fmt.Sprintf("%s does not open: %v", h.device, err)
	}
	why := fmt.Sprintf("%s (mode %04o, group %d) may not be opened by this user: ", h.device, s.Mode&0o777, s.Gid)
	switch {
	case s.Mode&0o060 != 0o060:
		return why + `give it to a group on its host (udev: KERNEL=="kvm", GROUP="kvm", MODE="0660") and join that`
	case h.pod:
		return why + fmt.Sprintf("set supplementalGroups: [%d] in the pod's securityContext, "+
			"or device_ownership_from_security_context = true in the node's containerd or CRI-O", s.Gid)
	}
	name := groupName(s.Gid)
	return why + fmt.Sprintf("join group %s (sudo usermod -aG %s $USER) and log in again; a container takes --group-add %d", name, name, s.Gid)
}

// groupName names a group, by its number where it has no name.
func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// kernel returns the first kernel file that this user can read, or "". Where
// the host has none (a container), a base image made earlier left its own in
// the cache.
func (h probing) kernel(cacheDir string) string {
	patterns := h.kernels
	if cacheDir != "" {
		file := "*-" + h.arch.Name + "-*.vmlinuz"
		patterns = append(slices.Clone(patterns), filepath.Join(cacheDir, file), filepath.Join(cacheDir, "*", file))
	}
	for _, pattern := range patterns {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			f, err := host.Open(file)
			if err != nil {
				continue
			}
			info, err := f.Stat()
			f.Close()
			if err == nil && info.Size() > 0 {
				return file
			}
		}
	}
	return ""
}

// boot starts the kernel under KVM and waits for its first line. It returns
// an error only where ctx ended.
func (h probing) boot(ctx context.Context, kernel string) (Verdict, error) {
	seen := make(chan struct{})
	first := sync.OnceFunc(func() { close(seen) })
	process, err := host.Start(ctx, host.Cmd{
		Program: h.qemu,
		Args: []string{
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
			"-machine", h.arch.Machine, "-accel", "kvm", "-cpu", "host", "-m", "256",
			"-kernel", kernel, "-append", fmt.Sprintf("console=%s %s panic=-1", h.arch.Console, h.arch.EarlyConsole),
			"-serial", "stdio",
		},
		// A vCPU that spins in the kernel does not heed SIGTERM for long.
		Grace: time.Second,
		OnLine: func(line string) {
			if strings.Contains(line, firstLine) {
				first()
			}
		},
	})
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{Accelerator: KVM}
	select {
	case <-seen:
	case <-process.Done():
		select {
		case <-seen: // the kernel panics for want of a root file system, soon after its first line
		default:
			why := "QEMU ended before the kernel's first line"
			if tail := host.Tail(process.Wait()); len(tail) > 0 {
				why += ": " + tail[len(tail)-1]
			}
			v = not(why)
		}
	case <-time.After(h.patience):
		v = not(fmt.Sprintf("%s opens, but a kernel printed nothing within %v under it (nested virtualisation?)", h.device, h.patience))
	}
	process.Stop()
	return v, context.Cause(ctx)
}

// key names what a verdict depends on: this boot of the host, and with it its kernel, and QEMU.
func (h probing) key(qemuVersion string) string {
	boot, err := os.ReadFile(h.bootID)
	if err != nil {
		return "" // not to be cached
	}
	first, _, _ := strings.Cut(qemuVersion, "\n")
	return strings.TrimSpace(string(boot)) + " / " + first
}
