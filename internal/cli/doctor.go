// Doctor looks at a host and says what a build would miss there.

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// State is how a finding is to be taken.
type FindingState string

// The states.
const (
	OK      FindingState = "ok"
	Warning FindingState = "warning" // slower, or less: a build works all the same
	Missing FindingState = "missing" // a build fails
)

// Finding is what was found of one thing.
type Finding struct {
	Name   string       `json:"name"`
	State  FindingState `json:"state"`
	Detail string       `json:"detail"`         // version, path or what is wrong
	Mend   string       `json:"mend,omitempty"` // what to do about it
}

// Options say where a build would keep what.
type DoctorOptions struct {
	Accelerator         string // as the setting ACCELERATOR
	CacheDir, OutputDir string
	CAFile              string
}

// Examine looks at everything and returns a finding for each.
func Examine(ctx context.Context, o DoctorOptions) []Finding {
	findings := programs(ctx, o)
	findings = append(findings, ssh(ctx), ansible(ctx), compiled(o), accelerator(ctx, o), confinement())
	return append(findings, space("OUTPUT_DIR", o.OutputDir, outputSpace), space("CACHE_DIR", o.CacheDir, cacheSpace))
}

// Healthy says whether a build can work.
func Healthy(findings []Finding) bool {
	for _, f := range findings {
		if f.State == Missing {
			return false
		}
	}
	return true
}

// What the smallest useful build takes, in bytes: a server image's disks and
// layout; a base image and the compiled tools with Go's build cache.
const (
	outputSpace = 3 << 30
	cacheSpace  = 4 << 30
)

// program is an external program and the Debian package that has it.
type program struct {
	name, pkg string
	version   []string // arguments that print a version; none are asked for where empty
	optional  string   // what is lost without it; empty where nothing works
}

var needed = []program{
	{"qemu-system-x86_64", "qemu-system-x86", []string{"--version"}, ""},
	{"qemu-img", "qemu-utils", []string{"--version"}, ""},
	{"xorriso", "xorriso", []string{"--version"}, ""},
	{"git", "git", []string{"--version"}, "playbooks from git"},
	{"go", "golang (1.26 or newer: https://go.dev/dl/)", []string{"version"}, "compiling Packer and its plugins the first time"},
	{"mmdebstrap", "mmdebstrap", []string{"--version"}, "base images from Debian packages"},
	{"sfdisk", "fdisk", []string{"--version"}, ""},
	{"blkid", "util-linux", []string{"--version"}, ""},
	{"debugfs", "e2fsprogs", nil, ""}, // and mke2fs
	{"guestfish", "guestfish", []string{"--version"}, "looking into disks whose file system is not ext2, ext3 or ext4"},
	{"virt-sparsify", "guestfs-tools", []string{"--version"}, "sparsifying images whose guest does not trim"},
}

func programs(ctx context.Context, o DoctorOptions) []Finding {
	var findings []Finding
	for _, p := range needed {
		f := p.look(ctx)
		if p.name == "go" && f.State == Warning && ready(o) {
			continue // what it would compile is there, as in the toolbox
		}
		findings = append(findings, f)
	}
	return findings
}

func (p program) look(ctx context.Context) Finding {
	path, err := host.Look(p.name)
	switch {
	case err != nil && p.optional == "":
		return Finding{p.name, Missing, "not installed", "apt-get install " + p.pkg}
	case err != nil:
		return Finding{p.name, Warning, "not installed: needed for " + p.optional, "apt-get install " + p.pkg}
	case len(p.version) == 0:
		return Finding{p.name, OK, path, ""}
	}
	var first string
	err = host.Run(ctx, host.Cmd{Program: path, Args: p.version, OnLine: func(line string) {
		if first == "" && strings.ContainsAny(line, "0123456789") {
			first = strings.TrimSpace(line)
		}
	}})
	if err != nil {
		return Finding{p.name, Missing, err.Error(), "apt-get install --reinstall " + p.pkg}
	}
	return Finding{p.name, OK, first, ""}
}

// ssh is asked as a build does: it takes a user with a name.
func ssh(ctx context.Context) Finding {
	if err := provision.CheckSSH(ctx); err != nil {
		return broken("ssh", err, "")
	}
	return program{"ssh", "openssh-client", []string{"-V"}, ""}.look(ctx)
}

// ansible says which guests this host's Ansible can manage.
func ansible(ctx context.Context) Finding {
	version, err := playbook.ControllerVersion(ctx)
	if err != nil {
		return broken("ansible", err, "apt-get install ansible-core")
	}
	if base.NewestManageable(version) == "bookworm" {
		return Finding{"ansible", Warning, "ansible-core " + version + ": guests with Python 3.11 or older, such as Debian 12 and Ubuntu 22.04",
			"for Debian 13 and Ubuntu 24.04 guests it takes ansible-core 2.16 or newer"}
	}
	return Finding{"ansible", OK, "ansible-core " + version, ""}
}

// ready says whether Packer and the others are compiled.
func ready(o DoctorOptions) bool {
	return provision.ToolsReady(o.CacheDir + "/tools")
}

func compiled(o DoctorOptions) Finding {
	v := provision.ToolsVersions()
	what := fmt.Sprintf("Packer %s, plugins qemu %s and ansible %s, goss %s", v["packer"], v["packer-plugin-qemu"], v["packer-plugin-ansible"], v["goss"])
	if ready(o) {
		return Finding{"packer", OK, what, ""}
	}
	return Finding{"packer", Warning, what + ": not compiled yet", "the first build compiles them, which takes some minutes"}
}

// accelerator says whether KVM really works here.
func accelerator(ctx context.Context, o DoctorOptions) Finding {
	verdict, err := accel.Choose(ctx, o.Accelerator, o.CacheDir, progress.Discard)
	switch {
	case err != nil:
		return broken("accelerator", err, "set ACCELERATOR=auto")
	case verdict.Accelerator == "kvm":
		return Finding{"accelerator", OK, "kvm: it booted a kernel", ""}
	case verdict.Why == "":
		return Finding{"accelerator", OK, verdict.Accelerator, ""}
	}
	return Finding{"accelerator", Warning, "tcg, about ten times slower: " + verdict.Why, ""}
}

// confinement says whether playbooks are kept from this host's processes.
func confinement() Finding {
	if err := host.Unconfined(); err != nil {
		return Finding{"confinement", Warning, "playbooks see this user's processes and what passwords their environments hold: " + err.Error(),
			"allow user namespaces, or build with PUSH=false and push without a playbook's company"}
	}
	return Finding{"confinement", OK, "playbooks see no process of this host", ""}
}

func space(setting, dir string, need int64) Finding {
	if err := writable(dir); err != nil {
		return Finding{setting, Missing, err.Error(), "set " + setting + " to a folder that this user may write to"}
	}
	if err := disk.CheckNeeds([]disk.Need{{Dir: dir, Bytes: need, What: "a build", Setting: setting}}); err != nil {
		return broken(setting, err, "")
	}
	return Finding{setting, OK, dir, ""}
}

// writable says whether a folder can be written to, or be made where it is
// missing. Nothing is made.
func writable(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		switch {
		case errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at):
			continue
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is no folder", at)
		case unix.Access(at, unix.W_OK|unix.X_OK) == nil:
			return nil
		case at == dir:
			return fmt.Errorf("%s cannot be written to by user %d", dir, os.Geteuid())
		}
		return fmt.Errorf("%s cannot be made: user %d may not write to %s", dir, os.Geteuid(), at)
	}
}

func broken(name string, err error, mend string) Finding {
	var f *failure.Error
	if errors.As(err, &f) {
		return Finding{name, Missing, f.What, f.Try}
	}
	return Finding{name, Missing, err.Error(), mend}
}
