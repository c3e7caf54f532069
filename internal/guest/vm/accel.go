package vm

import (
	"context"
	"errors"
	"os/exec"
	"runtime"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// The values of ACCELERATOR.
const (
	Auto = "auto" // KVM where it works, else TCG with a warning
	KVM  = "kvm"  // KVM, or an error that says why not
	TCG  = "tcg"  // software emulation, without a probe
)

// Verdict says which accelerator to use.
type Verdict struct {
	Architecture string `json:"architecture,omitempty"` // of the guest; empty: arch.Default
	Accelerator  string `json:"accelerator"`            // kvm or tcg
	Why          string `json:"why,omitempty"`          // why not kvm, in one line; empty for kvm
	// OneThread says that one thread of QEMU must emulate all processors of a
	// guest. Before QEMU 8.1 (accel/tcg: "Always lock pages before
	// translation") one processor may go on running what another has just
	// overwritten: Linux patches its own code, and hangs now and then; Java
	// does, and crashes.
	OneThread bool `json:"one_thread,omitempty"`
}

// ChooseAccelerator returns the accelerator to use for guests of an architecture. want is Auto, KVM or
// TCG. What the probe found is kept in cacheDir until the host boots again or
// its QEMU changes; with an empty cacheDir nothing is kept.
func ChooseAccelerator(ctx context.Context, architecture, want, cacheDir string, p progress.Reporter) (Verdict, error) {
	v, err := thisHost(arch.Of(architecture)).choose(ctx, want, cacheDir, p)
	v.Architecture = architecture
	return v, err
}

func (h probing) choose(ctx context.Context, want, cacheDir string, p progress.Reporter) (Verdict, error) {
	said, errVersion := host.Output(ctx, host.Cmd{Program: h.qemu, Args: []string{"--version"}})
	if errors.Is(errVersion, exec.ErrNotFound) {
		return Verdict{}, errVersion
	}
	if !h.arch.BIOS {
		if _, err := Firmware(h.arch, false); err != nil {
			return Verdict{}, err
		}
	}
	version := string(said)
	if want == TCG {
		return not("ACCELERATOR=tcg asks for emulation").emulatedBy(version), nil
	}
	v, err := h.probe(ctx, version, errVersion, cacheDir, p)
	if err != nil || v.Accelerator == KVM {
		return v, err
	}
	if want == KVM {
		return Verdict{}, failure.New("KVM does not work here: "+v.Why, "put that right, or set ACCELERATOR=tcg to emulate, about ten times slower")
	}
	p.Warn("KVM does not work here: " + v.Why + "; machines are emulated (TCG), which takes about ten times as long")
	return v.emulatedBy(version), nil
}

// HasKernel says whether a kernel is at hand to prove KVM with: the host's own,
// or one that a base image left in cacheDir. For guests of another architecture than this
// host's none is needed: KVM does not run them.
func HasKernel(architecture, cacheDir string) bool {
	h := thisHost(arch.Of(architecture))
	return h.platform != "linux/"+h.arch.Name || h.kernel(cacheDir) != ""
}

// Threads is how QEMU emulates a guest's processors: multi, each in a thread of
// the host, or single.
func (v Verdict) Threads() string {
	if v.OneThread {
		return "single"
	}
	return "multi"
}

// mostCPUs is where more processors of a guest stop making a build faster.
const mostCPUs = 4

// CPUs is how many processors a guest shall have: wanted, or as many as suit
// the host where that is 0. Processors that take turns are no faster than one.
func (v Verdict) CPUs(wanted int) int {
	switch {
	case wanted > 0:
		return wanted
	case v.OneThread:
		return 1
	}
	return min(runtime.NumCPU(), mostCPUs)
}

// QEMUArgs are QEMU's arguments for accelerator and CPU model: everything that
// the host's CPU has, or that the emulator can do.
func (v Verdict) QEMUArgs() []string {
	if v.Accelerator == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=" + v.Threads(), "-cpu", arch.Of(v.Architecture).CPU}
}

// LibguestfsEnv is the environment that keeps libguestfs, which picks KVM by
// itself, to the verdict.
func (v Verdict) LibguestfsEnv() []string {
	env := []string{"LIBGUESTFS_BACKEND=direct"}
	if v.Accelerator != KVM {
		env = append(env, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	}
	return env
}

// proof is what a cache directory keeps: a verdict, and what it holds for.
type proof struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}
