// Digest names files by the sha256 of their content.

package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"regexp"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

const buffer = 1 << 20 // bytes

var form = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Valid says whether s is a digest in the form "sha256:…".
func ValidDigest(s string) bool { return form.MatchString(s) }

// File returns the digest of a regular file in the form "sha256:…".
func DigestFile(ctx context.Context, path string, to progress.Reporter) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return Digest(ctx, f, to)
}

// Of returns the digest of an open regular file, read from where it stands.
func Digest(ctx context.Context, f *os.File, to progress.Reporter) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", &os.PathError{Op: "digest", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	h, b := sha256.New(), make([]byte, buffer)
	r := progress.Reader(f, st.Size(), to)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := r.Read(b)
		h.Write(b[:n])
		if err == io.EOF {
			return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}
