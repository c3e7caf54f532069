package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

var (
	provisioning = stage{
		name: "provision", file: "provisioned.qcow2", inputs: (*way).provisionInputs,
		when: func(w *way) bool { return w.source == "" },
		run:  (*way).provision, empty: func() result { return new(provisioned) },
	}
	capturing = stage{
		name: "capture", file: "captured.qcow2", inputs: (*way).captureInputs,
		when: func(w *way) bool { return w.source != "" },
		run:  (*way).capture, empty: func() result { return new(captured) },
	}
	sparsifying = stage{
		name: "sparsify", file: "disk.qcow2", inputs: (*way).sparsifyInputs,
		run: (*way).sparsify, empty: func() result { return new(sparsified) },
	}
	scanning  = stage{name: "hygiene", run: (*way).scan}
	verifying = stage{
		name: "verify", inputs: (*way).verifyInputs,
		run: (*way).verify, empty: func() result { return new(verified) },
	}
	packing   = stage{name: "pack", run: (*way).pack}
	exporting = stage{name: "export", when: func(w *way) bool { return w.Config.Outputs != "" }, run: (*way).export}
	pushing   = stage{name: "push", when: (*way).pushes, run: (*way).push}
	signing   = stage{name: "sign", when: func(w *way) bool { return w.pushes() && w.signs() }, run: (*way).sign}
)

// stages are all, in their order. The finished disk is looked at at rest and in
// the guest that boots from it, side by side.
var stages = [][]stage{{provisioning, capturing}, {sparsifying}, {scanning, verifying}, {packing}, {exporting}, {pushing}, {signing}}

// provisioned is the result of provisioning.
type provisioned struct {
	Trimmed bool          `json:"trimmed"`
	Tasks   []report.Task `json:"tasks"`             // Ansible's
	Size    int64         `json:"size"`              // of the disk's file, in bytes
	Overlay bool          `json:"overlay,omitempty"` // the file holds what differs from the base
	Built   time.Time     `json:"built,omitzero"`    // when the playbook had run
}

// provision makes out: in a whole build an overlay of the base, where it can be
// one, else a disk of its own.
func (w *way) provision(ctx context.Context, out string, p progress.Reporter) (result, error) {
	c, began := w.Config, time.Now()
	overlay := w.whole && w.base.Format == disk.FormatQCOW2
	ran, err := w.rooms.provision(ctx, provision.Options{
		Base: w.base.Path, BaseFormat: w.base.Format, Output: out, WorkDir: w.logs("provision"), BackingFile: overlay,
		Playbook: w.playbook, Tools: w.tools, Accel: w.accel,
		MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, DiskSize: c.DiskSize,
		BuildUser: c.BuildUser, VMUser: c.VMUser, BakeUser: c.BakeUser, Desktop: c.Desktop, ExtraVars: c.ExtraVars,
		AptMirror: c.AptMirror, CAFile: c.CAFile, HTTPProxy: c.HTTPProxy, HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
		Mask: w.mask(), PackerLog: c.PackerLog, KeepOnError: w.KeepOnError, SSHTimeout: bootTimeout(c, w.accel),
	}, p)
	r := &provisioned{
		Trimmed: ran.Trimmed, Overlay: overlay, Tasks: ran.Tasks, Built: time.Now().UTC().Truncate(time.Second),
	}
	t := ran.Timings
	for _, part := range []struct {
		name string
		took time.Duration
	}{{"boot", t.Boot}, {"ansible", t.Ansible}, {"clean", t.Clean}, {"power off", t.PowerOff}} {
		if part.took > 0 {
			w.journal.part(part.name, began, part.took)
			began = began.Add(part.took)
		}
	}
	if info, err := os.Stat(out); err == nil {
		r.Size = info.Size()
	}
	return r, err
}

func (r *provisioned) String() string { return fmt.Sprintf("%d Ansible tasks", len(r.Tasks)) }

func (r *provisioned) fill(to *report.Report) {
	to.Tasks = r.Tasks
	name := "provisioned"
	if r.Overlay {
		name = "changes to it"
	}
	size(to, name, r.Size)
}

func (r *provisioned) leave(w *way) {
	if r.Overlay {
		w.backing = w.base.Path
	}
	w.known = Sidecar{
		Digest: w.known.Digest, Trimmed: r.Trimmed,
		BaseName: w.base.Name, BaseDigest: cmp.Or(w.base.Manifest, w.base.Digest),
		Source: publicSource(w.playbook.URL), Revision: w.playbook.Revision,
		Created: created(w.Config, w.base.Created), Architecture: w.Config.Architecture,
		Title: w.Config.ImageName, Version: w.Config.ImageTag,
		Inputs: w.imageInputs(), Built: r.Built, Guest: w.base.distribution(), Original: w.refreshed.original, Settings: w.lasting(),
	}
}

// How long a guest may take until ssh answers where BOOT_TIMEOUT is not set.
// A first boot takes about a minute under TCG; a large image on a loaded host,
// several.
const (
	bootTimeoutKVM = 5 * time.Minute
	bootTimeoutTCG = 15 * time.Minute
)

func bootTimeout(c settings.Config, a vm.Verdict) time.Duration {
	if a.Accelerator == "kvm" {
		return cmp.Or(c.BootTimeout, bootTimeoutKVM)
	}
	return cmp.Or(c.BootTimeout, bootTimeoutTCG)
}

// sparsified is the result of sparsifying.
type sparsified struct{ disk.SparsifyResult }

// sparsify writes the disk, which may be an overlay of its base, to out.
func (w *way) sparsify(ctx context.Context, out string, p progress.Reporter) (result, error) {
	c := w.Config
	if w.accel.Accelerator == "" && c.Sparsify != "none" && !w.known.Trimmed { // virt-sparsify boots an appliance
		if _, err := w.accelerator(ctx, p); err != nil {
			return nil, err
		}
	}
	done, err := w.rooms.sparsify(ctx, w.disk, out, disk.SparsifyOptions{
		Method: disk.Method(c.Sparsify), Compression: disk.Compression(c.Compression), Base: w.backing,
		Trimmed: w.known.Trimmed, LibguestfsEnv: w.accel.LibguestfsEnv(),
	}, p)
	if err != nil {
		return nil, err
	}
	return &sparsified{done}, nil
}

func (r *sparsified) String() string {
	return fmt.Sprintf("%s, %s to %s", r.Method, text.Size(r.Before.FileSize), text.Size(r.After.FileSize))
}

func (r *sparsified) fill(to *report.Report) {
	to.Image.VirtualSize = r.After.VirtualSize
	size(to, "sparsified", r.After.FileSize)
}

func (r *sparsified) leave(w *way) { w.known.Verified, w.known.Inventory = "", nil } // that was another file

// scanned is the result of a look at the disk at rest. It is not recorded: a build
// that goes on looks again.
type scanned struct {
	hygiene.Result
	gates []report.Check // of FAIL_ON_UPDATES and FAIL_ON_VULNERABILITIES
}

// scan looks at the disk at rest for what the build left in it, and for what is installed.
func (w *way) scan(ctx context.Context, path string, p progress.Reporter) (result, error) {
	info, err := w.rooms.disk(ctx, path)
	if err != nil {
		return nil, err
	}
	secrets, err := w.secrets()
	if err != nil {
		return nil, err
	}
	scratch, err := w.dir.Temp("hygiene")
	if err != nil {
		return nil, err
	}
	builder := w.Config.BuildUser
	if w.Config.BakeUser {
		builder = w.Config.VMUser
	}
	found, err := w.rooms.scan(ctx, hygiene.Options{
		Disk: path, Format: info.Format, Dir: scratch, BuildUser: builder, BakedUser: w.Config.BakeUser,
		Secrets: secrets, Policy: w.policy, LibguestfsEnv: w.accel.LibguestfsEnv(),
	}, p)
	if err == nil {
		err = w.noteChanges(ctx, found.Inventory)
	}
	r := scanned{Result: found}
	check, pending := w.checkUpdates(ctx, found.Inventory, p)
	if check != nil {
		r.gates = append(r.gates, *check)
	}
	checks, vulnerable := w.checkVulnerabilities(ctx, found.Inventory, scratch, p)
	r.gates = append(r.gates, checks...)
	return r, w.advise(together(together(err, pending), vulnerable))
}

func (r scanned) String() string { return fmt.Sprintf("%d rules, %d files", len(r.Rules), r.Files) }

func (r scanned) fill(to *report.Report) {
	to.Checks = append(to.Checks, r.gates...)
	for _, rule := range r.Rules {
		holds := true
		for _, f := range r.Findings {
			if f.Rule == rule.Name {
				holds = false
				to.Checks = append(to.Checks, report.Check{Group: "hygiene", Name: rule.Name, Detail: f.Path + ": " + f.Detail, Excused: f.Excused})
			}
		}
		if holds {
			to.Checks = append(to.Checks, report.Check{Group: "hygiene", Name: rule.Name, OK: true, Detail: rule.Demands})
		}
	}
}

func (r scanned) leave(w *way) { w.known.Inventory = &r.Inventory }

// advise has what was found in a captured machine corrected there: it has no playbook.
func (w *way) advise(err error) error {
	if f, ok := failure.In(err); ok && w.source != "" && len(f.Lines) > 0 {
		f.Try = "correct it in the machine, shut that down and capture it again; HYGIENE_ALLOW excuses findings of the gate"
	}
	return err
}

// verified is the result of a boot.
type verified struct{ verify.Result }

// verify boots an overlay of the disk.
func (w *way) verify(ctx context.Context, path string, p progress.Reporter) (result, error) {
	c := w.Config
	info, err := w.rooms.disk(ctx, path)
	if err != nil {
		return nil, err
	}
	size := info.VirtualSize
	if w.source != "" {
		size = 0 // a machine that was installed by hand may have something behind its root file system
	}
	var firmware disk.Firmware
	if w.Full {
		firmware, _ = disk.FirmwareOf(path) // a disk of which it cannot be read is not started by UEFI
	}
	seen, err := w.rooms.verify(ctx, verify.Options{
		Disk: path, Format: info.Format, VirtualSize: size, Dir: w.logs("verify"),
		MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, Accel: w.accel,
		BuildUser: c.BuildUser, VMUser: c.VMUser, BakedUser: c.BakeUser, Desktop: c.Desktop && c.CrownLabsMode, Persistent: w.Persistent,
		Full: w.Full, UEFI: firmware.UEFI, SecureBoot: firmware.SecureBoot,
		Excused: w.policy.Reason, Checks: w.playbook.Checks, Goss: w.tools.Goss,
		KeepOnError: w.KeepOnError, Timeout: bootTimeout(c, w.accel),
	}, p)
	return &verified{seen}, w.advise(err)
}

func (r *verified) String() string {
	return fmt.Sprintf("%d checks, ssh after %s, cloud-init done after %s", len(r.Checks), r.TimeToSSH.Round(time.Second), r.CloudInitDone.Round(time.Second))
}

func (r *verified) fill(to *report.Report) {
	to.Checks = append(to.Checks, r.Checks...)
	to.Boot, to.Packages = append(to.Boot, r.Boot...), append(to.Packages, r.Packages...)
	to.Pictures = append(to.Pictures, r.Pictures...)
}

func (r *verified) leave(w *way) { w.known.Verified = w.known.Digest }

// pack writes the disk as an OCI layout, which is there when it was inspected.
// Before a whole build sends it, the report is written: it is there where this
// run is killed, and another sends the image.
func (w *way) pack(ctx context.Context, path string, p progress.Reporter) (result, error) {
	if err := os.MkdirAll(filepath.Dir(w.Layout), 0o755); err != nil {
		return nil, err
	}
	m := w.metadata()
	if err := hint(w.Config, &m, path, w.known.Guest); err != nil {
		return nil, err
	}
	m.Accept = w.inspect
	done, err := w.rooms.pack(ctx, path, w.Layout, m, p)
	if err != nil {
		return nil, err
	}
	w.Reference, w.Digest = "oci:"+w.Layout+"@"+done.Digest, done.Digest
	w.journal.note(func(to *report.Report) { to.Image.DiskDigest = done.DiskDigest })
	if w.whole {
		bill, err := saveSBOM(w.Config.OutputDir, w.known)
		if err != nil {
			return nil, err
		}
		w.journal.note(func(to *report.Report) { to.SBOM = bill })
	}
	if w.whole && w.pushes() {
		_, err = w.outcome(report.Packed).Save(w.Config.OutputDir)
	}
	return line(fmt.Sprintf("%s, a layer of %s", w.Layout, text.Size(done.Layer.Size))), err
}

// export writes the disk into files of other forms.
func (w *way) export(ctx context.Context, path string, p progress.Reporter) (result, error) {
	c := w.Config
	dir, setting := c.OutputDir, "OUTPUT_DIR"
	if w.out != "" {
		dir, setting = w.out, "--output"
	}
	names := strings.Split(c.Outputs, ",")
	info, err := w.rooms.disk(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := host.CheckSpace(dir, setting, disk.ExportNeeds(names, info.FileSize)...); err != nil {
		return nil, err
	}
	done, err := w.rooms.export(ctx, path, w.known.Digest, dir, names, disk.Machine{
		Name:      fileName(cmp.Or(c.ImageName, w.known.Title, "disk")),
		MemoryMiB: c.MemoryMiB, CPUs: cmp.Or(c.CPUs, exportedCPUs), Distribution: w.known.Guest,
	}, p)
	if err != nil {
		return nil, err
	}
	var said []string
	w.journal.note(func(to *report.Report) {
		to.Files = nil
		for _, one := range done {
			to.Files = append(to.Files, report.File{Name: filepath.Base(one.Path), Digest: one.Digest, Bytes: one.Size})
			said = append(said, filepath.Base(one.Path)+" "+text.Size(one.Size))
		}
	})
	return line(strings.Join(said, ", ")), nil
}

// exportedCPUs are the processors of an appliance where CPUS is not set: those of the
// host that builds it say nothing.
const exportedCPUs = 2

// metadata is what the image says about itself. The settings win over what is
// known of the disk; what is not known is left out.
func (w *way) metadata() oci.Metadata {
	c, k := w.Config, w.known
	m := oci.Metadata{
		Created: created(c, k.Created), Architecture: c.Architecture,
		Title: cmp.Or(c.ImageName, k.Title), Version: cmp.Or(c.ImageTag, k.Version),
		Source: k.Source, Revision: k.Revision, BaseName: k.BaseName, BaseDigest: k.BaseDigest,
		Reference: c.Reference, Original: k.Original, Annotations: map[string]string{},
	}
	if k.IsVerified() {
		m.VerifiedDisk = k.Digest
	}
	if k.Inputs != "" {
		m.Annotations[oci.AnnotationInputs] = k.Inputs
	}
	if !k.Built.IsZero() {
		m.Annotations[oci.AnnotationBuilt] = k.Built.UTC().Format(time.RFC3339)
	}
	if len(k.Settings) > 0 {
		all, _ := json.Marshal(k.Settings) // texts have no errors
		m.Annotations[oci.AnnotationSettings] = string(all)
	}
	if w.base.Known {
		m.Annotations[oci.AnnotationGuest] = w.base.Guest.Name
	}
	return m
}

// created is SOURCE_DATE_EPOCH (reproducible-builds.org) where it is set, else
// the base's date: never the clock, so that the same build has the same digest.
func created(c settings.Config, base time.Time) time.Time {
	if seconds, err := strconv.ParseInt(c.SourceDateEpoch, 10, 64); err == nil {
		return time.Unix(seconds, 0)
	}
	return base
}

// hint names the instance type and the preference of KubeVirt's common instance
// types for a disk of a distribution ("debian", or empty where that is not
// known): the settings', or what the disk's firmware can be started with.
func hint(c settings.Config, m *oci.Metadata, path, distribution string) error {
	m.InstanceType, m.Preference = c.InstanceType, c.Preference
	if m.InstanceType == "" && distribution != "" {
		m.InstanceType = "u1.medium"
	}
	if m.Preference == "" && distribution != "" {
		firmware, err := disk.FirmwareOf(path)
		if err != nil {
			return fmt.Errorf("looking for the disk's firmware: %w", err)
		}
		m.Preference = oci.PreferenceFor(distribution, firmware)
	}
	for _, hint := range []*string{&m.InstanceType, &m.Preference} {
		if *hint == "none" {
			*hint = ""
		}
	}
	return nil
}

// inspect checks the packed image in dir, which is or will be the layout,
// against the contract of containerdisks; what others' images may lack, ours
// must have.
func (w *way) inspect(ctx context.Context, dir string) error {
	return w.show(ctx, "inspect", func(ctx context.Context, p progress.Reporter) (string, error) {
		image, err := w.rooms.inspect(ctx, dir, p)
		if err != nil {
			return "", err
		}
		image.Reference, w.Image = w.Layout, image
		w.journal.note(func(to *report.Report) {
			to.Image.Digest = image.Digest
			for _, l := range image.Layers {
				size(to, "layer", l.Size)
			}
			for _, c := range image.Checks {
				holds := c.Level == contract.OK || c.Level == contract.Note
				to.Checks = append(to.Checks, report.Check{Group: "containerdisk", Name: c.Check, OK: holds, Detail: c.Detail})
			}
		})
		return fmt.Sprintf("%d checks", len(image.Checks)), image.Err(contract.Warning)
	})
}

// push pushes the layout.
func (w *way) push(ctx context.Context, _ string, p progress.Reporter) (result, error) {
	login, err := w.login()
	if err != nil {
		return nil, err
	}
	reference, err := w.rooms.push(ctx, w.Layout, w.address, login, p)
	if err != nil {
		return nil, err
	}
	w.Reference = reference
	return line(reference), nil
}
