package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// captured is the result of capturing.
type captured struct {
	hygiene.Generalised
	From  origin    `json:"from"` // the machine
	Built time.Time `json:"built"`
	Size  int64     `json:"size"` // of the disk's file, in bytes
}

// captureInputs is the digest of all that a captured disk is made from.
func (w *way) captureInputs() string {
	rules, _ := os.ReadFile(w.Config.HygieneAllow) // what is not there was said before
	return inputs(map[string]any{
		"version": w.Version, "source": w.base.Digest, "rules": rules,
		"vmUser": w.Config.VMUser, "bakeUser": w.Config.BakeUser, "job": w.job(),
	})
}

// startCapture gets what the stages need when the disk is there, and checks, before
// anything slow starts, that the host can hold it, in out.
func (w *way) startCapture(ctx context.Context, out string) error {
	source, err := disk.OpenSource(w.source)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := host.CheckSpace(out, "OUTPUT_DIR", host.Need{Bytes: 2 * info.Size(), What: "the captured disk and its image"}); err != nil {
		return err
	}
	for _, program := range []string{"guestfish", "virt-sparsify"} { // where no playbook ran, nothing trimmed the disk
		if _, err := host.Look(program); err != nil && (program == "guestfish" || w.Config.Sparsify != "none") {
			return err
		}
	}
	if err := w.readPolicy(); err != nil {
		return err
	}
	if err := w.show(ctx, "accel", w.accelerator); err != nil {
		return err
	}
	return w.show(ctx, "source", func(ctx context.Context, p progress.Reporter) (string, error) {
		w.base = origin{Name: filepath.Base(w.source), Created: info.ModTime().UTC().Truncate(time.Second)}
		w.base.Digest, err = host.Digest(ctx, source, p)
		return w.base.Digest, err
	})
}

// CopyDisk copies the disk of a machine to out, a qcow2 image, where Capture cannot
// read the disk itself.
func (b *Build) CopyDisk(ctx context.Context, source, out string) error {
	w := b.way(nil)
	return w.show(ctx, "copy", func(ctx context.Context, p progress.Reporter) (string, error) {
		return "into " + filepath.Base(out), w.rooms.importDisk(ctx, source, out, p)
	})
}

// capture copies the machine's disk to out and takes from it what must not be in two
// machines.
func (w *way) capture(ctx context.Context, out string, p progress.Reporter) (_ result, err error) {
	c := w.Config
	defer func() {
		if err != nil { // it is somebody's disk, and serves no further run
			err = errors.Join(err, os.RemoveAll(out))
		}
	}()
	if err := w.rooms.importDisk(ctx, w.source, out, p); err != nil {
		return nil, err
	}
	if err := checkArchitecture(c.Architecture, out); err != nil {
		return nil, err
	}
	scratch, err := w.dir.Temp("capture")
	if err != nil {
		return nil, err
	}
	r := &captured{From: w.base, Built: time.Now().UTC().Truncate(time.Second)}
	r.Generalised, err = w.rooms.generalise(ctx, hygiene.GeneraliseOptions{
		Options: hygiene.Options{
			Disk: out, Format: disk.FormatQCOW2, Dir: scratch, BakedUser: c.BakeUser, Policy: w.policy, LibguestfsEnv: w.accel.LibguestfsEnv(),
		},
		VMUser: c.VMUser,
	}, p)
	if err != nil {
		return nil, err
	}
	r.From.Guest, r.From.Known = playbook.GuessGuest(r.System)
	if info, err := os.Stat(out); err == nil {
		r.Size = info.Size()
	}
	return r, nil
}

func (r *captured) String() string {
	return fmt.Sprintf("%s, %s repaired", r.System, text.Count(len(r.Repaired), "leftover"))
}

func (r *captured) fill(to *report.Report) {
	counts := map[string]int{}
	for _, f := range r.Repaired {
		counts[f.Rule]++
	}
	for _, rule := range slices.Sorted(maps.Keys(counts)) {
		to.Checks = append(to.Checks, report.Check{
			Group: "capture", Name: rule, OK: true, Detail: "repaired " + text.Count(counts[rule], "leftover") + " of the machine",
		})
	}
	to.Base = report.Base{Name: r.From.Name, Digest: r.From.Digest, Guest: r.From.Guest.Name}
	size(to, "captured", r.Size)
}

func (r *captured) leave(w *way) {
	w.base = r.From
	w.known = Sidecar{
		Digest: w.known.Digest, BaseName: r.From.Name, BaseDigest: r.From.Digest, Created: created(w.Config, r.From.Created),
		Architecture: w.Config.Architecture, Title: w.Config.ImageName, Version: w.Config.ImageTag,
		Built: r.Built, Guest: r.From.distribution(), Settings: w.lasting(),
	}
}
