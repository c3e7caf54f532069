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
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
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

var localLimits = limits{
	unpacked: 64 << 30, entries: 100_000, names: 16 << 20, parts: 100_000, kept: 32 << 20, tables: 512 << 20,
}

// overTheWire keeps what comes over the wire of a plain layer under 2 MiB: 20
// tables describe a disk of 10 GiB.
func (l limits) overTheWire() limits {
	l.parts, l.tables = 16, 20<<16
	return l
}

const maxLayers = 64 // more than any image has that starts somewhere

// subject is an image that is inspected, and what was found out about it.
type subject struct {
	*Report
	image  oci.Image
	limits limits

	manifest  v1.Manifest
	config    v1.ConfigFile
	configErr error
	layers    []*layer
	tree      tree
	looked    looked
	tags      []string
	tagsErr   error

	temp   string     // a directory for as long as the inspection takes, or empty
	copies []*os.File // in it, of disks
	fault  error      // the first that is not the image's
}

// Layout inspects the image in an OCI layout: a directory, or a tar archive of
// one. The error is a *failure.Error where it cannot be read, or the cause of
// ctx; what is wrong with the image stands in the report.
func Layout(ctx context.Context, path string, p progress.Reporter) (*Report, error) {
	files, err := oci.OpenFiles(path)
	if err == nil {
		defer files.Close()
		var i oci.Image
		if i, err = files.Image(); err == nil {
			i.Name = path
			return Image(ctx, i, p)
		}
	}
	return nil, failure.Wrap(err, path+" cannot be inspected",
		oci.LayoutHint(path, "name an OCI layout, or a tar archive of one"))
}

// Image inspects an image. Of one in a registry whose layer is not compressed it
// reads parts only. Errors are as those of Layout.
func Image(ctx context.Context, i oci.Image, p progress.Reporter) (*Report, error) {
	s := &subject{
		Report: &Report{Reference: i.Name, Digest: i.Digest, MediaType: i.MediaType, Index: i.Index},
		image:  i, limits: localLimits,
	}
	if s.remote() {
		s.limits = localLimits.overTheWire()
	}
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
	if s.remote() {
		s.BytesRead = i.BytesRead()
	}
	return s.Report, nil
}

// remote says whether the image is in a registry.
func (s *subject) remote() bool { return s.image.Tags != nil }

func (s *subject) close() {
	for _, f := range s.copies {
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
		s.layers, s.Layers = append(s.layers, l), append(s.Layers, l.Layer)
	}
	s.tree = overlay(s.layers)
	if s.remote() {
		s.tags, s.tagsErr = s.image.Tags()
	}
	p.Activity("looking at the disk")
	return s.lookAtDisk(ctx)
}

func (s *subject) readManifest() error {
	if err := json.Unmarshal(s.image.Manifest, &s.manifest); err != nil {
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
	s.configErr = json.Unmarshal(s.image.Config, &s.config)
	s.Config = Config{
		MediaType: string(s.manifest.Config.MediaType), OS: s.config.OS, Architecture: s.config.Architecture,
		Hints: hints(s.config.Config.Env),
	}
	return nil
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

// blame passes on an error of what the image is read from, or of a file of
// ours, and remembers the first: the readers above take it for the image's.
func (s *subject) blame(err error) error {
	if err != nil && err != io.EOF && s.fault == nil {
		s.fault = err
	}
	return err
}

// create makes a file of ours that is gone when the inspection ends.
func (s *subject) create() (f *os.File, err error) {
	if s.temp == "" {
		s.temp, err = os.MkdirTemp("", "diskforge-inspect-")
	}
	if err == nil {
		f, err = os.CreateTemp(s.temp, "disk")
	}
	if err != nil {
		return nil, s.noRoom(err)
	}
	s.copies = append(s.copies, f)
	return f, nil
}

// noRoom is the error of a file of ours that cannot be written.
func (s *subject) noRoom(err error) error {
	return s.blame(failure.Wrap(err, s.Reference+" cannot be inspected",
		"make room in "+os.TempDir()+", or set TMPDIR to another folder"))
}
