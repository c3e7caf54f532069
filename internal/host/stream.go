package host

import (
	"bufio"
	"bytes"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// How a stream is compressed.
const (
	Plain = "none"
	Gzip  = "gzip"
	Zstd  = "zstd"
)

// maxWindow is the memory that a zstd stream may ask for, in bytes; zstd's own default.
const maxWindow = 128 << 20

// Compression says how a stream is compressed that begins with these four bytes,
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

// Unpack returns what a stream unpacks to, and how it is compressed.
func Unpack(stream io.Reader) (unpacked io.ReadCloser, how string, err error) {
	in := bufio.NewReaderSize(stream, 1<<20)
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

// SparseWriter writes to a file, from its beginning on, and leaves holes where there are
// long runs of zeros. The file's length is the caller's to set.
type SparseWriter struct {
	File *os.File
	At   int64 // where the next byte goes
}

const sparseStep = 64 << 10 // bytes

var zeros [sparseStep]byte

// Write implements io.Writer.
func (s *SparseWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		step := b[:min(len(b), sparseStep)]
		if !bytes.Equal(step, zeros[:len(step)]) {
			if _, err := s.File.WriteAt(step, s.At); err != nil {
				return 0, err
			}
		}
		s.At += int64(len(step))
		b = b[len(step):]
	}
	return n, nil
}
