package pipeline

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/accel"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// provisioned is what later stages want to know of a provisioned disk.
type provisioned struct {
	Trimmed bool          `json:"trimmed"`
	Tasks   []report.Task `json:"tasks"`             // Ansible's
	Size    int64         `json:"size"`              // of the disk's file, in bytes
	Overlay bool          `json:"overlay,omitempty"` // the file holds what differs from the base
	// Built is when the playbook had run.
	Built time.Time `json:"built,omitzero"`
}

// provision makes out: an overlay of the base where backing is true and the
// base can be one, else a disk of its own.
func (b *Build) provision(ctx context.Context, r ready, out, work string, backing bool, p progress.Reporter) (provisioned, error) {
	c, began := b.Config, time.Now()
	result, err := provision.Run(ctx, provision.Options{
		Base: r.base.Path, BaseFormat: r.base.Format, Output: out, WorkDir: work,
		BackingFile: backing && r.base.Format == disk.FormatQCOW2,
		Playbook:    r.playbook, Tools: r.tools, Accel: r.accel,
		MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, DiskSize: c.DiskSize,
		BuildUser: c.BuildUser, VMUser: c.VMUser, BakeUser: c.BakeUser, Desktop: c.Desktop, ExtraVars: c.ExtraVars,
		AptMirror: c.AptMirror, CAFile: c.CAFile, HTTPProxy: c.HTTPProxy, HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
		Mask: b.mask(), PackerLog: c.PackerLog, KeepOnError: b.KeepOnError, SSHTimeout: b.bootTimeout(r.accel),
	}, p)
	made := provisioned{Trimmed: result.Trimmed, Overlay: backing && r.base.Format == disk.FormatQCOW2, Tasks: tasks(result.Tasks), Built: time.Now().UTC().Truncate(time.Second)}
	b.phases(began, result.Timings)
	if info, errStat := os.Stat(out); errStat == nil {
		made.Size = info.Size()
	}
	b.provisionedDisk(made) // of one that failed, too
	return made, err
}

// How long a guest may take until ssh answers where BOOT_TIMEOUT is not set.
// A first boot takes about a minute under TCG; a large image on a loaded host,
// several.
const (
	bootTimeoutKVM = 5 * time.Minute
	bootTimeoutTCG = 15 * time.Minute
)

func (b *Build) bootTimeout(a accel.Verdict) time.Duration {
	switch {
	case b.Config.BootTimeout > 0:
		return b.Config.BootTimeout
	case a.Accelerator == "kvm":
		return bootTimeoutKVM
	}
	return bootTimeoutTCG
}

// sparsify writes the disk in, which may be an overlay of base, to out.
func (b *Build) sparsify(ctx context.Context, a accel.Verdict, base, in, out string, trimmed bool, p progress.Reporter) (disk.SparsifyResult, error) {
	return disk.Sparsify(ctx, in, out, disk.SparsifyOptions{
		Method: disk.Method(b.Config.Sparsify), Compression: disk.Compression(b.Config.Compression), Base: base,
		Trimmed: trimmed, LibguestfsEnv: a.LibguestfsEnv(),
	}, p)
}

func (b *Build) verify(ctx context.Context, r ready, path, work string, p progress.Reporter) (verify.Result, error) {
	c := b.Config
	info, err := disk.Inspect(ctx, path)
	if err != nil {
		return verify.Result{}, err
	}
	result, err := verify.Run(ctx, verify.Options{
		Disk: path, Format: info.Format, VirtualSize: info.VirtualSize, Dir: work,
		MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, Accel: r.accel,
		BuildUser: c.BuildUser, VMUser: c.VMUser, BakedUser: c.BakeUser, Desktop: c.Desktop, Full: b.Full,
		Excused: r.policy.Reason, Checks: r.playbook.Checks, Goss: r.tools.Goss,
		KeepOnError: b.KeepOnError, Timeout: b.bootTimeout(r.accel),
	}, p)
	if err != nil {
		b.verifiedDisk(result) // a step that failed tells no result
	}
	return result, err
}

// over is the path of the base that the disk is an overlay of, or empty.
func (p provisioned) over(base origin) string {
	if p.Overlay {
		return base.Path
	}
	return ""
}

// String says in a line what provisioning did.
func (p provisioned) String() string { return fmt.Sprintf("%d Ansible tasks", len(p.Tasks)) }

// sparsified says in a line what sparsifying did.
func sparsified(s disk.SparsifyResult) string {
	return fmt.Sprintf("%s, %s to %s", s.Method, text.Size(s.Before.FileSize), text.Size(s.After.FileSize))
}

// summary says in a line what verify found.
func summary(v verify.Result) string {
	return fmt.Sprintf("%d checks, ssh after %s, cloud-init done after %s", len(v.Checks), v.TimeToSSH.Round(time.Second), v.CloudInitDone.Round(time.Second))
}

// metadata is what the image says about itself. Built is when its playbook had
// run.
func (b *Build) metadata(r ready, built time.Time) oci.Metadata {
	m := oci.Metadata{
		Created: created(r.base.Created), Architecture: b.Config.Architecture,
		Title: b.Config.ImageName, Version: b.Config.ImageTag,
		Source: publicSource(r.playbook.URL), Revision: r.playbook.Revision,
		BaseName: r.base.Name, BaseDigest: first(r.base.Manifest, r.base.Digest),
		Annotations: annotations(b.imageInputs(r.base.Inputs, r.playbookInputs.Digest, r.controller), built),
		Reference:   b.Config.Reference,
	}
	if r.base.Known {
		m.Annotations[oci.AnnotationGuest] = r.base.Guest.Name
	}
	return m
}

// annotations are diskforge's own; what is not known is left out.
func annotations(inputs string, built time.Time) map[string]string {
	set := map[string]string{}
	if inputs != "" {
		set[oci.AnnotationInputs] = inputs
	}
	if !built.IsZero() {
		set[oci.AnnotationBuilt] = built.UTC().Format(time.RFC3339)
	}
	return set
}

// hint names the instance type and the preference of KubeVirt's common instance
// types for a disk of a distribution ("debian", or empty where that is not
// known): the settings', or what the disk's firmware can be started with.
func (b *Build) hint(m *oci.Metadata, path, distribution string) error {
	const none = "none"
	m.InstanceType, m.Preference = b.Config.InstanceType, b.Config.Preference
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
		if *hint == none {
			*hint = ""
		}
	}
	return nil
}

// distribution is that of the base, in lower case, or empty.
func (o origin) distribution() string {
	if !o.Known {
		return ""
	}
	family, _, _ := strings.Cut(o.Guest.Name, " ")
	return strings.ToLower(family)
}

// created is SOURCE_DATE_EPOCH (reproducible-builds.org) where it is set, else
// the base's date: never the clock, so that the same build has the same digest.
func created(base time.Time) time.Time {
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(seconds, 0)
	}
	return base
}

// push pushes the layout and returns its reference with digest.
func (b *Build) push(ctx context.Context, layout, reference string) (pushed string, err error) {
	options, err := b.RegistryOptions()
	if err != nil {
		return "", err
	}
	err = b.stage(ctx, stagePush, func(ctx context.Context, p progress.Reporter) (string, error) {
		pushed, err = registry.Push(ctx, layout, reference, options, p)
		return pushed, err
	})
	return pushed, err
}

// checkRegistry asks the registry, before anything slow starts, whether we may
// push.
func (b *Build) checkRegistry(ctx context.Context) error {
	if !b.pushes() {
		return nil
	}
	options, err := b.RegistryOptions()
	if err != nil {
		return err
	}
	return b.stage(ctx, "registry", func(ctx context.Context, p progress.Reporter) (string, error) {
		return "accepts pushes to " + b.Config.Reference, registry.CheckAccess(ctx, b.Config.Reference, options)
	})
}

// maxPassword bounds the password file, in bytes; some registries' passwords
// are JSON keys of a few KiB.
const maxPassword = 64 << 10

// RegistryOptions say how the settings reach a registry, with the password read.
func (b *Build) RegistryOptions() (registry.Options, error) {
	c := b.Config
	o := registry.Options{
		Username: c.RegistryUser, Password: string(c.RegistryPass),
		Insecure: c.RegistryInsecure, CAFile: c.CAFile, UserAgent: "diskforge/" + b.Version,
	}
	if c.RegistryPassFile == "" {
		return o, nil
	}
	var err error
	o.Password, err = b.passFile.read(c.RegistryPassFile, c.RegistryUser)
	return o, err
}

// passFile is a file with a password, which is read once: it may be a pipe.
type passFile struct {
	once     sync.Once
	password string
	err      error
}

func (f *passFile) read(name, user string) (string, error) {
	f.once.Do(func() {
		text, err := host.ReadFile(name, maxPassword)
		if err != nil {
			f.err = failure.Wrap(err, "REGISTRY_PASS_FILE", "")
			return
		}
		f.password = strings.TrimRight(strings.TrimPrefix(string(text), "\ufeff"), "\r\n")
		if f.password == "" {
			f.err = failure.New("REGISTRY_PASS_FILE: "+name+" holds no password", "put the password of "+user+" into it")
		}
	})
	return f.password, f.err
}
