package base

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// entry is the cache's directory of one file, named by its checksum:
//
//	image        the file, complete and with that checksum
//	image.part   its beginning, while it is downloaded
//	source.json  from where, and which version of it
//
// The directory itself carries the lock, so there is no file to be left over.
type entry struct {
	dir  string
	sum  Checksum
	lock *os.File
}

// openEntry makes the entry if missing and waits for its lock.
func openEntry(ctx context.Context, cacheDir string, sum Checksum, to progress.Reporter) (*entry, error) {
	dir := filepath.Join(cacheDir, sum.Algorithm+"-"+sum.Hex)
	held, err := host.LockDir(ctx, dir, "waiting for another process that downloads the same file", to)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, &failure.Error{What: err.Error(), Try: "check CACHE_DIR", Err: err}
	}
	return &entry{dir: dir, sum: sum, lock: held}, nil
}

// close ends the lock, and removes the directory if nothing came into it.
func (e *entry) close() {
	os.Remove(e.dir)
	e.lock.Close()
}

func (e *entry) image() string  { return filepath.Join(e.dir, "image") }
func (e *entry) part() string   { return filepath.Join(e.dir, "image.part") }
func (e *entry) source() string { return filepath.Join(e.dir, "source.json") }

// cached returns the file if it is there and still has its checksum. What was
// tampered with is removed, with a warning.
func (e *entry) cached(ctx context.Context, to progress.Reporter) (File, bool, error) {
	f, err := host.OpenNoFollow(e.image())
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, false, nil
	}
	if err != nil {
		to.Warn(fmt.Sprintf("the cached file cannot be read (%v), it is fetched again", err))
		return File{}, false, os.RemoveAll(e.image())
	}
	defer f.Close()
	file, err := check(ctx, f, e.sum, to)
	if isWrongSum(err) {
		to.Warn(fmt.Sprintf("the cached file was changed: it is %s, not %s; it is fetched again", file.Digest, e.sum))
		return File{}, false, os.Remove(e.image())
	}
	file.Modified, file.Cached = e.origin().modified(), true
	return file, err == nil, err
}

// origin says which version of which URL a file is.
type origin struct {
	URL          string `json:"url"` // without what may be secret in it
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
}

const maxOrigin = 64 << 10 // bytes

// origin returns what source.json says; nothing if it is unreadable.
func (e *entry) origin() origin {
	f, err := host.OpenNoFollow(e.source())
	if err != nil {
		return origin{}
	}
	defer f.Close()
	return readOrigin(f)
}

func readOrigin(r io.Reader) (o origin) {
	b, err := host.ReadAll(r, maxOrigin)
	if err != nil || json.Unmarshal(b, &o) != nil {
		return origin{}
	}
	return o
}

func (e *entry) saveOrigin(o origin) error {
	return host.WriteFile(e.source(), 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(o) })
}

func originOf(src source, resp *http.Response) origin {
	return origin{URL: src.String(), ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
}

// modified is the date of Last-Modified, or zero.
func (o origin) modified() time.Time {
	t, err := http.ParseTime(o.LastModified)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// validator is what If-Range takes: a strong ETag, else the date; empty where
// the server gave neither.
func (o origin) validator() string {
	if o.ETag != "" && o.ETag[0] == '"' {
		return o.ETag
	}
	return o.LastModified
}
