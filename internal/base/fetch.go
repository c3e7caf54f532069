package base

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Options are the settings of Fetch.
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
	Modified time.Time // when its publisher changed it; zero if nobody told
	Cached   bool      // it was in the cache already
}

// Resolve returns the digest that sum states for the file that rawURL names:
// sum itself, or what stands in its list. Nothing but the list is fetched.
func ResolveChecksum(ctx context.Context, rawURL string, sum Checksum, o DownloadOptions, to progress.Reporter) (Checksum, error) {
	if sum.File == "" {
		return sum, nil
	}
	src, err := parseSource(rawURL)
	if err != nil {
		return Checksum{}, err
	}
	client, err := newClient(o)
	if err != nil {
		return Checksum{}, err
	}
	defer client.CloseIdleConnections()
	return lookUp(ctx, client, sum.File, src.base, o, to)
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
	if sum, err = ResolveChecksum(ctx, rawURL, sum, o, to); err != nil {
		return File{}, err
	}
	client, err := newClient(o)
	if err != nil {
		return File{}, err
	}
	defer client.CloseIdleConnections()
	if src.url == nil {
		return local(ctx, src.path, sum, to)
	}
	e, err := openEntry(ctx, o.CacheDir, sum, to)
	if err != nil {
		return File{}, err
	}
	defer e.close()
	if f, ok, err := e.cached(ctx, to); ok || err != nil {
		return f, err
	}
	return e.download(ctx, client, src, o, to)
}

// source is what ISO_URL names.
type source struct {
	url  *url.URL // nil for a local file
	path string   // of a local file
	base string   // the file's own name
}

func (s source) String() string {
	if s.url == nil {
		return s.path
	}
	return redact(s.url.String())
}

func parseSource(raw string) (source, error) {
	if u, ok := remote(raw); ok {
		return source{url: u, base: path.Base(u.Path)}, nil
	}
	name, err := localPath(raw)
	return source{path: name, base: filepath.Base(name)}, err
}

// localPath returns the path that a file URL or a plain path names.
func localPath(raw string) (string, error) {
	if raw == "" {
		return "", failure.New("the URL is empty", "set ISO_URL")
	}
	if !strings.Contains(raw, "://") {
		return raw, nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "file" {
		return "", failure.New("this URL cannot be fetched: "+redact(raw), "use http, https, file or a path")
	}
	if u.Host != "" && u.Host != "localhost" || u.Path == "" {
		return "", failure.New("a file URL has three slashes: "+redact(raw), "write file:///path")
	}
	return u.Path, nil
}

// local hashes a file where it lies.
func local(ctx context.Context, name string, sum Checksum, to progress.Reporter) (File, error) {
	f, st, err := openRegular(name, 0)
	if err != nil {
		return File{}, failure.New(err.Error(), "check ISO_URL")
	}
	defer f.Close()
	h := newHashes(sum.Algorithm)
	if err := h.feed(ctx, f, st.Size(), to); err != nil {
		return File{}, err
	}
	if err := h.check(sum, name); err != nil {
		return File{}, err
	}
	return File{Path: name, Digest: h.digest(), Size: st.Size(), Modified: st.ModTime()}, nil
}

const maxList = 4 << 20 // bytes of a list of checksums

// lookUp finds the digest of the file called base in a list.
func lookUp(ctx context.Context, client *http.Client, list, base string, o DownloadOptions, to progress.Reporter) (Checksum, error) {
	content, err := readList(ctx, client, list, o, to)
	if ctx.Err() != nil {
		return Checksum{}, context.Cause(ctx)
	}
	var sum Checksum
	if err == nil {
		sum, err = parseList(content, base)
	}
	if f, ok := failure.In(err); ok {
		return Checksum{}, &failure.Error{What: fmt.Sprintf("checksum file %s: %s", redact(list), f.What), Try: f.Try, Err: err}
	}
	if err != nil {
		return Checksum{}, failure.Wrap(err, "checksum file "+redact(list), "check the file: form of ISO_CHECKSUM")
	}
	return sum, nil
}

func readList(ctx context.Context, client *http.Client, list string, o DownloadOptions, to progress.Reporter) ([]byte, error) {
	u, isRemote := remote(list)
	if !isRemote {
		name, err := localPath(list)
		if err != nil {
			return nil, err
		}
		f, _, err := openRegular(name, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readBounded(f)
	}
	strict := *client
	strict.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if req.URL.Scheme == "http" && !httpclient.Loopback(req.URL.Hostname()) {
			return permanentError{errPlainList}
		}
		return nil
	}
	var content []byte
	err := o.retry(ctx, redact(list), to, func() (int64, error) {
		resp, err := get(ctx, &strict, u, http.Header{})
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		content, err = readBounded(resp.Body)
		return 0, err
	})
	return content, err
}

var errPlainList = errors.New("redirected to plain http, where a checksum file proves nothing")

func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxList+1))
	if err == nil && len(b) > maxList {
		err = failure.New("it is too long for a list of checksums", "check its URL")
	}
	return b, err
}

// noSpace says whether err means a full disk or quota.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
