package base

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// entry is the cache's directory of one file, named by its checksum:
//
//	image        the file, complete and with that checksum
//	image.part   its beginning, while it is downloaded
//	source.json  whence, and which version of it
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
		return nil, failure.New(err.Error(), "check CACHE_DIR")
	}
	return &entry{dir: dir, sum: sum, lock: held}, nil
}

// close ends the lock, and removes the directory if nothing came into it.
func (e *entry) close() {
	os.Remove(e.dir)
	e.lock.Close()
}

func (e *entry) file(name string) string { return filepath.Join(e.dir, name) }

func (e *entry) image() string { return e.file("image") }

// cached returns the file if it is there and still has its checksum. What was
// tampered with is removed, and said.
func (e *entry) cached(ctx context.Context, to progress.Reporter) (File, bool, error) {
	f, st, err := openRegular(e.image(), syscall.O_NOFOLLOW)
	if err != nil {
		if !notExist(err) {
			to.Warn(fmt.Sprintf("the cached file cannot be read (%v), it is fetched again", err))
			err = os.RemoveAll(e.image())
		} else {
			err = nil
		}
		return File{}, false, err
	}
	defer f.Close()
	h := newHashes(e.sum.Algorithm)
	if err := h.feed(ctx, f, st.Size(), to); err != nil {
		return File{}, false, err
	}
	if err := h.check(e.sum, e.image()); err != nil {
		to.Warn(fmt.Sprintf("the cached file was changed: it is %s, not %s; it is fetched again", h.digest(), e.sum))
		return File{}, false, os.Remove(e.image())
	}
	return File{Path: e.image(), Digest: h.digest(), Size: st.Size(), Modified: e.origin().modified(), Cached: true}, true, nil
}

// origin tells which version of which URL a file is.
type origin struct {
	URL          string `json:"url"` // without a password
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
}

const maxOrigin = 64 << 10 // bytes

// origin returns what source.json tells; nothing if it is unreadable.
func (e *entry) origin() origin {
	f, _, err := openRegular(e.file("source.json"), syscall.O_NOFOLLOW)
	if err != nil {
		return origin{}
	}
	defer f.Close()
	return readOrigin(io.LimitReader(f, maxOrigin))
}

func readOrigin(r io.Reader) origin {
	var o origin
	if json.NewDecoder(r).Decode(&o) != nil {
		return origin{}
	}
	return o
}

func (e *entry) saveOrigin(o origin) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	temp := e.file("source.json.part")
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, e.file("source.json"))
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
