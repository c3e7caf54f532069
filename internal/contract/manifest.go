package contract

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// Manifests says which Kubernetes objects are written for an image, and with
// what in them. The zero value of a field but Image is its default.
type Manifests struct {
	// Image is where nodes and CDI get it, REGISTRY/REPOSITORY with :TAG, @DIGEST or
	// both. The objects name it by the report's digest.
	Image string
	// Tag is one that moves: a DataImportCron polls it. A digest does not work there
	// (CDI's issue 2689).
	Tag string

	Kinds     []string // names of ManifestKinds; none: all that the image and the other fields allow
	Name      string   // a DNS-1123 label; empty: made of the image's
	Namespace string   // of volumes and machines; empty: the workspace's, or default
	CloneTo   []string // namespaces that may clone the volume

	MemoryMiB, CPUs int  // of a machine without an instance type; 0: 2048 MiB, 2 processors
	Desktop         bool // the guest serves one on port 6080

	VolumeMode    string // Block or Filesystem; empty: Block
	StorageClass  string // empty: the cluster's default
	PullSecret    string // with what KubeVirt and CDI take to log in; see docs/kubernetes.md
	CertConfigMap string // with the authority of the registry's certificate, for CDI

	Workspace string // of CrownLabs, whose Templates need one
	DiskURL   string // where the disk itself can be downloaded, for CrownLabs' CloudVM
}

// Manifest is the objects of one kind.
type Manifest struct {
	Kind string // one of ManifestKinds
	YAML string // documents, each below a comment that says what it is for
}

// manifestKind is something that can be written for an image.
type manifestKind struct {
	name  string
	write func(*writer)
	given func(Manifests) bool // whether there is what it needs; nil: it needs nothing
	needs string
	// golden starts from the volume that the kind datavolume imports.
	golden bool
	// bios is for machines that CrownLabs makes: it sets no firmware, and KubeVirt's
	// own is BIOS.
	bios bool
}

// manifestKinds stand in the order in which they can be applied.
var manifestKinds = []manifestKind{
	{name: kindVolume, write: (*writer).volume},
	{name: kindCron, write: (*writer).cron, given: func(m Manifests) bool { return m.Tag != "" },
		needs: "an image that is named by a tag, and not by a digest: CDI polls the tag (its issue 2689)"},
	{name: kindClone, write: (*writer).cloneRights, given: func(m Manifests) bool { return len(m.CloneTo) > 0 },
		needs: "--clone-to with the namespaces that may clone"},
	{name: "vm", write: (*writer).machine},
	{name: "vm-persistent", write: (*writer).persistentMachine, golden: true},
	{name: "crownlabs-vm", write: (*writer).crownlabsVM, bios: true, given: inWorkspace, needs: "--workspace"},
	{name: "crownlabs-localvm", write: (*writer).crownlabsLocalVM, bios: true, golden: true, given: inWorkspace, needs: "--workspace"},
	{name: "crownlabs-cloudvm", write: (*writer).crownlabsCloudVM, bios: true,
		given: func(m Manifests) bool { return inWorkspace(m) && m.DiskURL != "" },
		needs: "--workspace, and --disk-url with where the disk itself is downloaded, which is not the containerdisk"},
}

// MovingTag is the tag that CrownLabs takes for no version: it moves.
const MovingTag = "latest"

const (
	kindVolume = "datavolume"
	kindCron   = "import-cron"
	kindClone  = "clone-rbac"
)

func inWorkspace(m Manifests) bool { return m.Workspace != "" }

func (k manifestKind) possible(m Manifests) bool { return k.given == nil || k.given(m) }

// ManifestKinds are the names of what can be written for an image.
func ManifestKinds() (names []string) {
	for _, k := range manifestKinds {
		names = append(names, k.name)
	}
	return names
}

// SplitTag splits a reference into its repository and a tag that a
// DataImportCron can poll: none where a digest pins the image.
func SplitTag(ref string) (repository, tag string) {
	repository, _, pinned := strings.Cut(ref, "@")
	if i := strings.LastIndex(repository, ":"); i > strings.LastIndex(repository, "/") {
		repository, tag = repository[:i], repository[i+1:]
	}
	if pinned {
		tag = ""
	}
	return repository, tag
}

// Names of Kubernetes' objects: labels of RFC 1123, and some of them with dots.
var (
	objectLabel    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	workspaceLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$`) // workspace- stands before it
	objectDots     = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	notInLabels    = regexp.MustCompile(`[^a-z0-9]+`)
)

// Check says in an error what of the fields cannot be. The image is not looked at.
func (m Manifests) Check() error {
	const plain, dotted = "at most 63 lower-case letters, digits and '-', a letter or digit at both ends", "lower-case letters, digits, '-' and '.'"
	for _, n := range []struct {
		flag   string
		form   *regexp.Regexp
		takes  string
		values []string
	}{
		{"--name", objectLabel, plain, []string{m.Name}}, {"--namespace", objectLabel, plain, []string{m.Namespace}},
		{"--clone-to", objectLabel, plain, m.CloneTo}, {"--workspace", workspaceLabel, plain, []string{m.Workspace}},
		{"--pull-secret", objectDots, dotted, []string{m.PullSecret}}, {"--cert-config-map", objectDots, dotted, []string{m.CertConfigMap}},
		{"--storage-class", objectDots, dotted, []string{m.StorageClass}},
		{"--volume-mode", regexp.MustCompile(`^(Block|Filesystem)$`), "Block and Filesystem", []string{m.VolumeMode}},
	} {
		for _, v := range n.values {
			if v != "" && !n.form.MatchString(v) {
				return fmt.Errorf("%s cannot be %q: Kubernetes takes %s", n.flag, v, n.takes)
			}
		}
	}
	if u, err := url.Parse(m.DiskURL); m.DiskURL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("--disk-url cannot be %q: CDI takes http and https", m.DiskURL)
	} else if m.DiskURL != "" && u.User != nil {
		return errors.New("--disk-url has a login, which everybody who reads the Template would see: give a URL without one")
	}
	switch {
	case m.DiskURL != "" && m.Workspace == "":
		return errors.New("--disk-url is for CrownLabs' CloudVM: give --workspace, too")
	case len(m.CloneTo) > 0 && len(m.Kinds) > 0 && !slices.Contains(m.Kinds, kindClone):
		return fmt.Errorf("--clone-to has no effect here: add --kind %s, or leave --kind out", kindClone)
	}
	for _, name := range m.Kinds {
		i := slices.IndexFunc(manifestKinds, func(k manifestKind) bool { return k.name == name })
		if i < 0 {
			return fmt.Errorf("--kind %q is not known: give %s", name, strings.Join(ManifestKinds(), ", "))
		}
		if k := manifestKinds[i]; !k.possible(m) {
			return fmt.Errorf("--kind %s needs %s", name, k.needs)
		}
	}
	return nil
}

// Manifests writes the objects of an image. Errors are those of Check, and
// *failure.Error where KubeVirt or CDI refuses the image, or CrownLabs cannot
// start it.
func (r *Report) Manifests(m Manifests) (all []Manifest, err error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(r.Checks, func(c Result) bool { return c.Level == Error }); i >= 0 || r.Disk == nil {
		why := "there is no disk"
		if i >= 0 {
			why = r.Checks[i].Check + ": " + r.Checks[i].Detail
		}
		return nil, failure.New(r.Reference+" is no containerdisk that KubeVirt and CDI take: "+why,
			"diskforge inspect "+r.Reference+" says all that is wrong with it")
	}
	w := newWriter(r, m)
	for _, k := range manifestKinds {
		if slices.Contains(m.Kinds, k.name) && k.bios && w.uefi {
			return nil, failure.New(fmt.Sprintf("%s cannot be written for %s: CrownLabs starts machines with BIOS, and the disk has UEFI only",
				k.name, r.Reference), "")
		}
		if w.wants(k) {
			w.documents = nil
			k.write(w)
			all = append(all, Manifest{k.name, strings.Join(w.documents, separator)})
		}
	}
	return all, nil
}

// wants says whether a kind is written: what was asked for, with the volume that
// it starts from, or all for which there is enough. A tag that may never move is
// polled only where that was asked for.
func (w *writer) wants(k manifestKind) bool {
	if len(w.Kinds) > 0 {
		return slices.ContainsFunc(manifestKinds, func(asked manifestKind) bool {
			return slices.Contains(w.Kinds, asked.name) && (asked.name == k.name || asked.golden && k.name == kindVolume)
		})
	}
	return k.possible(w.Manifests) && !(k.bios && w.uefi) && (k.name != kindCron || w.Tag == MovingTag)
}

const separator = "---\n"

// WriteManifests writes all as one stream of documents.
func WriteManifests(w io.Writer, all []Manifest) error {
	var documents []string
	for _, m := range all {
		documents = append(documents, m.YAML)
	}
	_, err := io.WriteString(w, strings.Join(documents, separator))
	return err
}

// SaveManifests writes each into a file KIND.yaml of a folder, which is made, and
// where it is asked for kustomization.yaml, which names them. Other files stay.
func SaveManifests(dir string, all []Manifest, kustomize bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	save := func(name, text string) error {
		return host.WriteFile(filepath.Join(dir, name), 0o644, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		})
	}
	resources := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n"
	for _, m := range all {
		if err := save(m.Kind+".yaml", m.YAML); err != nil {
			return err
		}
		resources += "  - " + m.Kind + ".yaml\n"
	}
	if !kustomize {
		return nil
	}
	return save("kustomization.yaml", resources)
}

// fields is an object of Kubernetes, or a part of one. YAML has its keys sorted.
type (
	fields = map[string]any
	list   = []any
)

// writer writes the objects of one image.
type writer struct {
	Manifests
	*Report
	pinned    string // the image by its digest, without the tag: CDI takes no reference with both
	uefi      bool   // the disk starts with nothing else
	hints     fields // labels by which KubeVirt infers an instance type
	documents []string
}

func newWriter(r *Report, m Manifests) *writer {
	repository, _ := SplitTag(m.Image)
	w := &writer{Manifests: m, Report: r, pinned: repository + "@" + r.Digest, hints: fields{}}
	w.Name = cmp.Or(m.Name, objectName(path.Base(repository)))
	if w.Namespace = cmp.Or(m.Namespace, "default"); m.Namespace == "" && m.Workspace != "" {
		w.Namespace = w.workspace()
	}
	w.MemoryMiB, w.CPUs = cmp.Or(m.MemoryMiB, 2048), cmp.Or(m.CPUs, 2)
	w.uefi = r.Disk.Firmware != nil && r.Disk.Firmware.UEFI && !r.Disk.Firmware.BIOS && arch.Of(r.Config.Architecture).BIOS
	for variable, value := range r.Config.Hints {
		if value != "" {
			w.hints[label(variable)] = value
		}
	}
	return w
}

// objectName makes a label of RFC 1123 of a text, at most 63 characters: what is
// longer ends in a part of its digest.
func objectName(s string) string {
	s = strings.Trim(notInLabels.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(s) > 63 {
		s = fmt.Sprintf("%s-%x", strings.TrimRight(s[:54], "-"), sha256.Sum256([]byte(s)))[:63]
	}
	return s
}

// add writes an object below a comment.
func (w *writer) add(about, apiVersion, kind string, metadata, rest fields) {
	metadata["labels"] = with(fields{"app.kubernetes.io/name": w.Name}, metadata["labels"])
	var text bytes.Buffer
	for line := range strings.Lines(about + "\n") {
		text.WriteString("# " + line)
	}
	out := yaml.NewEncoder(&text)
	out.SetIndent(2)
	_ = out.Encode(with(fields{"apiVersion": apiVersion, "kind": kind, "metadata": metadata}, rest)) // texts and numbers, into memory
	w.documents = append(w.documents, text.String())
}

// with is a copy of some fields and of more, which may be nil.
func with(some fields, more any) fields {
	all := fields{}
	for _, from := range []any{some, more} {
		from, _ := from.(fields)
		for k, v := range from {
			if v != "" { // an option that is not given
				all[k] = v
			}
		}
	}
	return all
}
