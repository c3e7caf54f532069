package contract

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// What a layer's own bytes say about its compression.
const (
	plain      = "none"
	gzipped    = "gzip"
	zstandard  = "zstd"
	maxListed  = 100       // entries of a layer in the report
	maxWindow  = 128 << 20 // bytes of memory that a zstd stream may ask for; zstd's own default
	maxContent = 4         // disks that are looked for in layers
	maxName    = 1 << 10   // bytes of a path; no image has one near that
)

var errLongName = fmt.Errorf("it has a name of more than %d bytes", maxName)

// layer is a layer that was read.
type layer struct {
	Layer
	entries []Entry
	// disk is the first regular file in disk/, root the first outside of folders.
	disk, root content
	// diffID is the digest of the unpacked layer, where all of it was read.
	diffID string
	// err is why its archive cannot be read to its end.
	err error
}

// content is that of a file in a layer.
type content struct {
	name string
	size int64
	io.ReaderAt
}

// readLayer reads what is in a layer: in parts where that is possible, else
// from its beginning to its end. Its error is one of the source; what is wrong
// with the layer itself becomes part of it.
func (s *subject) readLayer(ctx context.Context, d v1.Descriptor, p progress.Reporter) (*layer, error) {
	l := &layer{Layer: Layer{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size, Entries: []Entry{}}}
	b, err := s.image.blob(d)
	if err != nil {
		return nil, fmt.Errorf("its layer: %w", err)
	}
	head := make([]byte, min(max(d.Size, 0), 4))
	_, err = b.ReadAt(head, 0)
	switch l.Compression = compression(head); {
	case errors.Is(err, registry.ErrNoRanges):
		l.WholeRead = registry.ErrNoRanges.Error()
	case err != nil && err != io.EOF:
		return nil, err
	case l.Compression != plain:
		l.WholeRead = "it is compressed"
	default:
		err := s.readParts(ctx, l, b)
		if err != nil || !errors.Is(l.err, oci.ErrManyEntries) {
			return l, err
		}
		l.WholeRead, l.err, l.entries, l.disk, l.root = fmt.Sprintf("it has more than %d entries", s.limits.parts), nil, nil, content{}, content{}
	}
	err = s.stream(ctx, l, b, p)
	l.list()
	return l, err
}

// ours is an error of this host, of which an image is not guilty.
type ours struct{ error }

func (o ours) Unwrap() error { return o.error }

func compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzipped
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return zstandard
	}
	return plain
}

// readParts reads the headers of a plain layer's archive. One in a layout is
// read whole besides, for its digest: that costs no transfer.
func (s *subject) readParts(ctx context.Context, l *layer, b blob) error {
	from := &source{ReaderAt: &blocks{from: b}}
	whole := io.NewSectionReader(from, 0, l.Size)
	l.err = s.walk(ctx, l, tar.NewReader(whole), s.limits.parts, func(h *tar.Header) (io.ReaderAt, error) {
		at, err := whole.Seek(0, io.SeekCurrent)
		return io.NewSectionReader(from, at, h.Size), err
	})
	l.list()
	l.diffID = l.Digest // as nothing is packed
	if errors.As(l.err, new(ours)) {
		return l.err
	}
	if from.err != nil || s.image.remote {
		return from.err
	}
	rc, err := b.Open()
	if err != nil {
		return err
	}
	defer rc.Close()
	_, err = io.Copy(io.Discard, &contextReader{ctx, rc})
	return err
}

// stream unpacks a layer, keeping the beginning of a disk.
func (s *subject) stream(ctx context.Context, l *layer, b blob, p progress.Reporter) error {
	rc, err := b.Open()
	if err != nil {
		return err
	}
	defer rc.Close()
	from := &source{Reader: progress.Reader(&contextReader{ctx, rc}, l.Size, p)}
	packed := bufio.NewReaderSize(from, 1<<20)
	head, _ := packed.Peek(4)
	l.Compression = compression(head)
	l.err = s.unpack(ctx, l, packed)
	if errors.As(l.err, new(ours)) {
		return l.err
	}
	return from.err
}

func (s *subject) unpack(ctx context.Context, l *layer, packed io.Reader) error {
	unpacked, end, err := unpacker(l.Compression, packed)
	if err != nil {
		return err
	}
	defer end()
	sum := sha256.New()
	in := io.TeeReader(&bounded{unpacked, &s.limits.unpacked}, sum)
	err = s.walk(ctx, l, tar.NewReader(in), math.MaxInt, nil)
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	if err == nil {
		l.diffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	}
	return err
}

func unpacker(how string, packed io.Reader) (io.Reader, func(), error) {
	switch how {
	case gzipped:
		r, err := gzip.NewReader(packed)
		return r, func() {}, err
	case zstandard:
		r, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return r, r.Close, nil
	}
	return packed, func() {}, nil
}

// walk lists the entries of an archive. Where at is nil the archive is a
// stream, of which the beginning of a disk must be kept as it passes.
func (s *subject) walk(ctx context.Context, l *layer, in *tar.Reader, most int, at func(*tar.Header) (io.ReaderAt, error)) error {
	for h, err := range oci.Entries(in, l.Size, min(most, s.limits.entries)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if err := s.count(h); err != nil {
			return err
		}
		l.entries = append(l.entries, entry(h))
		if (l.Compression != plain || oci.Sparse(h)) && h.Size > s.limits.unpacked {
			return oci.ErrInflated
		}
		to := s.place(l, h)
		if to == nil || to.ReaderAt != nil {
			continue
		}
		*to = content{name: clean(h.Name), size: h.Size}
		if at == nil || oci.Sparse(h) {
			to.ReaderAt, err = s.keep(in, h.Size)
		} else {
			to.ReaderAt, err = at(h)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place is where the content of a file belongs that may be the disk. At the root
// it must be the only file of the image.
func (s *subject) place(l *layer, h *tar.Header) *content {
	switch dir := path.Dir(clean(h.Name)); {
	case h.Typeflag != tar.TypeReg:
	case dir == diskDir:
		return &l.disk
	case dir == "." && len(s.manifest.Layers) == 1:
		return &l.root
	}
	return nil
}

// count takes an entry off the limits, so that what is remembered stays small.
func (s *subject) count(h *tar.Header) error {
	s.limits.entries--
	s.limits.names -= len(h.Name) + len(h.Linkname)
	switch {
	case len(h.Name) > maxName || len(h.Linkname) > maxName:
		return errLongName
	case s.limits.names < 0:
		return oci.ErrManyEntries
	}
	return nil
}

// keep writes the beginning of a disk into a temporary file.
func (s *subject) keep(in io.Reader, size int64) (io.ReaderAt, error) {
	if len(s.temporary) > maxContent {
		return nil, fmt.Errorf("more than %d files may be the disk", maxContent)
	}
	f, err := s.create("kept")
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(temporary{f}, io.LimitReader(in, s.limits.kept))
	return &kept{f, n, size}, err
}

// temporary is a file of ours, whose errors are not the image's.
type temporary struct{ file *os.File }

// Write implements io.Writer.
func (t temporary) Write(p []byte) (int, error) {
	n, err := t.file.Write(p)
	return n, mine(err)
}

func mine(err error) error {
	if err != nil {
		err = ours{err}
	}
	return err
}

// create makes a temporary file that is gone when the inspection ends.
func (s *subject) create(name string) (*os.File, error) {
	f, err := os.CreateTemp(s.temp, name)
	if err == nil {
		s.temporary = append(s.temporary, f)
	}
	return f, mine(err)
}

// kept is a file of size bytes of which only the beginning was kept.
type kept struct {
	file    *os.File
	n, size int64
}

// ReadAt implements io.ReaderAt.
func (k *kept) ReadAt(p []byte, offset int64) (int, error) {
	if end := offset + int64(len(p)); offset >= 0 && min(end, k.size) > k.n {
		return 0, disk.ErrNotRead
	}
	return k.file.ReadAt(p, offset)
}

const diskDir = "disk" // where KubeVirt and CDI look

// clean is a name without what may stand around it: "./disk/" is "disk".
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// entryTypes are the words for the kinds of entries.
var entryTypes = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symbolic link", tar.TypeLink: "hard link",
	tar.TypeChar: "device", tar.TypeBlock: "device", tar.TypeFifo: "pipe",
}

func entry(h *tar.Header) Entry {
	e := Entry{
		Name: h.Name, Type: entryTypes[h.Typeflag], Link: h.Linkname, Size: h.Size, UID: h.Uid, GID: h.Gid,
		Mode: fmt.Sprintf("%04o", h.Mode&0o7777), ModTime: h.ModTime.UTC(), mode: h.Mode & 0o7777, sparse: oci.Sparse(h),
	}
	switch {
	case h.Typeflag == tar.TypeGNUSparse: // containerd refuses it
		e.Type = "sparse file of GNU's old format"
	case e.Type == "":
		e.Type = fmt.Sprintf("entry of type %q", h.Typeflag)
	}
	if year := e.ModTime.Year(); year < 0 || year > 9999 { // JSON has no others
		e.ModTime = e.ModTime.AddDate(9999-year, 0, 0)
	}
	return e
}

// list puts the first entries into the report.
func (l *layer) list() {
	l.Count, l.Entries = len(l.entries), append([]Entry{}, l.entries[:min(len(l.entries), maxListed)]...)
}

// source remembers the first error of what an image is read from. The readers
// above it would take it for an error of the image.
type source struct {
	io.Reader
	io.ReaderAt
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	return n, s.note(err)
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	n, err := s.ReaderAt.ReadAt(p, offset)
	return n, s.note(err)
}

func (s *source) note(err error) error {
	if err != nil && err != io.EOF && !errors.Is(err, disk.ErrNotRead) && s.err == nil {
		s.err = err
	}
	return err
}

// bounded fails where more comes than *left allows.
type bounded struct {
	io.Reader
	left *int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if *b.left -= int64(n); *b.left < 0 {
		return 0, oci.ErrInflated
	}
	return n, err
}

// contextReader ends with the context's cause.
type contextReader struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(p)
}

const blockSize = 64 << 10 // bytes that are read at least

// blocks reads small parts in larger blocks and remembers some of them: the
// headers of an archive and of the disk in it lie close together.
type blocks struct {
	from io.ReaderAt
	kept [4]struct {
		offset int64
		bytes  []byte
		err    error
	}
	next int
}

// ReadAt implements io.ReaderAt.
func (b *blocks) ReadAt(p []byte, offset int64) (int, error) {
	if len(p) >= blockSize || offset < 0 || offset > math.MaxInt64-2*blockSize {
		return b.from.ReadAt(p, offset)
	}
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		bytes, err := b.block(at / blockSize * blockSize)
		n := 0
		if skip := at % blockSize; skip < int64(len(bytes)) {
			n = copy(p[done:], bytes[skip:])
		}
		if done += n; done < len(p) && err != nil {
			return done, err
		}
	}
	return done, nil
}

func (b *blocks) block(offset int64) ([]byte, error) {
	for i := range b.kept {
		if k := &b.kept[i]; k.offset == offset && k.bytes != nil {
			return k.bytes, k.err
		}
	}
	k := &b.kept[b.next]
	b.next = (b.next + 1) % len(b.kept)
	k.offset, k.bytes = offset, make([]byte, blockSize)
	n, err := b.from.ReadAt(k.bytes, offset)
	k.bytes, k.err = k.bytes[:n], err
	return k.bytes, err
}
