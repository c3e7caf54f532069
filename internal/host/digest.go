package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"regexp"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ValidDigest says whether s is a digest in the form "sha256:…".
func ValidDigest(s string) bool { return digestForm.MatchString(s) }

// DigestFile returns the digest of a regular file in the form "sha256:…".
func DigestFile(ctx context.Context, path string, to progress.Reporter) (string, error) {
	f, err := Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return Digest(ctx, f, to)
}

// Digest returns the digest of an open regular file, read from where it stands.
func Digest(ctx context.Context, f *os.File, to progress.Reporter) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := Copy(ctx, h, progress.Reader(f, st.Size(), to)); err != nil {
		return "", err
	}
	return digest(h), nil
}

func digest(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// Verify returns a reader of the size bytes of r whose digest is want
// ("sha256:…"). Where they have another it fails with what wrong makes of that,
// before it gives out the last of them; where r ends early, with
// io.ErrUnexpectedEOF.
func Verify(r io.Reader, size int64, want string, wrong func(got string) error) io.Reader {
	return &verified{from: r, left: size, want: want, wrong: wrong, hash: sha256.New()}
}

type verified struct {
	from  io.Reader
	left  int64
	hash  hash.Hash
	want  string
	wrong func(got string) error
	err   error // how it ended: io.EOF where all is well
}

// Read implements io.Reader.
func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil || len(p) == 0 {
		return 0, v.err
	}
	n, err := v.from.Read(p[:min(int64(len(p)), v.left)])
	v.hash.Write(p[:n])
	v.left -= int64(n)
	switch {
	case v.left == 0:
		if v.err = io.EOF; digest(v.hash) != v.want {
			n, v.err = 0, v.wrong(digest(v.hash))
		}
	case err == io.EOF:
		v.err = io.ErrUnexpectedEOF
	default:
		v.err = err
	}
	return n, v.err
}
