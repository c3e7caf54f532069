package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// record gathers the report while the stages run, some of them side by side.
type record struct {
	mu      sync.Mutex
	report  report.Report
	earlier int // stages that were recalled: they stand before this run's
}

// note changes the report.
func (r *record) note(change func(*report.Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.report.Began.IsZero() {
		r.report.Schema, r.report.Began = report.Schema, time.Now().UTC()
	}
	change(&r.report)
}

// begin notes that a stage begins, and returns what notes its end. Of the
// stages that run side by side the first that fails stops the others, which
// have not failed themselves.
func (r *record) begin(name string) (end func(result string, stopped bool, err error)) {
	began, i := time.Now(), 0
	r.note(func(to *report.Report) {
		i = len(to.Stages) - r.earlier
		to.Stages = append(to.Stages, report.Stage{Name: name, Start: began.Sub(to.Began)})
	})
	return func(result string, stopped bool, err error) {
		r.note(func(to *report.Report) {
			s := &to.Stages[r.earlier+i]
			s.Took, s.Result = time.Since(began), result
			failed := func(s report.Stage) bool { return s.Failure != "" }
			switch {
			case stopped && slices.ContainsFunc(to.Stages[r.earlier:], failed):
				s.Stopped, s.Result = true, "stopped"
			case err != nil:
				s.Failure = err.Error()
			}
		})
	}
}

// reuse notes that an earlier run did the work of a stage that runs.
func (r *record) reuse(name string) {
	r.note(func(to *report.Report) {
		for i := range to.Stages {
			if to.Stages[i].Name == name {
				to.Stages[i].Reused = true
			}
		}
	})
}

// named notes which image is to be made, and by which settings.
func (b *Build) named() {
	b.record.note(func(to *report.Report) {
		to.Version, to.Settings = b.Version, givenSettings(b.Settings)
		to.Image.Name, to.Image.Tag, to.Image.Reference = b.Config.ImageName, b.Config.ImageTag, b.Config.Reference
	})
}

// sources notes what the image is made from.
func (b *Build) sources(ctx context.Context, r ready) {
	qemu := qemuVersion(ctx)
	b.named()
	b.record.note(func(to *report.Report) {
		to.Image.Inputs = b.imageInputs(r.base.Inputs, r.playbookInputs.Digest, r.controller)
		to.Base = report.Base{Name: r.base.Name, Digest: r.base.Digest, Guest: r.base.Guest.Name}
		to.Playbook = report.Playbook{File: r.playbook.File, Source: publicSource(r.playbook.URL), Revision: r.playbook.Revision}
		to.Tools = map[string]string{"ansible-core": r.controller, "qemu": qemu, "diskforge": b.Version}
		for program, version := range r.tools.Versions {
			to.Tools[program] = version
		}
		if info, err := os.Stat(r.base.Path); err == nil {
			size(to, "base", info.Size())
		}
	})
}

// qemuVersion is the host's, or empty where it does not tell.
func qemuVersion(ctx context.Context) string {
	out, err := host.Output(ctx, host.Cmd{Program: "qemu-system-x86_64", Args: []string{"--version"}})
	if err != nil {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "QEMU emulator version "), " ")
	return strings.TrimSpace(version)
}

// settings are those that were given and differ from their defaults. No
// password is among them, and of extra variables only the names are told.
func givenSettings(s settings.Settings) []report.Setting {
	var all []report.Setting
	for _, f := range settings.Fields() {
		value := f.Value(s)
		if f.Secret || value == "" || value == f.Default {
			continue
		}
		if f.Env == "EXTRA_VARS" {
			value = "(given)"
		}
		all = append(all, report.Setting{Name: f.Env, Value: publicURL(value)})
	}
	return all
}

// publicURL is a setting's value without what may be secret in its URL.
func publicURL(value string) string {
	if address, isList := strings.CutPrefix(value, "file:http"); isList { // ISO_CHECKSUM
		return "file:" + text.URL("http"+address)
	}
	return text.URL(value)
}

// publicSource is what may be told of where playbooks came from: not a folder
// of this host.
func publicSource(source string) string {
	if strings.HasPrefix(source, "/") {
		return ""
	}
	return publicURL(source)
}

// size notes how large the disk is at one point of its way.
func size(to *report.Report, name string, bytes int64) {
	for i := range to.Sizes {
		if to.Sizes[i].Name == name {
			to.Sizes[i].Bytes = bytes
			return
		}
	}
	to.Sizes = append(to.Sizes, report.Size{Name: name, Bytes: bytes})
}

// tasks are Ansible's as the report has them.
func tasks(ran []provision.Task) []report.Task {
	all := make([]report.Task, 0, len(ran))
	for _, t := range ran {
		status := report.OK
		switch {
		case t.Failed:
			status = report.Failed
		case t.Changed:
			status = report.Changed
		case t.Skipped:
			status = report.Skipped
		}
		all = append(all, report.Task{Name: t.Name, Took: t.Duration, Status: status, Detail: t.Message})
	}
	return all
}

// phases notes the parts of a provisioning that began after start.
func (b *Build) phases(start time.Time, t provision.Timings) {
	b.record.note(func(to *report.Report) {
		at := start.Sub(to.Began)
		for _, p := range []struct {
			name string
			took time.Duration
		}{{"boot", t.Boot}, {"ansible", t.Ansible}, {"clean", t.Clean}, {"power off", t.PowerOff}} {
			if p.took > 0 {
				to.Stages = append(to.Stages, report.Stage{Name: "↳ " + p.name, Start: at, Took: p.took})
				at += p.took
			}
		}
	})
}

// provisionedDisk notes what a provisioning did.
func (b *Build) provisionedDisk(p provisioned) {
	b.record.note(func(to *report.Report) {
		to.Tasks = p.Tasks
		name := "provisioned"
		if p.Overlay {
			name = "changes to it"
		}
		size(to, name, p.Size)
	})
}

// sparsifiedDisk notes what sparsifying did.
func (b *Build) sparsifiedDisk(s disk.SparsifyResult) {
	b.record.note(func(to *report.Report) {
		to.Image.VirtualSize = s.After.VirtualSize
		size(to, "sparsified", s.After.FileSize)
	})
}

// cleanDisk notes what the hygiene gate found.
func (b *Build) cleanDisk(h hygiene.Result) {
	found := map[string][]hygiene.Finding{}
	for _, f := range h.Findings {
		found[f.Rule] = append(found[f.Rule], f)
	}
	b.record.note(func(to *report.Report) {
		for _, rule := range h.Rules {
			if len(found[rule.Name]) == 0 {
				to.Checks = append(to.Checks, report.Check{Group: "hygiene", Name: rule.Name, OK: true, Detail: rule.Demands})
			}
			for _, f := range found[rule.Name] {
				to.Checks = append(to.Checks, report.Check{Group: "hygiene", Name: rule.Name, Detail: f.Path + ": " + f.Detail, Excused: f.Excused})
			}
		}
	})
}

// inspectedImage notes what the containerdisk is.
func (b *Build) inspectedImage(i *contract.Report) {
	b.record.note(func(to *report.Report) {
		to.Image.Digest = i.Digest
		for _, l := range i.Layers {
			size(to, "layer", l.Size)
		}
		for _, c := range i.Checks {
			to.Checks = append(to.Checks, report.Check{Group: "containerdisk", Name: c.Check, OK: c.Level == contract.OK || c.Level == contract.Note, Detail: c.Detail})
		}
	})
}

// verifiedDisk notes what a boot showed.
func (b *Build) verifiedDisk(v verify.Result) {
	b.record.note(func(to *report.Report) {
		for _, c := range v.Checks {
			to.Checks = append(to.Checks, report.Check{Group: c.Group, Name: c.Name, OK: c.OK, Detail: c.Detail})
		}
		for _, m := range v.Boot {
			to.Boot = append(to.Boot, report.Moment{Name: m.Name, At: m.At})
		}
		for _, p := range v.Packages {
			to.Packages = append(to.Packages, report.Package{Name: p.Name, Version: p.Version})
		}
		for _, p := range v.Pictures {
			to.Pictures = append(to.Pictures, report.Picture{Title: p.Title, PNG: p.PNG, Width: p.Width, Height: p.Height})
		}
	})
}

// conclude writes the report beside the image and shows it in short. It
// returns err, the build's own, with what went wrong here.
func (b *Build) conclude(result Result, err error) error {
	b.record.note(func(to *report.Report) {
		switch {
		case err != nil:
			to.Outcome, to.Failure = report.Failed, evidence(err)
			if f, ok := failure.In(err); ok {
				to.Log = f.Log
			}
		case b.pushes():
			to.Outcome, to.Image.Reference = report.Published, result.Reference
		default:
			to.Outcome, to.Image.Reference = report.Packed, result.Reference
		}
	})
	b.record.note(func(to *report.Report) { to.Mask(b.mask()) })
	r := &b.record.report
	page, errSave := r.Save(b.Config.OutputDir)
	if errSave != nil {
		return errors.Join(err, fmt.Errorf("writing the report: %w", errSave))
	}
	b.UI.Show(func(w io.Writer, width int, colour bool) error { return r.WriteTerminal(w, width, colour, page) })
	return errors.Join(err, summarise(r))
}

// tellPacked writes the report of an image that is about to be pushed: it is
// there where this run is killed, and another sends the image.
func (b *Build) tellPacked(reference string) error {
	b.record.note(func(to *report.Report) {
		to.Outcome, to.Image.Reference = report.Packed, reference
		to.Mask(b.mask())
	})
	_, err := b.record.report.Save(b.Config.OutputDir)
	return err
}

// tellSent completes the report that an earlier run wrote of the image that
// this one sent. The report of another image stays as it is.
func (b *Build) tellSent(reference string) error {
	f, err := os.Open(filepath.Join(b.Config.OutputDir, report.DataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := report.Read(f)
	if err != nil || !strings.HasSuffix(reference, "@"+r.Image.Digest) {
		return err
	}
	r.Outcome, r.Image.Reference, r.Failure, r.Log = report.Published, reference, nil, ""
	r.Stages = slices.DeleteFunc(r.Stages, func(s report.Stage) bool { return s.Failure != "" })
	b.record.note(func(sent *report.Report) {
		for _, s := range sent.Stages {
			s.Start += sent.Began.Sub(r.Began)
			r.Stages = append(r.Stages, s)
		}
	})
	_, err = r.Save(b.Config.OutputDir)
	return err
}

// evidence is an error in the lines of a report.
func evidence(err error) []string {
	lines := strings.Split(err.Error(), "\n")
	if f, ok := failure.In(err); ok {
		lines = append(lines, f.Lines...)
	}
	return lines
}

// summarise adds the report to the job summary where GitHub Actions runs us.
func summarise(r *report.Report) error {
	name := os.Getenv("GITHUB_STEP_SUMMARY")
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("the job summary: %w", err)
	}
	return errors.Join(r.WriteMarkdown(f), f.Close())
}

// recall takes up the report that an earlier stage left beside its disk.
func (b *Build) recall(text json.RawMessage) {
	var earlier report.Report
	if json.Unmarshal(text, &earlier) != nil || earlier.Schema != report.Schema {
		return // of another version: this stage's part is told all the same
	}
	b.record.note(func(to *report.Report) {
		later := to.Began.Sub(earlier.Began)
		b.record.earlier += len(earlier.Stages)
		for _, s := range to.Stages {
			s.Start += later
			earlier.Stages = append(earlier.Stages, s)
		}
		// What looks into a disk tells it anew.
		earlier.Checks, earlier.Boot, earlier.Pictures, earlier.Packages = nil, nil, nil, nil
		*to = earlier
	})
}

// told is the report for the next stage, to be kept beside the disk.
func (b *Build) told(outcome string) (json.RawMessage, error) {
	b.record.note(func(to *report.Report) {
		to.Outcome = outcome
		to.Mask(b.mask())
	})
	return json.Marshal(&b.record.report)
}

// ReportTo writes the report of the disk, as the stages that made it told it,
// into a directory: report.html, report.json and summary.md.
func (b *Build) ReportTo(ctx context.Context, disk, dir string) (string, error) {
	known, err := ReadSidecar(ctx, disk, progress.Discard)
	if err != nil {
		return "", err
	}
	if len(known.Report) == 0 {
		return "", failure.New("nothing is known of "+disk, "give a disk that diskforge made, with the DISK.json that lies beside it")
	}
	r, err := report.Read(bytes.NewReader(known.Report))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	page, err := r.Save(dir)
	if err != nil {
		return "", err
	}
	return page, host.WriteFile(filepath.Join(dir, "summary.md"), 0o644, r.WriteMarkdown)
}
