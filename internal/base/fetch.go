package base

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
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
	// Backoff is the pause before the second attempt; it doubles with every
	// further one. Zero means 1 s.
	Backoff time.Duration
	// Stall is how long a server may get nowhere. Zero means 60 s.
	Stall time.Duration
	// Most is how many bytes a file may have whose server does not say its
	// size. Zero means 64 GiB.
	Most int64
}

// File is a file whose checksum was right.
type File struct {
	Path     string
	Digest   string    // "sha256:…", whatever the checksum's algorithm
	Size     int64     // bytes
	Modified time.Time // when its publisher changed it; zero if that is not known
	Cached   bool      // it was in the cache already
}

// ResolveChecksum returns the digest that sum states for the file that rawURL
// names: sum itself, or what stands in its list. Nothing but the list is
// fetched.
func ResolveChecksum(ctx context.Context, rawURL string, sum Checksum, o DownloadOptions, to progress.Reporter) (Checksum, error) {
	if sum.File == "" {
		return sum, nil
	}
	src, err := parseSource(rawURL)
	if err != nil {
		return Checksum{}, err
	}
	d, err := newDownloader(o, to)
	if err != nil {
		return Checksum{}, err
	}
	defer d.http.CloseIdleConnections()
	return d.lookUp(ctx, sum.File, src.name)
}

// Fetch returns the file that rawURL names (http, https, file or a plain
// path) after its checksum was found right. A local file is hashed where it
// lies, never copied. Attempts are repeated where that may help; a wrong
// checksum, or an answer like 404, is final at once. When ctx ends, what has
// arrived stays in the cache and the next call goes on from there.
func Fetch(ctx context.Context, rawURL string, sum Checksum, o DownloadOptions, to progress.Reporter) (File, error) {
	if sum == (Checksum{}) {
		return File{}, failure.New("a base image needs a checksum", checksumForms)
	}
	src, err := parseSource(rawURL)
	if err != nil {
		return File{}, err
	}
	d, err := newDownloader(o, to)
	if err != nil {
		return File{}, err
	}
	defer d.http.CloseIdleConnections()
	if sum.File != "" {
		if sum, err = d.lookUp(ctx, sum.File, src.name); err != nil {
			return File{}, err
		}
	}
	if src.url == nil {
		f, err := host.Open(src.path)
		if err != nil {
			return File{}, &failure.Error{What: err.Error(), Try: "check ISO_URL", Err: err}
		}
		defer f.Close()
		return check(ctx, f, sum, to)
	}
	e, err := openEntry(ctx, o.CacheDir, sum, to)
	if err != nil {
		return File{}, err
	}
	defer e.close()
	if f, ok, err := e.cached(ctx, to); ok || err != nil {
		return f, err
	}
	return d.download(ctx, src, e)
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

// hashes are the digests of one file: SHA-256 always, and the checksum's.
type hashes struct {
	io.Writer
	sha256, wanted hash.Hash
	want           Checksum
}

func newHashes(want Checksum) *hashes {
	h := &hashes{sha256: sha256.New(), want: want}
	h.Writer, h.wanted = h.sha256, h.sha256
	if want.Algorithm == SHA512 {
		h.wanted = sha512.New()
		h.Writer = io.MultiWriter(h.sha256, h.wanted)
	}
	return h
}

// digest is the file's digest in the form "sha256:…".
func (h *hashes) digest() string { return SHA256 + ":" + hex.EncodeToString(h.sha256.Sum(nil)) }

// checksumError is the error of a file that has another checksum.
type checksumError struct {
	name      string
	got, want Checksum
}

// Error names both digests.
func (e *checksumError) Error() string {
	return fmt.Sprintf("wrong checksum of %s: it is %s, expected was %s", e.name, e.got, e.want)
}

// check compares with the checksum.
func (h *hashes) check(name string) error {
	got := Checksum{Algorithm: h.want.Algorithm, Hex: hex.EncodeToString(h.wanted.Sum(nil))}
	if got == h.want {
		return nil
	}
	err := &checksumError{name, got, h.want}
	return &failure.Error{What: err.Error(), Try: "correct ISO_CHECKSUM if the publisher has a new image, else distrust the file", Err: err}
}

func isWrongSum(err error) bool { return errors.As(err, new(*checksumError)) }

// check hashes a file where it lies.
func check(ctx context.Context, f *os.File, sum Checksum, to progress.Reporter) (File, error) {
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	h := newHashes(sum)
	if _, err := host.Copy(ctx, h, progress.Reader(f, st.Size(), to)); err != nil {
		return File{}, err
	}
	return File{Path: f.Name(), Digest: h.digest(), Size: st.Size(), Modified: st.ModTime()}, h.check(f.Name())
}

const maxList = 4 << 20 // bytes of a list of checksums

// lookUp finds the digest of the file called name in a list.
func (d *downloader) lookUp(ctx context.Context, list, name string) (Checksum, error) {
	content, err := d.readList(ctx, list)
	if ctx.Err() != nil {
		return Checksum{}, context.Cause(ctx)
	}
	var sum Checksum
	if err == nil {
		sum, err = parseList(content, name)
	}
	if f, ok := failure.In(err); ok {
		return Checksum{}, &failure.Error{What: fmt.Sprintf("checksum file %s: %s", text.URL(list), f.What), Try: f.Try, Err: err}
	}
	if err != nil {
		return Checksum{}, failure.Wrap(err, "checksum file "+text.URL(list), "check the file: form of ISO_CHECKSUM")
	}
	return sum, nil
}

func (d *downloader) readList(ctx context.Context, list string) (content []byte, err error) {
	src, err := parseSource(list)
	if err != nil {
		return nil, err
	}
	if src.url == nil {
		f, err := host.Open(src.path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return host.ReadAll(f, maxList)
	}
	strict := *d.http
	strict.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if req.URL.Scheme == "http" && !httpclient.Loopback(req.URL.Hostname()) {
			return permanentError{errors.New("redirected to plain http, where a checksum file proves nothing")}
		}
		return nil
	}
	err = d.retry(ctx, src.String(), func() (int64, error) {
		resp, err := get(ctx, &strict, src.url, http.Header{})
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		content, err = host.ReadAll(resp.Body, maxList)
		if tooLarge := (*host.TooLargeError)(nil); errors.As(err, &tooLarge) {
			err = permanentError{failure.Wrap(err, "it is too long for a list of checksums", "check its URL")}
		}
		return 0, err
	})
	return content, err
}
