package pipeline

import (
	"context"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// rooms are the functions of the packages that do the work. A test that looks at
// what each is given puts its own in their place.
type rooms struct {
	controller func(context.Context) (string, error)
	ssh        func(context.Context) error
	qemu       func(ctx context.Context, architecture string) string
	accel      func(ctx context.Context, architecture, want, cacheDir string, p progress.Reporter) (vm.Verdict, error)
	tools      func(ctx context.Context, cache, architecture string, p progress.Reporter) (provision.Tools, error)
	playbook   func(context.Context, playbook.Options, settings.Vars, string, progress.Reporter) (playbook.Source, playbook.Inputs, error)

	packages func(context.Context, base.Options, []string, progress.Reporter) error
	makeBase func(context.Context, base.Options, progress.Reporter) (base.Image, error)
	checksum func(context.Context, string, string, base.DownloadOptions, progress.Reporter) (base.Stated, error)
	download func(context.Context, string, string, base.DownloadOptions, progress.Reporter) (base.File, error)
	updates  func(ctx context.Context, disks []sbom.Inventory, aptMirror, caFile string) ([]base.Updates, error)
	fetch    func(context.Context, string, registry.FetchOptions, progress.Reporter) (registry.Fetched, error)
	disk     func(ctx context.Context, path string) (disk.Info, error)

	provision  func(context.Context, provision.Options, progress.Reporter) (provision.Result, error)
	importDisk func(ctx context.Context, from, out string, p progress.Reporter) error
	generalise func(context.Context, hygiene.GeneraliseOptions, progress.Reporter) (hygiene.Generalised, error)
	sparsify   func(ctx context.Context, in, out string, o disk.SparsifyOptions, p progress.Reporter) (disk.SparsifyResult, error)
	scan       func(context.Context, hygiene.Options, progress.Reporter) (hygiene.Result, error)
	verify     func(context.Context, verify.Options, progress.Reporter) (verify.Result, error)
	pack       func(ctx context.Context, disk, layout string, m oci.Metadata, p progress.Reporter) (oci.Result, error)
	inspect    func(ctx context.Context, layout string, p progress.Reporter) (*contract.Report, error)
	export     func(ctx context.Context, path, digest, dir string, names []string, m disk.Machine, p progress.Reporter) ([]disk.Exported, error)
	bundles    func(ctx context.Context, reference string, o registry.Options) ([]registry.Referrer, error)
	freeTag    func(ctx context.Context, reference string, o registry.Options) (string, error)
	access     func(ctx context.Context, reference string, o registry.Options) error
	push       func(ctx context.Context, layout, reference string, o registry.Options, p progress.Reporter) (string, error)
}

var realRooms = rooms{
	controller: playbook.ControllerVersion, ssh: provision.CheckSSH, qemu: qemuVersion,
	accel: vm.ChooseAccelerator, tools: provision.EnsureTools, playbook: usedPlaybook,
	packages: base.CheckPackages, makeBase: base.Make, checksum: base.ResolveChecksum, download: base.Fetch,
	updates: base.FindUpdates, fetch: registry.Fetch, disk: disk.Inspect,
	provision: provision.Run, importDisk: disk.Import, generalise: hygiene.Generalise, sparsify: disk.Sparsify, scan: hygiene.Scan, verify: verify.Run,
	pack: oci.Pack, inspect: contract.Layout, export: disk.Export, bundles: bundlesOf,
	freeTag: registry.FreeTag, access: registry.CheckAccess, push: registry.Push,
}
