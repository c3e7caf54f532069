// Package oci packs a VM's disk into the OCI image that KubeVirt and
// CDI expect (a "containerdisk") and reads such an image back from its layout.
package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Layer is the one layer of a containerdisk, as the registry stores it.
type Layer struct {
	Digest    string // "sha256:…"
	Size      int64  // bytes
	MediaType string // OCI: plain tar, or tar+gzip
}

// Result says what Pack made.
type Result struct {
	Digest      string // of the manifest, "sha256:…"
	Layer       Layer
	DiskDigest  string // of the disk file, "sha256:…"
	VirtualSize int64  // bytes that the guest sees
}

// Pack writes the disk as an OCI image layout with one image into layoutDir.
// A layout that is there already is replaced when the new one is complete; a
// directory with anything else in it is refused. The disk is read once, and
// memory does not grow with it. Errors that a person can mend are
// *failure.Error.
func Pack(ctx context.Context, disk, layoutDir string, m Metadata, p progress.Reporter) (Result, error) {
	if err := m.validate(); err != nil {
		return Result{}, err
	}
	w, err := newLayoutWriter(layoutDir)
	if err != nil {
		return Result{}, err
	}
	defer w.discard()
	src, err := openDisk(ctx, disk, p)
	if err != nil {
		return Result{}, stopped(ctx, err)
	}
	defer src.Close()
	l, err := src.writeLayer(ctx, w, p)
	if err != nil {
		return Result{}, stopped(ctx, w.explain(err))
	}
	if m.VerifiedDisk != "" && m.VerifiedDisk != l.disk.String() {
		return Result{}, failure.New(disk+" is not the disk that was verified any more", "verify it again")
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
		Layer:       Layer{l.digest.String(), l.size, string(l.mediaType)},
		DiskDigest:  l.disk.String(),
		VirtualSize: src.virtualSize,
	}, nil
}

// stopped returns why ctx ended where that is what err comes from.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// writtenLayer is what is known about a layer when it has been written.
type writtenLayer struct {
	digest, diffID, disk v1.Hash
	size                 int64
	mediaType            types.MediaType
}

// writeLayer writes the layer's blob and computes its digest, its diffID and
// the digest of the disk in one pass.
func (s *source) writeLayer(ctx context.Context, w *layoutWriter, p progress.Reporter) (writtenLayer, error) {
	p.Activity("packing the disk")
	blob, err := w.createBlob()
	if err != nil {
		return writtenLayer{}, err
	}
	defer blob.Close()
	disk, content := newDigester(), newDigester()
	defer disk.stop()
	defer content.stop()

	l, stored := writtenLayer{mediaType: types.OCIUncompressedLayer}, content
	if s.compressed {
		if err := reserve(blob, s.tarSize()); err != nil {
			return l, err
		}
		err = s.writeTar(ctx, io.MultiWriter(content, blob), disk, p)
	} else {
		l.mediaType, stored = types.OCILayer, newDigester()
		defer stored.stop()
		err = s.writeCompressed(ctx, io.MultiWriter(stored, blob), content, disk, p)
	}
	if err != nil {
		return l, err
	}
	l.digest, l.diffID, l.disk, l.size = stored.sum(), content.sum(), disk.sum(), stored.size
	return l, w.keepBlob(blob, l.digest)
}

// writeCompressed writes the tar through gzip to w, and uncompressed to content.
// CDI's importer cannot read layers of zstd (issue 4277). The level is fixed, as
// the digest depends on it.
func (s *source) writeCompressed(ctx context.Context, w, content, disk io.Writer, p progress.Reporter) error {
	z, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
	if err != nil {
		return err
	}
	if err := s.writeTar(ctx, io.MultiWriter(content, z), disk, p); err != nil {
		return err
	}
	return z.Close()
}

// The owner is the user that QEMU runs as in virt-launcher.
const owner = 107

// epoch is the date of everything in the layer, so that the layer depends on
// the disk alone.
var epoch = time.Unix(0, 0)

// writeTar writes disk/ and the disk in it to w, and the disk alone to disk.
// CDI looks for names that begin with "disk", without a slash in front
// (pkg/importer/transport.go).
func (s *source) writeTar(ctx context.Context, w, disk io.Writer, p progress.Reporter) error {
	t := tar.NewWriter(w)
	dir := tar.Header{Typeflag: tar.TypeDir, Name: "disk/", Mode: 0o555, Uid: owner, Gid: owner, ModTime: epoch}
	file := tar.Header{Typeflag: tar.TypeReg, Name: "disk/" + s.name, Mode: 0o444, Uid: owner, Gid: owner, ModTime: epoch, Size: s.info.Size()}
	if err := t.WriteHeader(&dir); err != nil {
		return err
	}
	if err := t.WriteHeader(&file); err != nil {
		return err
	}
	in := progress.Reader(&contextReader{ctx, s.File}, file.Size, p)
	_, err := io.CopyBuffer(io.MultiWriter(t, disk), io.LimitReader(in, file.Size), make([]byte, blockSize))
	if err != nil {
		return err
	}
	if err := s.unchanged(); err != nil {
		return err
	}
	return t.Close()
}

// tarSize is the size of what writeTar writes, in bytes, for disks under 8 GiB
// (larger ones have a longer header).
func (s *source) tarSize() int64 {
	const record = 512
	content := (s.info.Size() + record - 1) / record * record
	return content + 4*record // two headers, two empty records
}

// unchanged fails when somebody wrote to the disk while it was read.
func (s *source) unchanged() error {
	now, err := s.Stat()
	if err != nil {
		return err
	}
	if now.Size() != s.info.Size() || !now.ModTime().Equal(s.info.ModTime()) {
		return failure.New(s.Name()+" changed while it was packed", "end what writes to it, then pack it again")
	}
	return nil
}

// reserve claims room for size bytes, so that a full disk is told at once and
// not after the copy. File systems that cannot do it are left alone.
func reserve(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("reserving %d MiB: %w", size>>20, err)
	}
	return nil
}

// contextReader ends with the context's cause.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}
