package workdir

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

const hashBuffer = 1 << 20 // bytes

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Digest returns the digest of a regular file in the form "sha256:…".
func Digest(ctx context.Context, path string, to progress.Reporter) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digest(ctx, f, to)
}

func digest(ctx context.Context, f *os.File, to progress.Reporter) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", &os.PathError{Op: "digest", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	h, b := sha256.New(), make([]byte, hashBuffer)
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
