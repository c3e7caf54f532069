package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// How a layer is compressed.
const (
	Plain = "none"
	Gzip  = "gzip"
	Zstd  = "zstd"
)

const (
	maxWindow = 128 << 20 // bytes of memory that a zstd stream may ask for; zstd's own default

	// A layer that is smaller than what it claims may unpack to 16 GiB, or to
	// so many times its size: a disk of zeros alone does so to a thousand.
	alwaysUnpacked = 16 << 30
	mostInflated   = 256
)

var (
	// ErrManyEntries is the error of an archive with too many entries.
	ErrManyEntries = errors.New("there are too many entries in it")
	// ErrInflated is the error of a layer that would be unpacked for hours.
	ErrInflated = errors.New("it unpacks to more than any disk needs")
)

// Compression says how a layer is compressed that begins with these four bytes,
// whatever its media type says.
func Compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return Gzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return Zstd
	}
	return Plain
}

// Unpack returns what a layer unpacks to, and how it is compressed.
func Unpack(layer io.Reader) (unpacked io.ReadCloser, how string, err error) {
	in := bufio.NewReaderSize(layer, blockSize)
	head, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	switch how = Compression(head); how {
	case Gzip:
		unpacked, err = gzip.NewReader(in)
	case Zstd:
		var z *zstd.Decoder
		if z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			unpacked = z.IOReadCloser()
		}
	default:
		unpacked, err = io.NopCloser(in), nil
	}
	return unpacked, how, err
}

// Entries are those of a layer's archive, of which it may have at most so many,
// up to the first error. The layer's size is that of its blob, in bytes. Global
// headers, which name no file, are not among them.
func Entries(archive *tar.Reader, layer int64, most int) iter.Seq2[*tar.Header, error] {
	return func(yield func(*tar.Header, error) bool) {
		for n := 0; ; n++ {
			h, err := archive.Next()
			switch {
			case err == io.EOF:
				return
			case err != nil:
			case n == most:
				err = fmt.Errorf("%w: more than %d files", ErrManyEntries, most)
			case h.Typeflag == tar.TypeXGlobalHeader:
				continue
			case h.Size > max(alwaysUnpacked, min(layer, math.MaxInt64/mostInflated)*mostInflated):
				err = fmt.Errorf("%w: its layer of %d bytes claims to hold a disk of %d GiB", ErrInflated, layer, h.Size>>30)
			}
			if !yield(h, err) || err != nil {
				return
			}
		}
	}
}

// Sparse says whether an entry leaves holes out (PAX, as GNU tar writes it).
func Sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
