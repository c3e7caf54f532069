package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// ready is what the stages need besides their input.
type ready struct {
	accel          vm.Verdict
	tools          provision.Tools
	base           origin
	playbook       playbook.Source
	controller     string // version of ansible-core
	playbookInputs playbook.Inputs
	policy         hygiene.Policy
}

// start gets all that the stages need, and checks, before anything slow starts,
// that the image is the planned one, that the disk can hold the base image, and
// that the host can hold the disks, which end in out.
func (w *way) start(ctx context.Context, out string) error {
	if err := w.prepare(ctx); err != nil {
		return err
	}
	w.sources(ctx)
	if err := w.checkPlan(); err != nil {
		return err
	}
	info, err := w.rooms.disk(ctx, w.base.Path)
	if err == nil {
		err = checkArchitecture(w.Config.Architecture, w.base.Path)
	}
	if err != nil {
		return err
	}
	if w.Config.DiskSize < info.VirtualSize {
		return failure.New(fmt.Sprintf("DISK_SIZE: %s is less than the base image's virtual size", text.Size(w.Config.DiskSize)),
			"give "+text.Size(info.VirtualSize)+" or more")
	}
	return host.CheckSpace(out, "OUTPUT_DIR", needs(w.Config, w.dir.Path(), info.DataSize)...)
}

// checkArchitecture says where machines of an architecture cannot start from a disk: what
// cannot be looked into will be seen when it is booted.
func checkArchitecture(architecture, path string) error {
	has, err := disk.FirmwareOf(path)
	switch {
	case err != nil:
		return nil //nolint:nilerr // see above
	case !has.Starts(architecture):
		return failure.New(fmt.Sprintf("ARCHITECTURE is %s, but the disk it starts from is for %s", architecture, has.Architecture),
			"take a disk for "+architecture+", or set ARCHITECTURE="+has.Architecture)
	case !arch.Of(architecture).BIOS && !has.UEFI:
		return failure.New(fmt.Sprintf("ARCHITECTURE is %s, but the disk it starts from has no boot loader for that (EFI/BOOT/%s)",
			architecture, arch.Of(architecture).Loader()),
			"take a disk for "+architecture)
	}
	return nil
}

// ofDisk has what follows be for the architecture that the disk is for, as far as its boot
// loader says that.
func (w *way) ofDisk(path string) (disk.Firmware, error) {
	has, err := disk.FirmwareOf(path)
	w.Config.Architecture = cmp.Or(has.Architecture, w.Config.Architecture)
	return has, err
}

// prepare gets everything that takes time, side by side: which accelerator
// works, Packer and its plugins, the base image, the playbooks.
func (w *way) prepare(ctx context.Context) (err error) {
	if w.controller, err = w.rooms.controller(ctx); err != nil {
		return err
	}
	if err := w.rooms.ssh(ctx); err != nil {
		return err
	}
	if suite := suiteOf(guessGuest(w.Config, w.controller)); w.Config.Packages != "" && suite != "" {
		err := w.show(ctx, "packages", func(ctx context.Context, p progress.Reporter) (string, error) {
			return "in " + suite, checkPackages(ctx, w.Config, suite, w.rooms.packages, p)
		})
		if err != nil {
			return err
		}
	}
	// The first failure is the error; what it stopped did not fail.
	g, ctx := errgroup.WithContext(ctx)
	baseIsThere := make(chan struct{})
	get := func(name string, run func(context.Context, progress.Reporter) (string, error)) {
		g.Go(func() error { return w.show(ctx, name, run) })
	}
	get("accel", func(ctx context.Context, p progress.Reporter) (string, error) {
		if w.Config.BaseFromPackages && !vm.HasKernel(w.Config.Architecture, w.Config.CacheDir) {
			p.Activity("waiting for the base image's kernel: this host has none to prove KVM with")
			select {
			case <-baseIsThere:
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		return w.accelerator(ctx, p)
	})
	get("tools", w.compile)
	get("base", func(ctx context.Context, p progress.Reporter) (string, error) {
		name, err := w.getBase(ctx, p)
		if err == nil {
			close(baseIsThere)
		}
		return name, err
	})
	get("playbook", func(ctx context.Context, p progress.Reporter) (string, error) {
		err := w.resolvePlaybook(ctx, p)
		return fmt.Sprintf("%s of %s, which uses %s", w.playbook.File, short(w.playbook.Revision), w.playbookInputs), err
	})
	if err := g.Wait(); err != nil || !w.base.Known {
		return err
	}
	return manageable(w.controller, w.base.Guest, w.playbookInputs)
}

// prepareVerify gets what verify needs: an accelerator and, where the playbook
// has checks, these and goss.
func (w *way) prepareVerify(ctx context.Context) error {
	err := w.show(ctx, "accel", w.accelerator)
	if err == nil && w.Config.Playbook != "" {
		err = w.show(ctx, "playbook", func(ctx context.Context, p progress.Reporter) (_ string, err error) {
			w.playbook, err = playbook.Resolve(ctx, w.playbookOptions(), p)
			return w.playbook.Checks, err
		})
	}
	if err == nil {
		err = w.readPolicy()
	}
	if err != nil || w.playbook.Checks == "" {
		return err
	}
	return w.show(ctx, "tools", w.compile)
}

func (w *way) accelerator(ctx context.Context, p progress.Reporter) (string, error) {
	err := CheckCache(w.Config.CacheDir)
	if err == nil {
		w.accel, err = w.rooms.accel(ctx, w.Config.Architecture, w.Config.Accelerator, w.Config.CacheDir, p)
	}
	return w.accel.Accelerator, err
}

func (w *way) compile(ctx context.Context, p progress.Reporter) (string, error) {
	err := CheckCache(w.Config.CacheDir)
	if err == nil {
		w.tools, err = w.rooms.tools(ctx, filepath.Join(w.Config.CacheDir, "tools"), w.Config.Architecture, p)
	}
	return fmt.Sprintf("Packer %s, goss %s", w.tools.Versions["packer"], w.tools.Versions["goss"]), err
}

// resolvePlaybook gets the playbook, and what of the hygiene gate it excuses.
func (w *way) resolvePlaybook(ctx context.Context, p progress.Reporter) (err error) {
	w.playbook, w.playbookInputs, err = w.rooms.playbook(ctx, w.playbookOptions(), w.Config.ExtraVars, w.controller, p)
	if err != nil {
		return err
	}
	if err := host.Unconfined(); err != nil && (w.Config.RegistryPass != "" || w.Config.SigningPassword != "") {
		p.Warn(fmt.Sprintf("playbooks see this user's processes, and the passwords in the environment of whoever started diskforge, because %v; "+
			"with PUSH=false a build needs no password, and diskforge push sends the image", err))
	}
	return w.readPolicy()
}

// usedPlaybook copies what the playbook uses of its tree and checks that this
// host's Ansible can run it.
func usedPlaybook(ctx context.Context, o playbook.Options, vars settings.Vars, controller string, p progress.Reporter) (
	source playbook.Source, uses playbook.Inputs, err error,
) {
	if source, err = playbook.Resolve(ctx, o, p); err != nil {
		return source, uses, err
	}
	if uses, err = source.Inputs(ctx, vars); err != nil {
		return source, uses, err
	}
	if err = playbook.CheckForms(controller, uses); err != nil {
		return source, uses, err
	}
	if err = source.Keep(uses); err != nil {
		return source, uses, err
	}
	return source, uses, source.Check(ctx, uses, vars, p)
}

// readPolicy reads what the hygiene gate excuses and looks for besides:
// HYGIENE_ALLOW's, or what the playbook tree has.
func (w *way) readPolicy() (err error) {
	if file := cmp.Or(w.Config.HygieneAllow, w.playbook.Allow); file != "" {
		w.policy, err = hygiene.ReadAllowList(file)
	}
	return err
}

func (w *way) playbookOptions() playbook.Options {
	o := PlaybookOptions(w.Config, w.results...)
	o.Dir = w.dir.Path("playbooks")
	return o
}

// PlaybookOptions say where the playbook comes from. Results are what builds
// write besides OUTPUT_DIR and CACHE_DIR.
func PlaybookOptions(c settings.Config, results ...string) playbook.Options {
	return playbook.Options{
		AnsibleDir: c.AnsibleDir, GitURL: c.GitURL, GitBranch: c.GitBranch, GitPath: c.GitPath, CAFile: c.CAFile,
		Cache: filepath.Join(c.CacheDir, "playbooks"), Embedded: ansible.FS, Playbook: c.Playbook,
		Results: append([]string{c.OutputDir, c.CacheDir}, results...),
		Vault:   playbook.Vault{PasswordFile: c.VaultPasswordFile, Identities: c.VaultIdentities},
	}
}

// short is a revision that fits a line.
func short(revision string) string {
	revision = strings.TrimPrefix(revision, "sha256:")
	return revision[:min(len(revision), 12)]
}

// checkRegistry asks the registry, before anything slow starts, whether we may
// push.
func (w *way) checkRegistry(ctx context.Context) error {
	if !w.pushes() {
		return w.checkSigning(ctx)
	}
	login, err := w.login()
	if err != nil {
		return err
	}
	err = w.show(ctx, "registry", func(ctx context.Context, _ progress.Reporter) (string, error) {
		if c := &w.Config; c.TagOfDay {
			ref, err := w.rooms.freeTag(ctx, c.Reference, login)
			if err != nil {
				return "", err
			}
			c.ImageTag, c.Reference, w.address = ref[strings.LastIndex(ref, ":")+1:], ref, ref
			w.journal.note(func(to *report.Report) { to.Image.Tag, to.Image.Reference = c.ImageTag, ref })
		}
		return "accepts pushes to " + w.Config.Reference, w.rooms.access(ctx, w.Config.Reference, login)
	})
	if err != nil {
		return err
	}
	return w.checkSigning(ctx)
}

// maxPassword bounds the password file, in bytes; some registries' passwords
// are JSON keys of a few KiB.
const maxPassword = 64 << 10

// RegistryOptions say how the settings reach a registry, with the password
// read. The file that has it may be a pipe, which can be read once.
func RegistryOptions(c settings.Config, version string) (registry.Options, error) {
	o := registry.Options{
		Username: c.RegistryUser, Password: string(c.RegistryPass),
		Insecure: c.RegistryInsecure, CAFile: c.CAFile, UserAgent: "diskforge/" + version,
	}
	if c.RegistryPassFile == "" {
		return o, nil
	}
	content, err := host.ReadFile(c.RegistryPassFile, maxPassword)
	if err != nil {
		return o, failure.Wrap(err, "REGISTRY_PASS_FILE", "")
	}
	o.Password = strings.TrimRight(strings.TrimPrefix(string(content), "\ufeff"), "\r\n")
	if o.Password == "" {
		return o, failure.New("REGISTRY_PASS_FILE: "+c.RegistryPassFile+" holds no password", "put the password of "+c.RegistryUser+" into it")
	}
	return o, nil
}

// ReadPassword has the settings of many builds hold the password itself, in place of the
// file that has it: that may be a pipe, which can be read once.
func ReadPassword(s settings.Settings, c *settings.Config, version string) (settings.Settings, error) {
	if c.RegistryPassFile == "" {
		return s, nil
	}
	options, err := RegistryOptions(*c, version)
	if err != nil {
		return s, err
	}
	c.RegistryPass, c.RegistryPassFile = settings.Secret(options.Password), ""
	return s.With(map[string]string{"REGISTRY_PASS": options.Password, "REGISTRY_PASS_FILE": ""}), nil
}

// NewSession asks registries with the credentials of the settings.
func NewSession(c settings.Config, version string) (*registry.Session, error) {
	o, err := RegistryOptions(c, version)
	if err != nil {
		return nil, err
	}
	return registry.NewSession(o)
}
