package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/ansible"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// rooms are the functions of the packages that do the work. A test that looks at
// what each is given puts its own in their place.
type rooms struct {
	controller func(context.Context) (string, error)
	ssh        func(context.Context) error
	qemu       func(context.Context) string
	accel      func(ctx context.Context, want, cacheDir string, p progress.Reporter) (accel.Verdict, error)
	tools      func(ctx context.Context, cache string, p progress.Reporter) (provision.Tools, error)
	playbook   func(ctx context.Context, o playbook.Options, vars map[string]any, controller string, p progress.Reporter) (playbook.Source, playbook.Inputs, error)

	makeBase func(context.Context, base.Options, progress.Reporter) (base.Image, error)
	checksum func(context.Context, string, base.Checksum, base.DownloadOptions, progress.Reporter) (base.Checksum, error)
	download func(context.Context, string, base.Checksum, base.DownloadOptions, progress.Reporter) (base.File, error)
	fetch    func(context.Context, string, registry.FetchOptions, progress.Reporter) (registry.Fetched, error)
	disk     func(ctx context.Context, path string) (disk.Info, error)

	provision func(context.Context, provision.Options, progress.Reporter) (provision.Result, error)
	sparsify  func(ctx context.Context, in, out string, o disk.SparsifyOptions, p progress.Reporter) (disk.SparsifyResult, error)
	scan      func(context.Context, hygiene.Options, progress.Reporter) (hygiene.Result, error)
	verify    func(context.Context, verify.Options, progress.Reporter) (verify.Result, error)
	pack      func(ctx context.Context, disk, layout string, m oci.Metadata, p progress.Reporter) (oci.Result, error)
	inspect   func(ctx context.Context, layout string, p progress.Reporter) (*contract.Report, error)
	access    func(ctx context.Context, reference string, o registry.Options) error
	push      func(ctx context.Context, layout, reference string, o registry.Options, p progress.Reporter) (string, error)
}

var realRooms = rooms{
	controller: playbook.ControllerVersion, ssh: provision.CheckSSH, qemu: qemuVersion, accel: accel.Choose, tools: provision.EnsureTools, playbook: usedPlaybook,
	makeBase: base.Make, checksum: base.ResolveChecksum, download: base.Fetch, fetch: registry.Fetch, disk: disk.Inspect,
	provision: provision.Run, sparsify: disk.Sparsify, scan: hygiene.Scan, verify: verify.Run,
	pack: oci.Pack, inspect: contract.Layout, access: registry.CheckAccess, push: registry.Push,
}

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
	if err != nil {
		return err
	}
	if w.Config.DiskSize < info.VirtualSize {
		return failure.New(fmt.Sprintf("DISK_SIZE: %s is less than the base image's virtual size", text.Size(w.Config.DiskSize)),
			"give "+text.Size(info.VirtualSize)+" or more")
	}
	work := w.dir.Path()
	return disk.CheckNeeds(disk.BuildNeeds(disk.BuildPlan{
		Base: info, DiskSize: w.Config.DiskSize,
		Method: disk.Method(w.Config.Sparsify), Compression: disk.Compression(w.Config.Compression),
		WorkDir: work, TmpDir: work, LayoutDir: out, Left: left(work),
	}))
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
	// The first failure is the error; what it stopped did not fail.
	g, ctx := errgroup.WithContext(ctx)
	baseIsThere := make(chan struct{})
	get := func(name string, run func(context.Context, progress.Reporter) (string, error)) {
		g.Go(func() error { return w.show(ctx, name, run) })
	}
	get("accel", func(ctx context.Context, p progress.Reporter) (string, error) {
		if w.Config.BaseFromPackages && !accel.HasKernel(w.Config.CacheDir) {
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
	return playbook.CheckVersions(w.controller, w.base.Guest)
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
		w.accel, err = w.rooms.accel(ctx, w.Config.Accelerator, w.Config.CacheDir, p)
	}
	return w.accel.Accelerator, err
}

func (w *way) compile(ctx context.Context, p progress.Reporter) (string, error) {
	err := CheckCache(w.Config.CacheDir)
	if err == nil {
		w.tools, err = w.rooms.tools(ctx, filepath.Join(w.Config.CacheDir, "tools"), p)
	}
	return fmt.Sprintf("Packer %s, goss %s", w.tools.Versions["packer"], w.tools.Versions["goss"]), err
}

// resolvePlaybook gets the playbook, and what of the hygiene gate it excuses.
func (w *way) resolvePlaybook(ctx context.Context, p progress.Reporter) (err error) {
	w.playbook, w.playbookInputs, err = w.rooms.playbook(ctx, w.playbookOptions(), w.Config.ExtraVars, w.controller, p)
	if err != nil {
		return err
	}
	if err := host.Unconfined(); err != nil && w.Config.RegistryPass != "" {
		p.Warn(fmt.Sprintf("playbooks see this user's processes, and REGISTRY_PASS in the environment of whoever started diskforge, because %v; with PUSH=false a build needs no password, and diskforge push sends the image", err))
	}
	return w.readPolicy()
}

// usedPlaybook copies what the playbook uses of its tree and checks that this
// host's Ansible can run it.
func usedPlaybook(ctx context.Context, o playbook.Options, vars map[string]any, controller string, p progress.Reporter) (source playbook.Source, uses playbook.Inputs, err error) {
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
		AnsibleDir: c.AnsibleDir, GitURL: c.GitURL, GitBranch: c.GitBranch, GitPath: c.GitPath,
		Embedded: ansible.FS, Playbook: c.Playbook, Results: append([]string{c.OutputDir, c.CacheDir}, results...),
		Vault: playbook.Vault{PasswordFile: c.VaultPasswordFile, Identities: c.VaultIdentities},
	}
}

// short is a revision that fits a line.
func short(revision string) string {
	revision = strings.TrimPrefix(revision, "sha256:")
	return revision[:min(len(revision), 12)]
}

// origin is the base image.
type origin struct {
	Path, Format string
	Name         string // as the image says it: no password, no path of this host
	Digest       string // of the file, "sha256:…"
	Manifest     string // digest of the image that the file came out of, or empty
	Inputs       string // what is known of it before it is there: its checksum, its recipe, its parent's inputs
	Created      time.Time
	Guest        playbook.Guest
	Known        bool // whether Guest is
}

// distribution is that of the base, in lower case, or empty.
func (o origin) distribution() string {
	if !o.Known {
		return ""
	}
	family, _, _ := strings.Cut(o.Guest.Name, " ")
	return strings.ToLower(family)
}

// getBase makes or fetches the base image, and returns its name.
func (w *way) getBase(ctx context.Context, p progress.Reporter) (_ string, err error) {
	if err := CheckCache(w.Config.CacheDir); err != nil {
		return "", err
	}
	var o origin
	var names []string // by which its guest is known
	switch {
	case w.Config.BaseFromPackages:
		o, names, err = w.fromPackages(ctx, p)
	case w.Config.BaseImage.IsSet():
		o, names, err = w.fromImage(ctx, p)
	default:
		o, names, err = w.fromURL(ctx, p)
	}
	if err != nil {
		return "", err
	}
	o.Guest, o.Known = playbook.GuessGuest(names...)
	o.Path, err = filepath.Abs(o.Path)
	w.base = o
	return o.Name, err
}

func (w *way) fromPackages(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	options := baseOptions(w.Config, w.controller)
	image, err := w.rooms.makeBase(ctx, options, p)
	if err != nil {
		return origin{}, nil, err
	}
	recipe, err := options.Recipe()
	return origin{
		Path: image.Path, Format: image.Format, Name: "debian-" + image.Suite + " from packages",
		Digest: image.Digest, Inputs: recipe, Created: image.Created,
	}, []string{image.Suite}, err
}

// fromImage takes the base out of a containerdisk, in a registry or a layout.
func (w *way) fromImage(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	image := w.Config.BaseImage
	want := oci.Want{Digest: image.Digest, Inputs: image.Inputs}
	cache := cmp.Or(w.BaseDir, filepath.Join(w.Config.CacheDir, "images"))
	var taken oci.Extracted
	var name string
	if image.Layout != "" {
		var err error
		if taken, err = oci.Extract(ctx, image.Layout, want, cache, p); err != nil {
			return origin{}, nil, err
		}
		name = filepath.Base(image.Layout) + "@" + taken.Manifest
	} else {
		login, err := w.login()
		if err != nil {
			return origin{}, nil, err
		}
		fetched, err := w.rooms.fetch(ctx, image.Reference, registry.FetchOptions{Options: login, Want: want, Wait: w.Config.BaseTimeout, CacheDir: cache}, p)
		if err != nil {
			return origin{}, nil, err
		}
		taken, name = fetched.Extracted, fetched.Reference
	}
	return origin{
		Path: taken.Path, Format: taken.Format, Name: name, Digest: taken.Digest, Manifest: taken.Manifest,
		Inputs: cmp.Or(image.Inputs, image.Digest), Created: taken.Created,
	}, append(taken.Hints, name), nil
}

func (w *way) fromURL(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	url := w.Config.ISOURL
	sum, err := w.rooms.checksum(ctx, url, w.Config.ISOChecksum, Downloads(w.Config), p)
	if err != nil {
		return origin{}, nil, err
	}
	file, err := w.rooms.download(ctx, url, sum, Downloads(w.Config), p)
	if err != nil {
		return origin{}, nil, err
	}
	info, err := w.rooms.disk(ctx, file.Path)
	return origin{
		Path: file.Path, Format: info.Format, Name: publicName(url), Digest: file.Digest, Inputs: sum.String(), Created: file.Modified,
	}, []string{url}, err
}

// Downloads says where base images are kept and who is trusted to send them.
func Downloads(c settings.Config) base.DownloadOptions {
	return base.DownloadOptions{CacheDir: filepath.Join(c.CacheDir, "images"), CAFile: c.CAFile}
}

// baseOptions ask for the newest release that this host's Ansible can manage
// where the settings name none.
func baseOptions(c settings.Config, controller string) base.Options {
	return base.Options{
		Suite: cmp.Or(c.Suite, base.NewestManageable(controller)), Architecture: c.Architecture, Mirror: c.AptMirror,
		CacheDir: filepath.Join(c.CacheDir, "base"),
	}
}

// publicName is what an image may say of where its base came from: a URL
// without user, password and query, of a local file only its name.
func publicName(raw string) string {
	if strings.HasPrefix(raw, "http://") || strings.HasPrefix(raw, "https://") {
		return publicURL(raw)
	}
	return path.Base(raw)
}

// checkRegistry asks the registry, before anything slow starts, whether we may
// push.
func (w *way) checkRegistry(ctx context.Context) error {
	if !w.pushes() {
		return nil
	}
	login, err := w.login()
	if err != nil {
		return err
	}
	return w.show(ctx, "registry", func(ctx context.Context, _ progress.Reporter) (string, error) {
		return "accepts pushes to " + w.Config.Reference, w.rooms.access(ctx, w.Config.Reference, login)
	})
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
