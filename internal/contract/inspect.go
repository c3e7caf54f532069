// Package contract looks into a containerdisk, anybody's, and says whether
// KubeVirt and CDI take it and what is unusual about it. What it reads is not
// trusted: nothing of it is unpacked, memory and time are bounded, and no other
// file of the host is opened for it.
package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// Report is what is known of an image.
type Report struct {
	Reference   string            `json:"reference"` // as it was given
	Digest      string            `json:"digest"`    // of the manifest
	MediaType   string            `json:"mediaType"` // of the manifest
	Index       *registry.Index   `json:"index,omitempty"`
	Config      Config            `json:"config"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Inputs      string            `json:"inputs,omitempty"` // diskforge's digest of what it was made from
	Layers      []Layer           `json:"layers"`
	Disk        *Disk             `json:"disk,omitempty"`
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

	mode   int64
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
	Firmware     string `json:"firmware,omitempty"` // that it can be started by, where that could be read
	// TablesRead of Tables mapping tables of the second level were read.
	TablesRead int `json:"tablesRead"`
	Tables     int `json:"tables"`
}

// limits bound what an inspection costs.
type limits struct {
	unpacked int64 // bytes that all layers may unpack to
	entries  int   // in all layers
	names    int   // bytes of the names of all entries
	parts    int   // entries for which a layer is read in parts
	kept     int64 // bytes kept of a disk that comes in a stream
	tables   int64 // bytes of qcow2 tables that are read
}

// The limits of an image in a registry keep what comes over the wire of a
// plain layer under 2 MiB: 20 tables describe a disk of 10 GiB.
var (
	remoteLimits = limits{unpacked: 64 << 30, entries: 100_000, names: 16 << 20, parts: 16, kept: 32 << 20, tables: 20 << 16}
	localLimits  = limits{unpacked: 64 << 30, entries: 100_000, names: 16 << 20, parts: 100_000, kept: 32 << 20, tables: 512 << 20}
)

// Layout inspects the image in an OCI layout: a directory, or a tar archive of
// one. The error is a *failure.Error where it cannot be read, or the cause of
// ctx; what is wrong with the image stands in the report.
func Layout(ctx context.Context, path string, p progress.Reporter) (*Report, error) {
	i, err := openLayout(path)
	if f, ok := failure.In(err); ok {
		return nil, failure.New(path+" cannot be inspected: "+f.What, f.Try)
	}
	if err != nil {
		return nil, failure.Wrap(err, path+" cannot be inspected", oci.LayoutHint(path, "name an OCI layout, or a tar archive of one"))
	}
	defer i.close()
	return i.inspect(ctx, localLimits, p)
}

// Remote inspects the image that ref names in a registry. Of a layer that is
// not compressed it reads parts only. Errors are as those of Layout.
func Remote(ctx context.Context, ref string, o registry.Options, p progress.Reporter) (*Report, error) {
	p.Activity("reading " + ref)
	i, err := openRemote(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	defer i.close()
	return i.inspect(ctx, remoteLimits, p)
}

// image is what is inspected, wherever it lies.
type image struct {
	reference, digest, mediaType string
	manifest, config             []byte
	index                        *registry.Index
	blob                         func(v1.Descriptor) (blob, error)
	remote                       bool
	tag                          string                   // that it was asked for by, or empty
	tags                         func() ([]string, error) // of its repository
	read                         func() int64
	close                        func()
}

// subject is what the checks judge.
type subject struct {
	*Report
	image     *image
	limits    limits
	temp      string     // a directory for as long as the inspection takes
	temporary []*os.File // the files in it
	manifest  v1.Manifest
	config    v1.ConfigFile
	layers    []*layer
	tree      tree
	content   content // of the disk
	looked    looked
	tags      []string

	configErr, tagsErr error
}

func (i *image) inspect(ctx context.Context, l limits, p progress.Reporter) (*Report, error) {
	s := &subject{image: i, limits: l, Report: &Report{
		Reference: i.reference, Digest: i.digest, MediaType: i.mediaType, Index: i.index, Layers: []Layer{}, Checks: []Result{},
	}}
	temp, err := os.MkdirTemp("", "diskforge-inspect-")
	if err != nil {
		return nil, failure.Wrap(err, "cannot make a temporary directory", "set TMPDIR to a folder that may be written to")
	}
	defer s.clear()
	s.temp = temp
	err = s.gather(ctx, p)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		if _, ok := failure.In(err); ok {
			return nil, err
		}
		try := ""
		if errors.As(err, new(ours)) {
			try = "make room in " + os.TempDir() + ", or set TMPDIR to a folder with some"
		}
		return nil, failure.Wrap(err, i.reference+" cannot be inspected", try)
	}
	s.judge()
	s.BytesRead = i.read()
	return s.Report, nil
}

func (s *subject) clear() {
	for _, f := range s.temporary {
		f.Close()
	}
	os.RemoveAll(s.temp)
}

// gather reads all that the checks look at.
func (s *subject) gather(ctx context.Context, p progress.Reporter) error {
	if err := s.readManifest(); err != nil {
		return err
	}
	for n, d := range s.manifest.Layers {
		p.Activity(fmt.Sprintf("reading layer %d of %d", n+1, len(s.manifest.Layers)))
		l, err := s.readLayer(ctx, d, p)
		if err != nil {
			return err
		}
		s.layers = append(s.layers, l)
		s.Layers = append(s.Layers, l.Layer)
	}
	s.tree = overlay(s.layers)
	if s.image.tags != nil {
		s.tags, s.tagsErr = s.image.tags()
	}
	p.Activity("looking at the disk")
	return s.lookAtDisk(ctx)
}

// maxLayers is more than any image has that starts somewhere.
const maxLayers = 64

func (s *subject) readManifest() error {
	if err := json.Unmarshal(s.image.manifest, &s.manifest); err != nil {
		return fmt.Errorf("its manifest: %w", err)
	}
	if n := len(s.manifest.Layers); n > maxLayers {
		return fmt.Errorf("%d layers are absurd", n)
	}
	for _, d := range s.manifest.Layers {
		if d.Size < 0 {
			return fmt.Errorf("a layer of %d bytes is absurd", d.Size)
		}
	}
	s.Annotations, s.Inputs = s.manifest.Annotations, s.manifest.Annotations[oci.AnnotationInputs]
	s.configErr = json.Unmarshal(s.image.config, &s.config)
	s.Config = Config{
		MediaType: string(s.manifest.Config.MediaType), OS: s.config.OS, Architecture: s.config.Architecture,
		Hints: hints(s.config.Config.Env),
	}
	return nil
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
