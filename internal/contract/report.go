package contract

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Report is what is known of an image.
type Report struct {
	Reference   string            `json:"reference"` // as it was given
	Digest      string            `json:"digest"`    // of the manifest
	MediaType   string            `json:"mediaType"` // of the manifest
	Index       *oci.Index        `json:"index,omitempty"`
	Config      Config            `json:"config"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Inputs      string            `json:"inputs,omitempty"` // diskforge's digest of what it was made from
	Layers      []Layer           `json:"layers"`
	Disk        *Disk             `json:"disk,omitempty"`
	// Attached is what is said of it in bundles beside it, whoever signed them.
	Attached []string `json:"attached,omitempty"`
	// BytesRead came over the wire, in the bodies of answers; 0 for a layout.
	BytesRead int64    `json:"bytesRead"`
	Checks    []Result `json:"checks"`
}

// Config is what the image config says.
type Config struct {
	MediaType    string `json:"mediaType"`
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	// Hints are the instance type hints, by the name of the variable.
	Hints map[string]string `json:"hints,omitempty"`
}

// Layer is one layer and what is in it.
type Layer struct {
	Digest      string  `json:"digest"`
	MediaType   string  `json:"mediaType"`
	Size        int64   `json:"size"`        // bytes, as the registry stores it
	Compression string  `json:"compression"` // none, gzip or zstd, by its own bytes
	Entries     []Entry `json:"entries"`     // the first of them
	Count       int     `json:"count"`       // of all entries
	// WholeRead says why all of the layer was read; it is empty where parts
	// of it were enough.
	WholeRead string `json:"wholeRead,omitempty"`
}

// Entry is one entry of a layer's archive.
type Entry struct {
	Name    string    `json:"name"`
	Type    string    `json:"type"` // file, directory, symbolic link, …
	Link    string    `json:"link,omitempty"`
	Size    int64     `json:"size"` // bytes
	UID     int       `json:"uid"`
	GID     int       `json:"gid"`
	Mode    string    `json:"mode"` // octal
	ModTime time.Time `json:"mtime"`

	sparse bool
}

// Disk is the disk in the image.
type Disk struct {
	Name         string `json:"name"`                  // path in the image
	Format       string `json:"format"`                // qcow2, raw, or what it looks like instead
	VirtualSize  uint64 `json:"virtualSize"`           // bytes that the guest sees
	FileSize     int64  `json:"fileSize"`              // bytes
	Compression  string `json:"compression,omitempty"` // of the data in a qcow2 image: zstd, zlib or none
	ClusterSize  int64  `json:"clusterSize,omitempty"` // bytes
	BackingFile  string `json:"backingFile,omitempty"`
	ExternalData bool   `json:"externalData,omitempty"`
	Encrypted    bool   `json:"encrypted,omitempty"`
	Snapshots    int    `json:"snapshots,omitempty"`
	// Firmware can start it; nil where that could not be read.
	Firmware *disk.Firmware `json:"firmware,omitempty"`
	// TablesRead of Tables mapping tables of the second level were read.
	TablesRead int `json:"tablesRead"`
	Tables     int `json:"tables"`
}

// Guest is the guest's release ("Debian 12"), or empty.
func (r *Report) Guest() string { return r.Annotations[oci.AnnotationGuest] }

// Level is how a check ended.
type Level string

const (
	// OK is a check that found nothing.
	OK Level = "ok"
	// Note is something to know: a choice with a price, or what was not
	// checked.
	Note Level = "note"
	// Warning breaks a convention, but KubeVirt and CDI take the image.
	Warning Level = "warning"
	// Error is what KubeVirt or CDI refuses, or what is dangerous.
	Error Level = "error"
)

func (l Level) rank() int { return slices.Index([]Level{OK, Note, Warning, Error}, l) }

// Result is what one check found.
type Result struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"` // one line
}

// Err returns an error where a check ended at the level or above it, with one
// line for each, or nil.
func (r *Report) Err(least Level) error {
	var lines []string
	for _, c := range r.Checks {
		if c.Level.rank() >= least.rank() {
			lines = append(lines, c.Check+": "+c.Detail)
		}
	}
	switch len(lines) {
	case 0:
		return nil
	case 1:
		return failure.New(r.Reference+" breaks the contract of containerdisks: "+lines[0], "")
	}
	f := failure.New(fmt.Sprintf("%s breaks the contract of containerdisks in %d ways", r.Reference, len(lines)), "")
	f.Lines = lines
	return f
}

// Text is the report for people: the facts that are known, then checks.
func (r *Report) Text() string {
	var b strings.Builder
	fact := func(name, format string, args ...any) {
		if value := text.Line(fmt.Sprintf(format, args...)); value != "" {
			fmt.Fprintf(&b, "%-13s %s\n", name, value)
		}
	}
	fact("image", "%s", r.Reference)
	fact("digest", "%s", r.Digest)
	fact("platform", "%s/%s", r.Config.OS, r.Config.Architecture)
	for _, l := range r.Layers {
		fact("layer", "%s, %s, compression: %s", text.Size(l.Size), l.MediaType, l.Compression)
		for _, e := range l.Entries[:min(len(l.Entries), 5)] {
			fact("", "%s %d:%d %s %s %s", e.Mode, e.UID, e.GID, e.ModTime.Format("2006-01-02"), text.Size(e.Size), e.Name)
		}
		if l.Count > 5 {
			fact("", "and %d more", l.Count-5)
		}
	}
	if d := r.Disk; d != nil {
		fact("disk", "%s, %s in a file of %s, compression: %s", d.Format, text.Size(int64(d.VirtualSize)), text.Size(d.FileSize), d.Compression)
		if d.Firmware != nil {
			fact("starts by", "%s", d.Firmware)
		}
	}
	fact("base", "%s %s", oci.BaseName(r.Annotations), r.Annotations[oci.AnnotationBaseDigest])
	fact("built", "%s", r.Annotations[oci.AnnotationBuilt])
	fact("guest", "%s", r.Guest())
	fact("inputs", "%s", r.Inputs)
	fact("attached", "%s", strings.Join(r.Attached, ", "))
	fact("read", "%s", r.Read())
	b.WriteByte('\n')
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-8s %-20s %s\n", c.Level, c.Check, c.Detail)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Read says how much had to be read.
func (r *Report) Read() string {
	if r == nil {
		return ""
	}
	var whole []string
	for n, l := range r.Layers {
		if l.WholeRead != "" {
			whole = append(whole, fmt.Sprintf("all of layer %d, as %s", n+1, l.WholeRead))
		}
	}
	how := "parts of the layer"
	if len(whole) > 0 {
		how = strings.Join(whole, "; ")
	}
	if r.BytesRead > 0 {
		how = text.Size(r.BytesRead) + " over the wire: " + how
	}
	return how
}
