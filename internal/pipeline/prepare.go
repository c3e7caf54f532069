package pipeline

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// ready is what the stages need besides their input.
type ready struct {
	accel          accel.Verdict
	tools          provision.Tools
	base           origin
	playbook       playbook.Source
	controller     string // version of ansible-core
	playbookInputs playbook.Inputs
	policy         hygiene.Policy
}

// origin is the base image.
type origin struct {
	Path, Format string
	Name         string // as the image tells it: no password, no path of this host
	Digest       string // of the file, "sha256:…"
	Manifest     string // digest of the image that the file came out of, or empty
	Inputs       string // what is known of it before it is there: its checksum, its recipe, its parent's inputs
	Created      time.Time
	Guest        playbook.Guest
	Known        bool // whether Guest is
}

// prepare gets everything that takes time, side by side: which accelerator
// works, Packer and its plugins, the base image, the playbooks. Playbooks are
// kept in dir.
func (b *Build) prepare(ctx context.Context, dir string) (ready, error) {
	var r ready
	var err error
	if r.controller, err = playbook.ControllerVersion(ctx); err != nil {
		return r, err
	}
	if err := provision.CheckSSH(ctx); err != nil {
		return r, err
	}
	// The first failure is told; what it stopped is not.
	g, ctx := errgroup.WithContext(ctx)
	prepare := func(name string, run func(context.Context, progress.Reporter) (string, error)) {
		g.Go(func() error { return b.stage(ctx, name, run) })
	}
	baseIsThere := make(chan struct{})
	prepare("accel", func(ctx context.Context, p progress.Reporter) (string, error) {
		if b.Config.BaseFromPackages && !accel.HasKernel(b.Config.CacheDir) {
			p.Activity("waiting for the base image's kernel: this host has none to prove KVM with")
			select {
			case <-baseIsThere:
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		var err error
		r.accel, err = b.accelerator(ctx, p)
		return r.accel.Accelerator, err
	})
	prepare("tools", func(ctx context.Context, p progress.Reporter) (string, error) {
		var err error
		r.tools, err = b.tools(ctx, p)
		return fmt.Sprintf("Packer %s", r.tools.Versions["packer"]), err
	})
	prepare("base", func(ctx context.Context, p progress.Reporter) (string, error) {
		var err error
		if r.base, err = b.base(ctx, r.controller, p); err == nil {
			close(baseIsThere)
		}
		return r.base.Name, err
	})
	prepare("playbook", func(ctx context.Context, p progress.Reporter) (string, error) {
		var err error
		if r.playbook, r.playbookInputs, err = b.resolvePlaybook(ctx, dir, r.controller, p); err != nil {
			return "", err
		}
		if r.policy, err = b.policy(r.playbook); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s of %s, which uses %s", r.playbook.File, short(r.playbook.Revision), r.playbookInputs), nil
	})
	if err := g.Wait(); err != nil {
		return r, err
	}
	if r.base.Known {
		return r, playbook.CheckVersions(r.controller, r.base.Guest)
	}
	return r, nil
}

func (b *Build) accelerator(ctx context.Context, p progress.Reporter) (accel.Verdict, error) {
	if err := CheckCache(b.Config.CacheDir); err != nil {
		return accel.Verdict{}, err
	}
	return accel.Choose(ctx, b.Config.Accelerator, b.Config.CacheDir, p)
}

func (b *Build) tools(ctx context.Context, p progress.Reporter) (provision.Tools, error) {
	if err := CheckCache(b.Config.CacheDir); err != nil {
		return provision.Tools{}, err
	}
	return provision.EnsureTools(ctx, filepath.Join(b.Config.CacheDir, "tools"), p)
}

// base makes or fetches the base image.
func (b *Build) base(ctx context.Context, controller string, p progress.Reporter) (origin, error) {
	if err := CheckCache(b.Config.CacheDir); err != nil {
		return origin{}, err
	}
	if b.Config.BaseFromPackages {
		image, err := b.makeBase(ctx, controller, p)
		if err != nil {
			return origin{}, err
		}
		recipe, err := b.baseOptions(controller).Recipe()
		if err != nil {
			return origin{}, err
		}
		guest, known := playbook.GuessGuest(image.Suite)
		return origin{
			Path: image.Path, Format: image.Format, Name: "debian-" + image.Suite + " from packages",
			Digest: image.Digest, Inputs: recipe, Created: image.Created, Guest: guest, Known: known,
		}, nil
	}
	if b.Config.BaseImage.IsSet() {
		return b.baseImage(ctx, p)
	}
	sum, err := base.ResolveChecksum(ctx, b.Config.ISOURL, b.Config.ISOChecksum, b.Downloads(), p)
	if err != nil {
		return origin{}, err
	}
	file, err := base.Fetch(ctx, b.Config.ISOURL, sum, b.Downloads(), p)
	if err != nil {
		return origin{}, err
	}
	info, err := disk.Inspect(ctx, file.Path)
	if err != nil {
		return origin{}, err
	}
	path, err := filepath.Abs(file.Path)
	guest, known := playbook.GuessGuest(b.Config.ISOURL)
	return origin{
		Path: path, Format: info.Format, Name: publicName(b.Config.ISOURL),
		Digest: file.Digest, Inputs: sum.String(), Created: file.Modified, Guest: guest, Known: known,
	}, err
}

// Downloads says where base images are kept and who is trusted to send them.
func (b *Build) Downloads() base.DownloadOptions {
	return base.DownloadOptions{CacheDir: filepath.Join(b.Config.CacheDir, "images"), CAFile: b.Config.CAFile}
}

// makeBase makes the base image from Debian packages.
func (b *Build) makeBase(ctx context.Context, controller string, p progress.Reporter) (base.Image, error) {
	return base.Make(ctx, b.baseOptions(controller), p)
}

// baseOptions ask for the newest release that this host's Ansible can manage
// where the settings name none.
func (b *Build) baseOptions(controller string) base.Options {
	suite := b.Config.Suite
	if suite == "" {
		suite = base.NewestManageable(controller)
	}
	return base.Options{
		Suite: suite, Architecture: b.Config.Architecture, Mirror: b.Config.AptMirror,
		CacheDir: filepath.Join(b.Config.CacheDir, "base"),
	}
}

// publicName is what an image may tell of where its base came from: a URL
// without user, password and query, of a local file only its name.
func publicName(raw string) string {
	if strings.HasPrefix(raw, "http://") || strings.HasPrefix(raw, "https://") {
		return publicURL(raw)
	}
	return path.Base(raw)
}

// resolvePlaybook copies what the playbook uses of its tree to dir and checks
// that this host's Ansible can run it.
func (b *Build) resolvePlaybook(ctx context.Context, dir, controller string, p progress.Reporter) (source playbook.Source, uses playbook.Inputs, err error) {
	if source, err = b.copyTree(ctx, dir, p); err != nil {
		return source, uses, err
	}
	if uses, err = source.Inputs(ctx, b.Config.ExtraVars); err != nil {
		return source, uses, err
	}
	if err = playbook.CheckForms(controller, uses); err != nil {
		return source, uses, err
	}
	if err = source.Keep(uses); err != nil {
		return source, uses, err
	}
	if err := host.Unconfined(); err != nil && b.Config.RegistryPass != "" {
		p.Warn(fmt.Sprintf("playbooks see this user's processes, and REGISTRY_PASS in the environment of whoever started diskforge, because %v; with PUSH=false a build needs no password, and diskforge push sends the image", err))
	}
	return source, uses, source.Check(ctx, uses, b.Config.ExtraVars, p)
}

// policy is what the hygiene gate excuses and looks for besides: HYGIENE_ALLOW's,
// or what the playbook tree has.
func (b *Build) policy(p playbook.Source) (hygiene.Policy, error) {
	file := first(b.Config.HygieneAllow, p.Allow)
	if file == "" {
		return hygiene.Policy{}, nil
	}
	return hygiene.ReadAllowList(file)
}

// copyTree copies the playbook's tree to dir.
func (b *Build) copyTree(ctx context.Context, dir string, p progress.Reporter) (playbook.Source, error) {
	o := b.PlaybookOptions()
	o.Dir = dir
	return playbook.Resolve(ctx, o, p)
}

// PlaybookOptions say where the playbook comes from.
func (b *Build) PlaybookOptions() playbook.Options {
	c := b.Config
	return playbook.Options{
		AnsibleDir: c.AnsibleDir, GitURL: c.GitURL, GitBranch: c.GitBranch, GitPath: c.GitPath,
		Embedded: ansible.FS, Playbook: c.Playbook, Vault: playbook.Vault{PasswordFile: c.VaultPasswordFile, Identities: c.VaultIdentities}, Results: append([]string{c.OutputDir, c.CacheDir}, b.Results...),
	}
}

// short is a revision that fits a line.
func short(revision string) string {
	revision = strings.TrimPrefix(revision, "sha256:")
	return revision[:min(len(revision), 12)]
}
