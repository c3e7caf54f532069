package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"
)

const (
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
