package contract

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	maxListed = 100     // entries of a layer in the report
	maxKept   = 5       // disks of which the beginning is kept
	maxName   = 1 << 10 // bytes of a path; no image has one near that
)

// layer is a layer that was read.
type layer struct {
	Layer
	archive
}

// archive is what is in a layer.
type archive struct {
	entries []Entry
	// contents are those of the first regular file in disk/ and, in an image
	// of one layer, at the root, by their folders.
	contents map[string]*content
	// diffID is the digest of the unpacked layer, where all of it was read.
	diffID string
	// err is why the archive cannot be read to its end.
	err error
}

// readLayer reads what is in a layer: in parts where that is possible, else
// from its beginning to its end. Its error is one of the source; what is wrong
// with the layer itself becomes part of it.
func (s *subject) readLayer(ctx context.Context, d v1.Descriptor, p progress.Reporter) (*layer, error) {
	l := &layer{Layer: Layer{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size}}
	b, err := s.image.Blob(d)
	if err != nil {
		return nil, fmt.Errorf("its layer: %w", err)
	}
	head := make([]byte, min(d.Size, 4))
	_, err = b.ReadAt(head, 0)
	switch l.Compression = host.Compression(head); {
	case errors.Is(err, oci.ErrNoRanges):
		l.WholeRead = oci.ErrNoRanges.Error()
	case err != nil && err != io.EOF:
		return nil, err
	case l.Compression != host.Plain:
		l.WholeRead = "it is compressed"
	default:
		l.archive = s.readParts(ctx, l, b)
		if s.fault == nil && errors.Is(l.err, oci.ErrManyEntries) {
			l.WholeRead = fmt.Sprintf("it has more than %d entries", s.limits.parts)
		}
	}
	if l.WholeRead != "" {
		l.archive = s.stream(ctx, l, b, p)
	}
	l.Count, l.Entries = len(l.entries), append([]Entry{}, l.entries[:min(len(l.entries), maxListed)]...)
	return l, s.fault
}

// readParts reads the headers of a plain layer's archive. One in a layout is
// read whole besides, for its digest: that costs no transfer.
func (s *subject) readParts(ctx context.Context, l *layer, b oci.Blob) archive {
	whole := io.NewSectionReader(&blocks{source{ReaderAt: b, s: s}, map[int64][]byte{}}, 0, l.Size)
	a := s.walk(ctx, l, whole, s.limits.parts)
	a.diffID = l.Digest // as nothing is packed
	if !s.remote() {
		rc, err := b.Open()
		if err == nil {
			_, err = io.Copy(io.Discard, host.Reader(ctx, rc))
			rc.Close()
		}
		_ = s.blame(err)
	}
	return a
}

// stream unpacks a layer, keeping the beginning of a disk.
func (s *subject) stream(ctx context.Context, l *layer, b oci.Blob, p progress.Reporter) archive {
	rc, err := b.Open()
	if err != nil {
		return archive{err: s.blame(err)}
	}
	defer rc.Close()
	unpacked, how, err := host.Unpack(source{Reader: progress.Reader(host.Reader(ctx, rc), l.Size, p), s: s})
	if l.Compression = how; err != nil {
		return archive{err: err}
	}
	defer unpacked.Close()
	bounded, sum := &io.LimitedReader{R: unpacked, N: s.limits.unpacked}, sha256.New()
	in := io.TeeReader(bounded, sum)
	a := s.walk(ctx, l, in, math.MaxInt)
	if a.err == nil {
		_, a.err = io.Copy(io.Discard, in)
	}
	if s.limits.unpacked = bounded.N; bounded.N == 0 {
		a.err = oci.ErrInflated
	}
	if a.err == nil {
		a.diffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	}
	return a
}

// walk lists the entries of an archive. Where it can be read in parts the content
// of a disk is read there later, else its beginning is kept as it passes.
func (s *subject) walk(ctx context.Context, l *layer, from io.Reader, most int) archive {
	a, in := archive{contents: map[string]*content{}}, tar.NewReader(from)
	whole, inParts := from.(*io.SectionReader)
	for h, err := range oci.Entries(in, l.Size, min(most, s.limits.entries)) {
		if err == nil {
			err = s.admit(h, inParts)
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil || errors.Is(err, oci.ErrInflated) {
			a.entries = append(a.entries, entry(h))
		}
		if err == nil && s.mayBeDisk(h) {
			c := &content{s: s, name: clean(h.Name), size: h.Size}
			if a.contents[path.Dir(c.name)] != nil {
				continue
			}
			if inParts && !oci.Sparse(h) {
				at, _ := whole.Seek(0, io.SeekCurrent) // that cannot fail
				c.from = io.NewSectionReader(whole, at, h.Size)
			} else {
				err = c.keep(in)
			}
			a.contents[path.Dir(c.name)] = c
		}
		if err != nil {
			a.err = err
			break
		}
	}
	return a
}

// admit takes an entry off the limits, so that what is remembered stays small.
func (s *subject) admit(h *tar.Header, inParts bool) error {
	s.limits.entries--
	s.limits.names -= len(h.Name) + len(h.Linkname)
	switch {
	case len(h.Name) > maxName || len(h.Linkname) > maxName:
		return fmt.Errorf("it has a name of more than %d bytes", maxName)
	case s.limits.names < 0:
		return oci.ErrManyEntries
	case (!inParts || oci.Sparse(h)) && h.Size > s.limits.unpacked:
		return oci.ErrInflated
	}
	return nil
}

// mayBeDisk says whether an entry is a file in disk/ or, in an image of one
// layer, at the root.
func (s *subject) mayBeDisk(h *tar.Header) bool {
	dir := path.Dir(clean(h.Name))
	return h.Typeflag == tar.TypeReg && (dir == diskDir || dir == "." && len(s.manifest.Layers) == 1)
}

const diskDir = "disk" // where KubeVirt and CDI look

// clean is a name without what may stand around it: "./disk/" is "disk".
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// entryTypes are the words for the kinds of entries.
var entryTypes = map[byte]string{
	tar.TypeReg: "file", tar.TypeDir: "directory", tar.TypeSymlink: "symbolic link", tar.TypeLink: "hard link",
	tar.TypeChar: "device", tar.TypeBlock: "device", tar.TypeFifo: "pipe",
	tar.TypeGNUSparse: "sparse file of GNU's old format", // containerd refuses it
}

func entry(h *tar.Header) Entry {
	e := Entry{
		Name: h.Name, Type: entryTypes[h.Typeflag], Link: h.Linkname, Size: h.Size, UID: h.Uid, GID: h.Gid,
		Mode: fmt.Sprintf("%04o", h.Mode&0o7777), ModTime: h.ModTime.UTC(), sparse: oci.Sparse(h),
	}
	if e.Type == "" {
		e.Type = fmt.Sprintf("entry of type %q", h.Typeflag)
	}
	if year := e.ModTime.Year(); year < 0 || year > 9999 { // JSON has no others
		e.ModTime = e.ModTime.AddDate(9999-year, 0, 0)
	}
	return e
}

const (
	blockSize  = 64 << 10 // bytes that are read at least
	keptBlocks = 4
)

// blocks reads small parts in larger blocks and remembers some of them: the
// headers of an archive and of the disk in it lie close together.
type blocks struct {
	from io.ReaderAt
	kept map[int64][]byte // by their number; a short one is the last
}

func (b *blocks) ReadAt(p []byte, offset int64) (int, error) {
	if len(p) >= blockSize || offset < 0 {
		return b.from.ReadAt(p, offset)
	}
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		block, err := b.block(at / blockSize)
		if err != nil {
			return done, err
		}
		skip := at % blockSize
		if skip >= int64(len(block)) {
			return done, io.EOF
		}
		done += copy(p[done:], block[skip:])
	}
	return done, nil
}

func (b *blocks) block(n int64) ([]byte, error) {
	if block, known := b.kept[n]; known {
		return block, nil
	}
	block := make([]byte, blockSize)
	read, err := b.from.ReadAt(block, n*blockSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(b.kept) == keptBlocks {
		clear(b.kept)
	}
	b.kept[n] = block[:read]
	return b.kept[n], nil
}
