package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func (a *app) doctor() *cobra.Command {
	return a.command("doctor", "Say what a build would miss on this host",
		`Look at the programs, the accelerator and the space that a build needs here.
The exit code is not 0 where a build cannot work.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			all := findings(c.Context(), b.Config.Accelerator, b.Config.CacheDir, b.Config.OutputDir)
			if err := a.printFindings(all); err != nil {
				return err
			}
			for _, f := range all {
				if f.State == missing {
					return failure.New("a build cannot work on this host", "put right what is missing above")
				}
			}
			return nil
		})
}

func (a *app) printFindings(all []finding) error {
	if a.json {
		return printJSON(a.stdout, all...)
	}
	for _, f := range all {
		line := fmt.Sprintf("%-8s %-20s %s", f.State, f.Name, f.Detail)
		if f.Remedy != "" {
			line += "\n" + strings.Repeat(" ", 30) + "→ " + f.Remedy
		}
		if err := a.print(line); err != nil {
			return err
		}
	}
	return nil
}

// finding is what was found of one thing.
type finding struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`         // version, path or what is wrong
	Remedy string `json:"mend,omitempty"` // what to do about it
}

// The states of a finding.
const (
	ok      = "ok"
	warning = "warning" // slower, or less: a build works all the same
	missing = "missing" // a build fails
)

// What the smallest useful build takes, in bytes: a server image's disks and
// layout; a base image and the compiled tools with Go's build cache.
const (
	outputSpace = 3 << 30
	cacheSpace  = 4 << 30
)

// findings are what there is to say of everything that a build needs.
func findings(ctx context.Context, accelerator, cacheDir, outputDir string) []finding {
	ready := provision.ToolsReady(cacheDir + "/tools")
	var all []finding
	for _, p := range programs {
		// What Go would compile may be there, as in the toolbox.
		if f := p.look(ctx); p.name != "go" || f.State != warning || !ready {
			all = append(all, f)
		}
	}
	return append(all, ssh(ctx), ansible(ctx), compiled(ready), acceleration(ctx, accelerator, cacheDir), confinement(),
		space("OUTPUT_DIR", outputDir, outputSpace), space("CACHE_DIR", cacheDir, cacheSpace))
}

// program is an external program.
type program struct {
	name     string
	version  string // argument that prints a version; none is asked for where empty
	optional string // what is lost without it; empty where nothing works
}

var programs = []program{
	{"qemu-system-x86_64", "--version", ""},
	{"qemu-img", "--version", ""},
	{"xorriso", "--version", ""},
	{"git", "--version", "playbooks from git"},
	{"go", "version", "compiling Packer and its plugins the first time"},
	{"mmdebstrap", "--version", "base images from Debian packages"},
	{"sfdisk", "--version", ""},
	{"blkid", "--version", ""},
	{"debugfs", "", ""}, // and mke2fs
	{"guestfish", "--version", "looking into disks whose file system is not ext2, ext3 or ext4"},
	{"virt-sparsify", "--version", "sparsifying images whose guest does not trim"},
}

func (p program) look(ctx context.Context) finding {
	path, err := host.Look(p.name)
	switch {
	case err != nil && p.optional == "":
		return finding{p.name, missing, "not installed", "apt-get install " + host.Package(p.name)}
	case err != nil:
		return finding{p.name, warning, "not installed: needed for " + p.optional, "apt-get install " + host.Package(p.name)}
	case p.version == "":
		return finding{p.name, ok, path, ""}
	}
	var first string
	err = host.Run(ctx, host.Cmd{Program: path, Args: []string{p.version}, OnLine: func(line string) {
		if first == "" && strings.ContainsAny(line, "0123456789") {
			first = strings.TrimSpace(line)
		}
	}})
	if err != nil {
		return finding{p.name, missing, err.Error(), "apt-get install --reinstall " + host.Package(p.name)}
	}
	return finding{p.name, ok, first, ""}
}

// ssh is asked as a build does: it takes a user with a name.
func ssh(ctx context.Context) finding {
	if err := provision.CheckSSH(ctx); err != nil {
		return broken("ssh", err, "")
	}
	return program{"ssh", "-V", ""}.look(ctx)
}

// ansible says which guests this host's Ansible can manage.
func ansible(ctx context.Context) finding {
	version, err := playbook.ControllerVersion(ctx)
	if err != nil {
		return broken("ansible", err, "apt-get install ansible-core")
	}
	if newest, _ := playbook.GuessGuest("trixie"); playbook.CheckVersions(version, newest) != nil {
		return finding{"ansible", warning, "ansible-core " + version + ": guests with Python 3.11 or older, such as Debian 12 and Ubuntu 22.04",
			"for Debian 13 and Ubuntu 24.04 guests it takes ansible-core 2.16 or newer"}
	}
	return finding{"ansible", ok, "ansible-core " + version, ""}
}

func compiled(ready bool) finding {
	v := provision.ToolsVersions()
	what := fmt.Sprintf("Packer %s, plugins qemu %s and ansible %s, goss %s", v["packer"], v["packer-plugin-qemu"], v["packer-plugin-ansible"], v["goss"])
	if ready {
		return finding{"packer", ok, what, ""}
	}
	return finding{"packer", warning, what + ": not compiled yet", "the first build compiles them, which takes some minutes"}
}

// acceleration says whether KVM really works here.
func acceleration(ctx context.Context, wanted, cacheDir string) finding {
	verdict, err := vm.ChooseAccelerator(ctx, wanted, cacheDir, progress.Discard)
	switch {
	case err != nil:
		return broken("accelerator", err, "set ACCELERATOR=auto")
	case verdict.Accelerator == "kvm":
		return finding{"accelerator", ok, "kvm: it booted a kernel", ""}
	case verdict.Why == "":
		return finding{"accelerator", ok, verdict.Accelerator, ""}
	}
	return finding{"accelerator", warning, "tcg, about ten times slower: " + verdict.Why, ""}
}

// confinement says whether playbooks are kept from this host's processes.
func confinement() finding {
	if err := host.Unconfined(); err != nil {
		return finding{"confinement", warning, "playbooks see this user's processes and what passwords their environments hold: " + err.Error(),
			"allow user namespaces, or build with PUSH=false and push where no playbook runs"}
	}
	return finding{"confinement", ok, "playbooks see no process of this host", ""}
}

func space(setting, dir string, need int64) finding {
	if err := writable(dir); err != nil {
		return finding{setting, missing, err.Error(), "set " + setting + " to a folder that this user may write to"}
	}
	if err := host.CheckSpace(dir, setting, host.Need{Bytes: need, What: "a build"}); err != nil {
		return broken(setting, err, "")
	}
	return finding{setting, ok, dir, ""}
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
func broken(name string, err error, remedy string) finding {
	if f, known := failure.In(err); known {
		return finding{name, missing, f.What, f.Try}
	}
	return finding{name, missing, err.Error(), remedy}
}
