package pipeline

import (
	"bytes"
	"cmp"
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

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// journal gathers the report while the stages run, some of them side by side:
// rows are what ran in this process, report is everything else.
type journal struct {
	mu     sync.Mutex
	report report.Report
	rows   []*row
}

type row struct {
	report.Stage
	began time.Time
}

// begin notes which image is to be made, and by which settings.
func (j *journal) begin(b *Build) {
	j.report = report.Report{
		Schema: report.Schema, Began: time.Now().UTC(), Version: b.Version, Settings: givenSettings(b.Settings),
		Image: report.Image{Name: b.Config.ImageName, Tag: b.Config.ImageTag, Reference: b.Config.Reference},
	}
}

// takeUp goes on with the report that an earlier stage left beside its disk.
func (j *journal) takeUp(earlier json.RawMessage) {
	var r report.Report
	if json.Unmarshal(earlier, &r) != nil || r.Schema != report.Schema {
		return // of another version: this stage's part is reported all the same
	}
	r.Checks, r.Boot, r.Pictures, r.Packages = nil, nil, nil, nil // what looks into a disk finds it anew
	j.report = r
}

// note changes the report.
func (j *journal) note(change func(*report.Report)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&j.report)
}

// part notes a part of a stage.
func (j *journal) part(name string, began time.Time, took time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rows = append(j.rows, &row{report.Stage{Name: "↳ " + name, Took: took}, began})
}

// stage notes that a stage begins, and returns what notes its end. Of stages
// that run side by side the first that fails may stop the others, which have not
// failed themselves.
func (j *journal) stage(name string) (end func(result string, stopped bool, err error)) {
	r := &row{report.Stage{Name: name}, time.Now()}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rows = append(j.rows, r)
	return func(result string, stopped bool, err error) {
		j.mu.Lock()
		defer j.mu.Unlock()
		r.Took, r.Result = time.Since(r.began), result
		switch {
		case stopped && slices.ContainsFunc(j.rows, func(r *row) bool { return r.Failure != "" }):
			r.Stopped, r.Result = true, "stopped"
		case err != nil:
			r.Failure = err.Error()
		}
	}
}

// reused notes that an earlier run did the work of a stage that runs.
func (j *journal) reused(name string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.rows {
		r.Reused = r.Reused || r.Name == name
	}
}

// compose is the report as it is now, without secrets.
func (j *journal) compose(mask *strings.Replacer) *report.Report {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.report
	r.Stages = slices.Clone(r.Stages)
	for _, own := range j.rows {
		own.Start = own.began.Sub(r.Began)
		r.Stages = append(r.Stages, own.Stage)
	}
	r.Mask(mask)
	return &r
}

// sources notes what the image is made from.
func (w *way) sources(ctx context.Context) {
	qemu := w.rooms.qemu(ctx, w.Config.Architecture)
	w.journal.note(func(to *report.Report) {
		to.Image.Inputs = w.imageInputs()
		to.Base = report.Base{Name: w.base.Name, Digest: w.base.Digest, Guest: w.base.Guest.Name, SignedBy: w.base.SignedBy, Release: w.base.Release}
		to.Playbook = report.Playbook{File: w.playbook.File, Source: publicSource(w.playbook.URL), Revision: w.playbook.Revision}
		to.Tools = map[string]string{"ansible-core": w.controller, "qemu": qemu, "diskforge": w.Version}
		for program, version := range w.tools.Versions {
			to.Tools[program] = version
		}
		if info, err := os.Stat(w.base.Path); err == nil {
			size(to, "base", info.Size())
		}
	})
}

// qemuVersion is that of the host's QEMU for an architecture, or empty where it is not known.
func qemuVersion(ctx context.Context, architecture string) string {
	out, err := host.Output(ctx, host.Cmd{Program: arch.Of(architecture).QEMU, Args: []string{"--version"}})
	if err != nil {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(out), "QEMU emulator version "), " ")
	return strings.TrimSpace(version)
}

// givenSettings are those that were given and differ from their defaults. No
// password is among them, and extra variables are only said to be given.
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

// publicSource is what may be said of where playbooks came from: not a folder
// of this host.
func publicSource(source string) string {
	if strings.HasPrefix(source, "/") {
		return ""
	}
	return publicURL(source)
}

// size notes how large the disk is at one point of its way.
func size(to *report.Report, name string, n int64) {
	for i := range to.Sizes {
		if to.Sizes[i].Name == name {
			to.Sizes[i].Bytes = n
			return
		}
	}
	to.Sizes = append(to.Sizes, report.Size{Name: name, Bytes: n})
}

// outcome is the report of what came out so far.
func (w *way) outcome(outcome string) *report.Report {
	w.journal.note(func(to *report.Report) {
		to.Outcome, to.Image.Reference = outcome, cmp.Or(w.Reference, to.Image.Reference)
	})
	return w.journal.compose(w.mask())
}

// conclude writes the report of a whole build beside the image and shows it in
// short. It returns err, the build's own, with what went wrong here.
func (w *way) conclude(err error) error {
	outcome := report.Packed
	switch {
	case err != nil:
		outcome = report.Failed
		w.journal.note(func(to *report.Report) {
			to.Failure = strings.Split(err.Error(), "\n")
			if f, ok := failure.In(err); ok {
				to.Failure, to.Log = append(to.Failure, f.Lines...), f.Log
			}
		})
	case w.pushes():
		outcome = report.Published
	}
	r := w.outcome(outcome)
	page, errSave := r.Save(w.Config.OutputDir)
	if errSave != nil {
		return errors.Join(err, fmt.Errorf("writing the report: %w", errSave))
	}
	w.UI.Show(func(to io.Writer, width int, colour bool) error { return r.WriteTerminal(to, width, colour, page) })
	return errors.Join(err, summarise(r))
}

// sent completes the report that an earlier run wrote of the image that this one
// sent. The report of another image stays as it is.
func (w *way) sent() error {
	r, err := report.Saved(w.Config.OutputDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !strings.HasSuffix(w.Reference, "@"+r.Image.Digest) {
		return err
	}
	r.Outcome, r.Image.Reference, r.Failure, r.Log = report.Published, w.Reference, nil, ""
	r.Stages = slices.DeleteFunc(r.Stages, func(s report.Stage) bool { return s.Failure != "" })
	w.journal.note(func(to *report.Report) { *to = *r })
	_, err = w.journal.compose(w.mask()).Save(w.Config.OutputDir)
	return err
}

// saveSBOM writes what is installed on the disk into the report's directory, and
// returns what the report says of it: nothing, where the disk was not looked into.
func saveSBOM(dir string, disk Sidecar) (bill report.SBOM, err error) {
	of := disk.Inventory
	if of == nil {
		return bill, nil
	}
	if err := sbom.Save(dir, sbom.Disk{Name: disk.Title, Digest: disk.Digest, Created: disk.Created}, *of); err != nil {
		return bill, fmt.Errorf("writing the SBOM: %w", err)
	}
	if of.None != "" {
		return report.SBOM{None: of.None}, nil
	}
	return report.SBOM{Packages: len(of.Packages), Files: []string{sbom.SPDXFile, sbom.CycloneDXFile}}, nil
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

// ReportTo writes the report of the disk, as the stages that made it left it in DISK.json,
// into a directory: report.html, report.json and summary.md, and the SBOM.
func ReportTo(ctx context.Context, disk, dir string) (string, error) {
	known, err := ReadSidecar(ctx, disk, progress.Discard.Warn)
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
	if r.SBOM, err = saveSBOM(dir, known); err != nil {
		return "", err
	}
	page, err := r.Save(dir)
	if err != nil {
		return "", err
	}
	return page, host.WriteFile(filepath.Join(dir, "summary.md"), 0o644, r.WriteMarkdown)
}
