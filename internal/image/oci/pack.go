// Package oci is what diskforge knows of containerdisks: the OCI image with a
// VM's disk in its one layer that KubeVirt and CDI take. Pack makes one as an
// OCI image layout, deterministically: the same disk and the same metadata have
// the same digest. Load reads a layout of ours back and Files one that others
// made; Resolve finds the image that a name leads to, wherever it lies, and
// Image.Extract takes the disk out of it. What is read is not trusted: digests
// are checked while it is read, and memory, time and names are bounded.
package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Result says what Pack made.
type Result struct {
	Digest      string // of the manifest, "sha256:…"
	Layer       v1.Descriptor
	DiskDigest  string // of the disk file, "sha256:…"
	VirtualSize int64  // bytes that the guest sees
}

// Pack writes the disk as an OCI image layout with one image into layoutDir.
// A layout that is there already is replaced when the new one is complete; a
// directory with anything else in it is refused. The disk is read once, and
// memory does not grow with it. Errors that a person can act on are
// *failure.Error.
func Pack(ctx context.Context, diskFile, layoutDir string, m Metadata, p progress.Reporter) (Result, error) {
	w, err := newLayoutWriter(ctx, layoutDir)
	if err != nil {
		return Result{}, err
	}
	defer w.discard()
	src, err := openDisk(ctx, diskFile, p)
	if err != nil {
		return Result{}, stopped(ctx, err)
	}
	defer src.Close()
	l, err := src.writeLayer(ctx, w, p)
	if err != nil {
		return Result{}, stopped(ctx, w.explain(err))
	}
	if m.VerifiedDisk != "" && m.VerifiedDisk != l.disk.String() {
		return Result{}, failure.New(diskFile+" is not the disk that was verified any more", "verify it again")
	}
	digest, err := w.writeImage(m, l)
	if err != nil {
		return Result{}, stopped(ctx, w.explain(err))
	}
	if m.Accept != nil {
		if err := m.Accept(ctx, w.partial); err != nil {
			return Result{}, err
		}
	}
	if err := w.commit(ctx); err != nil {
		return Result{}, stopped(ctx, w.explain(err))
	}
	return Result{
		Digest:      digest.String(),
		Layer:       l.Descriptor,
		DiskDigest:  l.disk.String(),
		VirtualSize: src.about.VirtualSize,
	}, nil
}

// stopped returns why ctx ended where that is what err comes from.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// source is an opened disk that may become a containerdisk.
type source struct {
	*os.File
	about disk.Info
	stat  os.FileInfo
}

// openDisk opens a qcow2 or raw disk and refuses every one that KubeVirt or
// CDI would refuse, or that needs another file to be read.
func openDisk(ctx context.Context, path string, p progress.Reporter) (*source, error) {
	p.Activity("checking the disk")
	about, err := disk.Inspect(ctx, path)
	if err != nil {
		return nil, err
	}
	if about.Format == disk.FormatRaw && about.FileSize != about.VirtualSize {
		return nil, failure.New(path+" ends within a sector", "give the whole disk image")
	}
	f, err := host.Open(path)
	if err != nil {
		return nil, failure.Wrap(err, "cannot open the disk", "")
	}
	stat, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, failure.Wrap(err, "cannot read the disk", "")
	}
	return &source{f, about, stat}, nil
}

// writtenLayer is what is known about a layer when it has been written.
type writtenLayer struct {
	v1.Descriptor
	diffID, disk v1.Hash
}

// writeLayer writes the layer's blob and computes its digest, its diffID and
// the digest of the disk in one pass. A disk that is compressed inside goes into
// a plain layer; other layers get gzip, as CDI's importer cannot read zstd
// (issue 4277), at a fixed level, as the digest depends on it.
func (s *source) writeLayer(ctx context.Context, w *layoutWriter, p progress.Reporter) (writtenLayer, error) {
	p.Activity("packing the disk")
	blob, err := os.OpenFile(w.blob("layer"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return writtenLayer{}, err
	}
	defer blob.Close()
	whole, content, stored := newHasher(), newHasher(), newHasher()
	defer whole.Close()
	defer content.Close()
	defer stored.Close()

	l, out := writtenLayer{}, io.MultiWriter(stored, blob)
	if s.about.Compressed() {
		l.MediaType = types.OCIUncompressedLayer
		err = s.writeTar(ctx, out, whole, p)
		content = stored
	} else {
		l.MediaType = types.OCILayer
		z, _ := gzip.NewWriterLevel(out, gzip.DefaultCompression) // it fails for another level only
		if err = s.writeTar(ctx, io.MultiWriter(content, z), whole, p); err == nil {
			err = z.Close()
		}
	}
	if err = errors.Join(err, blob.Close()); err != nil {
		return l, err
	}
	l.Digest, l.Size = stored.sum()
	l.diffID, _ = content.sum()
	l.disk, _ = whole.sum()
	return l, os.Rename(blob.Name(), w.blob(l.Digest.Hex))
}

// The owner is the user that QEMU runs as in virt-launcher.
const owner = 107

// epoch is the date of everything in the layer, so that the layer depends on
// the disk alone.
var epoch = time.Unix(0, 0)

// writeTar writes disk/ and the disk in it to w, and the disk alone to alone.
// CDI looks for names that begin with "disk", without a slash in front
// (pkg/importer/transport.go); disk.img is the name that KubeVirt documents for
// raw disks.
func (s *source) writeTar(ctx context.Context, w, alone io.Writer, p progress.Reporter) error {
	name := "disk/disk." + s.about.Format
	if s.about.Format == disk.FormatRaw {
		name = "disk/disk.img"
	}
	size := s.stat.Size()
	t := tar.NewWriter(w)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "disk/", Mode: 0o555, Uid: owner, Gid: owner, ModTime: epoch},
		{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Uid: owner, Gid: owner, ModTime: epoch, Size: size},
	} {
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
	}
	if _, err := host.Copy(ctx, io.MultiWriter(t, alone), io.LimitReader(progress.Reader(s.File, size, p), size)); err != nil {
		return err
	}
	now, err := s.Stat()
	if err != nil {
		return err
	}
	if now.Size() != size || !now.ModTime().Equal(s.stat.ModTime()) {
		return failure.New(s.Name()+" changed while it was packed", "end what writes to it, then pack it again")
	}
	return t.Close()
}

const blockSize = 1 << 20 // bytes read, hashed and written at once

// hasher is a sha256 that is computed beside its writer, on another core. It has
// to be closed.
type hasher struct {
	*io.PipeWriter
	done   chan struct{}
	digest v1.Hash
	size   int64 // bytes
}

func newHasher() *hasher {
	in, out := io.Pipe()
	h := &hasher{PipeWriter: out, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.digest, h.size, _ = v1.SHA256(bufio.NewReaderSize(in, blockSize)) // reading a pipe does not fail
	}()
	return h
}

// sum returns the digest and the number of all bytes that were written.
func (h *hasher) sum() (v1.Hash, int64) {
	h.Close()
	<-h.done
	return h.digest, h.size
}
