package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Finding is what was found of one thing that a build needs of its host.
type Finding struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`         // version, path or what is wrong
	Remedy string `json:"mend,omitempty"` // what to do about it
}

// The states of a Finding.
const (
	Fine    = "ok"
	Warning = "warning" // slower, or less: a build works all the same
	Missing = "missing" // a build fails
)

// Examine says of everything that a build needs what there is of it here.
func Examine(ctx context.Context, c settings.Config) []Finding {
	ready := provision.ToolsReady(c.CacheDir+"/tools", c.Architecture)
	var all []Finding
	for _, p := range append([]program{{arch.Of(c.Architecture).QEMU, "--version", ""}}, programs...) {
		// What Go would compile may be there, as in the toolbox.
		if f := p.look(ctx); p.name != "go" || f.State != Warning || !ready {
			all = append(all, f)
		}
	}
	// The smallest useful build takes a server image's disks and layout, and a base
	// image and the compiled tools with Go's build cache.
	return append(all, ssh(ctx), ansibleHere(ctx), compiled(ready), acceleration(ctx, c), confinement(),
		space("OUTPUT_DIR", c.OutputDir, 3<<30), space("CACHE_DIR", c.CacheDir, 4<<30))
}

// program is an external program.
type program struct {
	name     string
	version  string // argument that prints a version; none is asked for where empty
	optional string // what is lost without it; empty where nothing works
}

var programs = []program{
	{"qemu-img", "--version", ""},
	{"xorriso", "--version", ""},
	{"git", "--version", "playbooks from git"},
	{"go", "version", "compiling Packer and its plugins the first time"},
	{"mmdebstrap", "--version", "base images from Debian packages"},
	{"sfdisk", "--version", ""},
	{"blkid", "--version", ""},
	{"debugfs", "", ""}, // and mke2fs
	{"guestfish", "--version", "diskforge capture, and looking into disks whose file system is not ext2, ext3 or ext4"},
	{"virt-sparsify", "--version", "diskforge capture, and sparsifying images whose guest does not trim"},
}

func (p program) look(ctx context.Context) Finding {
	path, err := host.Look(p.name)
	switch {
	case err != nil && p.optional == "":
		return Finding{p.name, Missing, "not installed", "apt-get install " + host.Package(p.name)}
	case err != nil:
		return Finding{p.name, Warning, "not installed: needed for " + p.optional, "apt-get install " + host.Package(p.name)}
	case p.version == "":
		return Finding{p.name, Fine, path, ""}
	}
	var first string
	err = host.Run(ctx, host.Cmd{Program: path, Args: []string{p.version}, OnLine: func(line string) {
		if first == "" && strings.ContainsAny(line, "0123456789") {
			first = strings.TrimSpace(line)
		}
	}})
	if err != nil {
		return Finding{p.name, Missing, err.Error(), "apt-get install --reinstall " + host.Package(p.name)}
	}
	return Finding{p.name, Fine, first, ""}
}

// ssh is asked as a build does: it takes a user with a name.
func ssh(ctx context.Context) Finding {
	if err := provision.CheckSSH(ctx); err != nil {
		return broken("ssh", err, "")
	}
	return program{"ssh", "-V", ""}.look(ctx)
}

// ansibleHere says which guests this host's Ansible can manage.
func ansibleHere(ctx context.Context) Finding {
	version, err := playbook.ControllerVersion(ctx)
	if err != nil {
		return broken("ansible", err, "apt-get install ansible-core")
	}
	if newest, _ := playbook.GuessGuest("trixie"); playbook.CheckVersions(version, newest) != nil {
		return Finding{"ansible", Warning, "ansible-core " + version + ": guests with Python 3.11 or older, such as Debian 12 and Ubuntu 22.04",
			"for Debian 13 and Ubuntu 24.04 guests it takes ansible-core 2.16 or newer"}
	}
	return Finding{"ansible", Fine, "ansible-core " + version, ""}
}

func compiled(ready bool) Finding {
	v := provision.ToolsVersions()
	what := fmt.Sprintf("Packer %s, plugins qemu %s and ansible %s, goss %s", v["packer"], v["packer-plugin-qemu"], v["packer-plugin-ansible"], v["goss"])
	if ready {
		return Finding{"packer", Fine, what, ""}
	}
	return Finding{"packer", Warning, what + ": not compiled yet", "the first build compiles them, which takes some minutes"}
}

// acceleration says whether KVM really works here.
func acceleration(ctx context.Context, c settings.Config) Finding {
	verdict, err := vm.ChooseAccelerator(ctx, c.Architecture, c.Accelerator, c.CacheDir, progress.Discard)
	switch {
	case err != nil:
		return broken("accelerator", err, "set ACCELERATOR=auto")
	case verdict.Accelerator == "kvm":
		return Finding{"accelerator", Fine, "kvm: it booted a kernel", ""}
	case verdict.Why == "":
		return Finding{"accelerator", Fine, verdict.Accelerator, ""}
	}
	return Finding{"accelerator", Warning, "tcg, about ten times slower: " + verdict.Why, ""}
}

// confinement says whether playbooks are kept from this host's processes.
func confinement() Finding {
	if err := host.Unconfined(); err != nil {
		return Finding{"confinement", Warning, "playbooks see this user's processes and what passwords their environments hold: " + err.Error(),
			"allow user namespaces, or build with PUSH=false and push where no playbook runs"}
	}
	return Finding{"confinement", Fine, "playbooks see no process of this host", ""}
}

func space(setting, dir string, need int64) Finding {
	if err := writable(dir); err != nil {
		return Finding{setting, Missing, err.Error(), "set " + setting + " to a folder that this user may write to"}
	}
	if err := host.CheckSpace(dir, setting, host.Need{Bytes: need, What: "a build"}); err != nil {
		return broken(setting, err, "")
	}
	return Finding{setting, Fine, dir, ""}
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

// broken is what a build would fail with. A failure says itself what to do.
func broken(name string, err error, remedy string) Finding {
	if f, known := failure.In(err); known {
		return Finding{name, Missing, f.What, f.Try}
	}
	return Finding{name, Missing, err.Error(), remedy}
}
