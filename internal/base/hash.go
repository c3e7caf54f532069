package base

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// hashes are the digests of one file: SHA-256 always, SHA-512 where the
// checksum is one.
type hashes struct {
	sha256, sha512 hash.Hash
	io.Writer
}

func newHashes(algorithm string) *hashes {
	h := &hashes{sha256: sha256.New()}
	h.Writer = h.sha256
	if algorithm == SHA512 {
		h.sha512 = sha512.New()
		h.Writer = io.MultiWriter(h.sha256, h.sha512)
	}
	return h
}

// digest is the file's digest in the form "sha256:…".
func (h *hashes) digest() string { return SHA256 + ":" + hex.EncodeToString(h.sha256.Sum(nil)) }

// check compares with the checksum. The error names both digests.
func (h *hashes) check(want Checksum, name string) error {
	got := Checksum{Algorithm: SHA256, Hex: hex.EncodeToString(h.sha256.Sum(nil))}
	if want.Algorithm == SHA512 {
		got = Checksum{Algorithm: SHA512, Hex: hex.EncodeToString(h.sha512.Sum(nil))}
	}
	if got == want {
		return nil
	}
	return failure.New(fmt.Sprintf("wrong checksum of %s: it is %s, expected was %s", name, got, want),
		"correct ISO_CHECKSUM if the publisher has a new image, else distrust the file")
}

// openRegular opens a regular file for reading, without waiting for the
// writer of a pipe.
func openRegular(path string, flags int) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, flags|os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: fmt.Errorf("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

// feed hashes what r has, to its end.
func (h *hashes) feed(ctx context.Context, r io.Reader, size int64, to progress.Reporter) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{progress.Reader(untilDone{ctx, r}, size, to)}, make([]byte, 1<<20))
	return err
}

// untilDone is a Reader that ends with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(b)
}
