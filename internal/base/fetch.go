package base

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// DownloadOptions are the settings of Fetch.
type DownloadOptions struct {
	// CacheDir holds what was downloaded, by checksum; it is made if missing.
	CacheDir string
	// CAFile is a PEM file of authorities trusted besides the host's, or empty.
	CAFile string
	// Keyring is a file of OpenPGP public keys, one of which must have signed a list
	// of checksums, or empty: then only publishers that are known to sign have to.
	Keyring string
	// Backoff is the pause before the second attempt; it doubles with every
	// further one. Zero means 1 s.
	Backoff time.Duration
	// Stall is how long a server may get nowhere. Zero means 60 s.
	Stall time.Duration
	// Most is how many bytes a file may have whose server does not say its
	// size. Zero means 64 GiB.
	Most int64

	dial httpclient.Dial // net.Dialer's where it is nil
}

// File is a file whose checksum was right.
type File struct {
	Path     string
	Digest   string    // "sha256:…", whatever the checksum's algorithm
	Size     int64     // bytes
	Modified time.Time // when its publisher changed it; zero if that is not known
	Cached   bool      // it was in the cache already
}

// Fetch returns the file that rawURL names (http, https, file or a plain
// path) after its checksum, in ParseChecksum's form, was found right. A local
// file is hashed where it lies, never copied. Attempts are repeated where that
// may help; a wrong checksum, or an answer like 404, is final at once. When ctx
// ends, what has arrived stays in the cache and the next call goes on from there.
func Fetch(ctx context.Context, rawURL, sum string, o DownloadOptions, to progress.Reporter) (File, error) {
	if sum == "" {
		return File{}, failure.New("a base image needs a checksum", checksumForms)
	}
	src, err := parseSource(rawURL)
	if err != nil {
		return File{}, err
	}
	stated, err := ResolveChecksum(ctx, rawURL, sum, o, to)
	if err != nil {
		return File{}, err
	}
	if src.url == nil {
		f, err := host.Open(src.path)
		if err != nil {
			return File{}, &failure.Error{What: err.Error(), Try: "check ISO_URL", Err: err}
		}
		defer f.Close()
		return check(ctx, f, src.path, stated.Sum, to)
	}
	c, err := newClient(o, to)
	if err != nil {
		return File{}, err
	}
	defer c.http.CloseIdleConnections()
	return c.fetch(ctx, src, stated.Sum)
}

// source is what ISO_URL, or the name of a list, stands for.
type source struct {
	url  *url.URL // nil for a local file
	path string   // of a local file
	name string   // the file's own
}

func (s source) String() string {
	if s.url == nil {
		return s.path
	}
	return text.URL(s.url.String())
}

func parseSource(raw string) (source, error) {
	if u, ok := remote(raw); ok {
		return source{url: u, name: path.Base(u.Path)}, nil
	}
	name := raw
	if strings.Contains(raw, "://") {
		u, err := url.Parse(raw)
		switch {
		case err != nil || u.Scheme != "file":
			return source{}, failure.New("this URL cannot be fetched: "+text.URL(raw), "use http, https, file or a path")
		case u.Host != "" && u.Host != "localhost" || u.Path == "":
			return source{}, failure.New("a file URL has three slashes: "+text.URL(raw), "write file:///path")
		}
		name = u.Path
	}
	if name == "" {
		return source{}, failure.New("the URL is empty", "set ISO_URL")
	}
	return source{path: name, name: filepath.Base(name)}, nil
}

// errWrong is the cause of the error of a file that has another checksum.
var errWrong = errors.New("wrong checksum")

// check hashes a file, called name, where it lies. With errWrong, it says the
// digest, too.
func check(ctx context.Context, f *os.File, name, want string, to progress.Reporter) (File, error) {
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	sha := sha256.New()
	wanted, hashes := sha, io.Writer(sha)
	algorithm, _, _ := strings.Cut(want, ":")
	if algorithm == "sha512" {
		wanted = sha512.New()
		hashes = io.MultiWriter(sha, wanted)
	}
	if _, err := host.Copy(ctx, hashes, progress.Reader(f, st.Size(), to)); err != nil {
		return File{}, err
	}
	file := File{Path: f.Name(), Digest: "sha256:" + hex.EncodeToString(sha.Sum(nil)), Size: st.Size(), Modified: st.ModTime()}
	if got := algorithm + ":" + hex.EncodeToString(wanted.Sum(nil)); got != want {
		return file, &failure.Error{
			What: fmt.Sprintf("%v of %s: it is %s, expected was %s", errWrong, name, got, want),
			Try:  "correct ISO_CHECKSUM if the publisher has a new image, else distrust the file", Err: errWrong,
		}
	}
	return file, nil
}

const maxList = 4 << 20 // bytes of a list of checksums

// Nobody is who signed a list that need not be signed: nobody looked.
const Nobody = "nobody"

// Stated is what a checksum says of a file, and who says it.
type Stated struct {
	Sum string // "sha256:…" or "sha512:…"
	// SignedBy is the fingerprint of the key by which its list is signed, or
	// Nobody; empty where there is no list.
	SignedBy string
	// Release is which one the publisher's newest was, where the file's URL names
	// the newest (release.go), or empty.
	Release string
}

// ResolveChecksum returns what sum states of the file that rawURL names: sum
// itself, or what stands in its list. The list must be signed where Keyring is set
// and where its publisher is known to sign. Of the file nothing is fetched.
func ResolveChecksum(ctx context.Context, rawURL, sum string, o DownloadOptions, to progress.Reporter) (Stated, error) {
	at, isList := strings.CutPrefix(sum, list)
	if !isList {
		return Stated{Sum: sum}, nil
	}
	file, err := parseSource(rawURL)
	if err != nil {
		return Stated{}, err
	}
	stated, err := readList(ctx, at, file, o, to)
	if ctx.Err() != nil {
		return Stated{}, context.Cause(ctx)
	}
	if f, ok := failure.In(err); ok {
		return Stated{}, &failure.Error{What: fmt.Sprintf("checksum file %s: %s", text.URL(at), f.What), Try: f.Try, Err: err}
	}
	if err != nil {
		return Stated{}, failure.Wrap(err, "checksum file "+text.URL(at), "check the file: form of ISO_CHECKSUM")
	}
	return stated, nil
}

func readList(ctx context.Context, at string, file source, o DownloadOptions, to progress.Reporter) (s Stated, err error) {
	src, err := parseSource(at)
	if err != nil {
		return s, err
	}
	c, err := newClient(o, to)
	if err != nil {
		return s, err
	}
	defer c.http.CloseIdleConnections()
	c.http.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if provesNothing(req.URL) {
			return failure.New("redirected to plain http, where a checksum file proves nothing", "use its https URL, or write the digest itself")
		}
		return nil
	}
	content, changed, err := c.read(ctx, src, "a list of checksums", maxList)
	if err != nil {
		return s, err
	}
	if content, s.SignedBy, err = c.signed(ctx, src, content); err != nil {
		return s, err
	}
	if s.Sum, err = parseList(content, file.name); err == nil && src.url != nil {
		s.Release = c.release(ctx, file, content, changed)
	}
	return s, err
}

// read returns a file that is no longer than most bytes, and its Last-Modified where
// it comes from a server.
func (c *client) read(ctx context.Context, src source, what string, most int64) (content []byte, changed string, err error) {
	all := func(r io.Reader) (err error) {
		content, err = host.ReadAll(r, most)
		if tooLarge := (*host.TooLargeError)(nil); errors.As(err, &tooLarge) {
			err = failure.Wrap(err, "it is too long for "+what, "check its URL")
		}
		return err
	}
	if src.url == nil {
		f, err := host.Open(src.path)
		if err != nil {
			return nil, "", err
		}
		defer f.Close()
		err = all(f)
		return content, "", err
	}
	err = c.retry(ctx, src.String(), func() (int64, error) {
		resp, err := get(ctx, c.http, src.url.String(), nil)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		changed = resp.Header.Get("Last-Modified")
		return 0, all(resp.Body)
	})
	return content, changed, err
}
