// Package contract looks into a containerdisk, anybody's, and says whether
// KubeVirt and CDI take it and what is unusual about it. What it reads is not
// trusted: nothing of it is unpacked, memory and time are bounded, and no other
// file of the host is opened for it.
//
// A subject is gathered first: manifest and config, the entries of each layer,
// the tree that they make together, the header and tables of the disk in it.
// Then the checks, one for each rule, judge it; they read nothing.
package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

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

const (
	maxDepth  = 3  // of indexes within indexes
	maxLayers = 64 // more than any image has that starts somewhere
)

// subject is an image that is inspected, and what was found out about it.
type subject struct {
	*Report
	limits                 limits
	rawManifest, rawConfig []byte
	blob                   func(v1.Descriptor) (blob, error) // a layer of it
	remote                 *registry.Image                   // that it is, or nil for one in a layout

	manifest  v1.Manifest
	config    v1.ConfigFile
	configErr error
	layers    []*layer
	tree      tree
	content   content // of the disk
	looked    looked
	tags      []string
	tagsErr   error

	temp   string // a directory for as long as the inspection takes, or empty
	opened []io.Closer
	kept   int   // of the opened files, those with the beginning of a disk
	fault  error // the first that is not the image's
}

// blob is a layer as it is stored.
type blob interface {
	io.ReaderAt
	// Open reads all of it and fails at its end where it has another digest.
	Open() (io.ReadCloser, error)
}

// Layout inspects the image in an OCI layout: a directory, or a tar archive of
// one. The error is a *failure.Error where it cannot be read, or the cause of
// ctx; what is wrong with the image stands in the report.
func Layout(ctx context.Context, path string, p progress.Reporter) (*Report, error) {
	files, err := oci.OpenFiles(path)
	if err == nil {
		defer files.Close()
		s := &subject{Report: &Report{Reference: path}, limits: localLimits}
		if err = s.readLayout(files); err == nil {
			return s.inspect(ctx, p)
		}
	}
	return nil, failure.Wrap(err, path+" cannot be inspected", oci.LayoutHint(path, "name an OCI layout, or a tar archive of one"))
}

// readLayout follows index.json to the manifest and the config.
func (s *subject) readLayout(files *oci.Files) error {
	raw, err := files.Index()
	if err != nil {
		return err
	}
	for depth := range maxDepth {
		d, index, err := registry.Choose(raw)
		if err != nil {
			return err
		}
		if depth > 0 || len(index.Platforms) > 1 {
			s.Index = index
		}
		if raw, err = files.ReadBlob(d); err != nil {
			return fmt.Errorf("its manifest: %w", err)
		}
		if d.MediaType.IsIndex() {
			continue
		}
		s.Digest, s.MediaType, s.rawManifest = d.Digest.String(), string(d.MediaType), raw
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("its manifest: %w", err)
		}
		if s.rawConfig, err = files.ReadBlob(m.Config); err != nil {
			return fmt.Errorf("its config: %w", err)
		}
		s.blob = func(d v1.Descriptor) (blob, error) {
			b, err := files.Blob(d)
			if err == nil {
				s.opened = append(s.opened, b)
			}
			return b, err
		}
		return nil
	}
	return errors.New("it is an index of indexes")
}

// Remote inspects the image that ref names in a registry. Of a layer that is
// not compressed it reads parts only. Errors are as those of Layout.
func Remote(ctx context.Context, ref string, o registry.Options, p progress.Reporter) (*Report, error) {
	p.Activity("reading " + ref)
	i, err := registry.Open(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	defer i.Close()
	s := &subject{
		Report: &Report{Reference: ref, Digest: i.Digest, MediaType: i.MediaType, Index: i.Index},
		limits: remoteLimits, rawManifest: i.Manifest, rawConfig: i.Config, remote: i,
		blob: func(d v1.Descriptor) (blob, error) { return i.Blob(d), nil },
	}
	return s.inspect(ctx, p)
}

func (s *subject) inspect(ctx context.Context, p progress.Reporter) (*Report, error) {
	defer s.close()
	err := s.gather(ctx, p)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if _, ok := failure.In(err); err != nil && !ok {
		err = failure.Wrap(err, s.Reference+" cannot be inspected", "")
	}
	if err != nil {
		return nil, err
	}
	s.judge()
	if s.remote != nil {
		s.BytesRead = s.remote.BytesRead()
	}
	return s.Report, nil
}

func (s *subject) close() {
	for _, f := range s.opened {
		f.Close()
	}
	os.RemoveAll(s.temp)
}

// gather reads all that the checks look at.
func (s *subject) gather(ctx context.Context, p progress.Reporter) error {
	if err := s.readManifest(); err != nil {
		return err
	}
	s.Layers = []Layer{}
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
	if s.remote != nil {
		s.tags, s.tagsErr = s.remote.Tags()
	}
	p.Activity("looking at the disk")
	return s.lookAtDisk(ctx)
}

func (s *subject) readManifest() error {
	if err := json.Unmarshal(s.rawManifest, &s.manifest); err != nil {
		return fmt.Errorf("its manifest: %w", err)
	}
	if n := len(s.manifest.Layers); n > maxLayers {
		return fmt.Errorf("%d layers are more than the %d that an image may have", n, maxLayers)
	}
	for _, d := range s.manifest.Layers {
		if d.Size < 0 {
			return fmt.Errorf("a layer has the size %d", d.Size)
		}
	}
	s.Annotations, s.Inputs = s.manifest.Annotations, s.manifest.Annotations[oci.AnnotationInputs]
	s.configErr = json.Unmarshal(s.rawConfig, &s.config)
	s.Config = Config{
		MediaType: string(s.manifest.Config.MediaType), OS: s.config.OS, Architecture: s.config.Architecture,
		Hints: hints(s.config.Config.Env),
	}
	return nil
}

// blame passes on an error of what the image is read from, or of a file of
// ours, and remembers the first: the readers above take it for the image's.
func (s *subject) blame(err error) error {
	if err != nil && err != io.EOF && !errors.Is(err, disk.ErrNotRead) && s.fault == nil {
		s.fault = err
	}
	return err
}

// source reads from where the image is stored.
type source struct {
	io.Reader
	io.ReaderAt
	s *subject
}

func (r source) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	return n, r.s.blame(err)
}

func (r source) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, offset)
	return n, r.s.blame(err)
}

// temporary is a file of ours that is gone when the inspection ends.
type temporary struct {
	file *os.File
	s    *subject
}

func (s *subject) create() (temporary, error) {
	var err error
	if s.temp == "" {
		s.temp, err = os.MkdirTemp("", "diskforge-inspect-")
	}
	t := temporary{s: s}
	if err == nil {
		t.file, err = os.CreateTemp(s.temp, "disk")
	}
	if err == nil {
		s.opened = append(s.opened, t.file)
	}
	return t, t.explain(err)
}

func (t temporary) WriteAt(p []byte, offset int64) (int, error) {
	n, err := t.file.WriteAt(p, offset)
	return n, t.explain(err)
}

func (t temporary) explain(err error) error {
	if err == nil {
		return nil
	}
	return t.s.blame(failure.Wrap(err, t.s.Reference+" cannot be inspected", "make room in "+os.TempDir()+", or set TMPDIR to another folder"))
}
