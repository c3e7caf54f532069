package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// RefreshPlaybook comes with diskforge: it installs the updates that are pending.
const RefreshPlaybook = "refresh"

// ErrCurrent is the cause of Refresh's error where no update is pending.
var ErrCurrent = errors.New("no update is pending")

// refreshed is what is known of the image that a build refreshes.
type refreshed struct {
	original oci.Original
	had      *sbom.Inventory // nil: the build refreshes nothing
}

// Refresh builds an image anew from itself, Config's BaseImage, with RefreshPlaybook, where
// an update is pending, a security update if only these count. It goes through all
// stages. Original is what the image says of its own (oci.OriginalOf).
func (b *Build) Refresh(ctx context.Context, original oci.Original, securityOnly bool) (Result, error) {
	w := b.way(nil)
	if err := w.checkHost(ctx); err != nil {
		return Result{}, err
	}
	if err := w.show(ctx, "base", w.getBase); err != nil {
		return Result{}, err
	}
	current := false
	err := w.show(ctx, "updates", func(ctx context.Context, p progress.Reporter) (string, error) {
		info, err := w.rooms.disk(ctx, w.base.Path)
		if err != nil {
			return "", err
		}
		if err := os.MkdirAll(b.Config.OutputDir, 0o755); err != nil {
			return "", err
		}
		b.Config.DiskSize = info.VirtualSize
		found, err := w.rooms.scan(ctx, hygiene.Options{
			Disk: w.base.Path, Format: info.Format, Dir: b.Config.OutputDir, LibguestfsEnv: w.accel.LibguestfsEnv(),
		}, p)
		if err != nil && found.Rules == nil { // what it carries is judged when it is refreshed
			return "", err
		}
		original.Refreshes++
		b.refreshed = refreshed{original, &found.Inventory}
		updates, err := w.pending(ctx, found.Inventory, p)
		if err != nil {
			return "", err
		}
		current = len(updates.Security) == 0 && (securityOnly || len(updates.Others) == 0)
		return inWords(updates), nil
	})
	if err == nil && current {
		err = ErrCurrent
	}
	if err != nil {
		return Result{}, err
	}
	return b.Run(ctx)
}

// checkHost says what the host, or the login, lacks before an image is fetched.
func (w *way) checkHost(ctx context.Context) (err error) {
	if w.controller, err = w.rooms.controller(ctx); err == nil {
		err = w.rooms.ssh(ctx)
	}
	if err == nil {
		err = w.show(ctx, "accel", w.accelerator)
	}
	if err == nil {
		err = w.checkRegistry(ctx)
	}
	return err
}

// Lasting are the settings of a build that its refreshes need: by these verify knows what
// to look for. Those that have their default are left out.
var Lasting = []string{"INSTALL_DESKTOP_ENVIRONMENT", "CROWNLABS_MODE", "VM_USER", "BAKE_USER", "ARCHITECTURE"}

func (w *way) lasting() map[string]string {
	c, all := w.Config, map[string]string{}
	is := strconv.FormatBool
	for i, value := range []string{is(c.Desktop), is(c.CrownLabsMode), c.VMUser, is(c.BakeUser), c.Architecture} {
		if f, _ := settings.By(Lasting[i]); value != "" && value != f.Default {
			all[f.Env] = value
		}
	}
	return all
}

// pending are the updates of what is installed.
func (w *way) pending(ctx context.Context, has sbom.Inventory, p progress.Reporter) (base.Updates, error) {
	if has.None != "" {
		return base.Updates{}, failure.New("nobody knows which updates are pending: "+has.None, "")
	}
	p.Activity("asking the archives for updates")
	all, err := w.rooms.updates(ctx, []sbom.Inventory{has}, w.Config.AptMirror, w.Config.CAFile)
	if err != nil {
		return base.Updates{}, err
	}
	return all[0], nil
}

func inWords(u base.Updates) string {
	return fmt.Sprintf("%s pending, %d others", text.Count(len(u.Security), "security update"), len(u.Others))
}

// checkUpdates is FAIL_ON_UPDATES: what is pending is an error, with the check that it is.
func (w *way) checkUpdates(ctx context.Context, has sbom.Inventory, p progress.Reporter) (*report.Check, error) {
	which := w.Config.FailOnUpdates
	if which == "" || which == "none" {
		return nil, nil //nolint:nilnil // there is no such check
	}
	check := &report.Check{Group: "hygiene", Name: "updates"}
	updates, err := w.pending(ctx, has, p)
	if err != nil {
		check.Detail = err.Error()
		return check, err
	}
	pending := updates.Security
	if which == "all" {
		pending = slices.Concat(pending, updates.Others)
	}
	check.OK, check.Detail = len(pending) == 0, inWords(updates)
	if check.OK {
		return check, nil
	}
	failed := failure.New(text.Count(len(pending), "update")+" pending: "+text.Cut(strings.Join(base.Sources(pending), ", "), 200),
		"have the playbook upgrade the system, or leave out FAIL_ON_UPDATES")
	for _, u := range pending {
		failed.Lines = append(failed.Lines, fmt.Sprintf("%s %s, and there is %s", u.Package, u.Installed, u.Available))
	}
	return check, failed
}

// noteChanges notes which packages the image before had in other versions: the one that is
// refreshed, or that the registry has under the tag or, where the tag is new, as latest. A
// refresh must change some: an image may hold back what the archive has, week after week.
func (w *way) noteChanges(ctx context.Context, has sbom.Inventory) error {
	had := w.refreshed.had
	if had == nil && w.pushes() {
		had = w.former(ctx)
	}
	if had == nil {
		return nil
	}
	changes := changesOf(had.Packages, has.Packages)
	if len(changes) == 0 && w.refreshed.had != nil {
		return failure.New("updates are pending, and none was installed", "see with apt-mark showhold in the image what is held back")
	}
	w.journal.note(func(to *report.Report) { to.Changes = changes })
	return nil
}

// former is what the image has that this one succeeds, by its SBOM, whoever signed that:
// it is only shown. Nil where nobody knows.
func (w *way) former(ctx context.Context) *sbom.Inventory {
	login, err := w.login()
	if err != nil {
		return nil
	}
	repository := w.address[:strings.LastIndex(w.address, ":")]
	for _, ref := range []string{w.address, repository + ":" + contract.MovingTag} {
		bundles, err := w.rooms.bundles(ctx, ref, login)
		if err != nil {
			continue
		}
		for _, bundle := range bundles {
			said, err := attest.Read(ctx, nil, bundle.Content)
			if err != nil || said.PredicateType != attest.SPDX {
				continue
			}
			if had, err := sbom.ReadSPDX(said.Predicate); err == nil {
				return &had
			}
		}
		return nil
	}
	return nil
}

// bundlesOf reads what is attached to an image.
func bundlesOf(ctx context.Context, ref string, login registry.Options) ([]registry.Referrer, error) {
	session, err := registry.NewSession(login)
	if err != nil {
		return nil, err
	}
	defer session.Close()
	_, all, _, err := session.Referrers(ctx, ref, attest.BundleType)
	return all, err
}

// changesOf are the packages of which two disks have other versions, by name.
func changesOf(before, now []sbom.Package) (all []report.Change) {
	of := func(packages []sbom.Package) map[string]string {
		versions := map[string]string{}
		for _, p := range packages {
			versions[p.Name] = p.Version // of several architectures it is the same
		}
		return versions
	}
	had, has := of(before), of(now)
	names := slices.Concat(slices.Collect(maps.Keys(had)), slices.Collect(maps.Keys(has)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if had[name] != has[name] {
			all = append(all, report.Change{Name: name, From: had[name], To: has[name]})
		}
	}
	return all
}
