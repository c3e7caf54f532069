package base

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const defaultMost = 64 << 30 // bytes of a file whose server does not say its size

// download is one file in its directory of the cache, which the file's checksum
// names:
//
//	image        the file, complete; its checksum is looked at each time
//	image.part   its beginning, while it is downloaded
//	source.json  from where, and which version of it
//
// The directory itself carries the lock, so there is no file to be left over.
type download struct {
	*client
	src source
	sum string
	dir string

	file    *os.File // image.part
	size    int64    // of what has arrived, in bytes
	total   int64    // of the file, or 0 where the server does not say it
	from    origin   // of what has arrived
	resumed bool     // some of it came from an earlier process
}

func (d *download) image() string  { return filepath.Join(d.dir, "image") }
func (d *download) part() string   { return filepath.Join(d.dir, "image.part") }
func (d *download) source() string { return filepath.Join(d.dir, "source.json") }

// fetch returns the file from the cache, or downloads it.
func (c *client) fetch(ctx context.Context, src source, sum string) (File, error) {
	d := &download{client: c, src: src, sum: sum, dir: filepath.Join(c.CacheDir, strings.Replace(sum, ":", "-", 1))}
	lock, err := host.LockDir(ctx, d.dir, "waiting for another process that downloads the same file", c.to)
	if ctx.Err() != nil {
		return File{}, context.Cause(ctx)
	}
	if err != nil {
		return File{}, &failure.Error{What: err.Error(), Try: "check CACHE_DIR", Err: err}
	}
	defer lock.Close()
	defer os.Remove(d.dir) // where nothing came into it
	switch file, err := d.check(ctx); {
	case err == nil:
		file.Cached = true
		return file, nil
	case ctx.Err() != nil:
		return File{}, err
	case errors.Is(err, errWrong):
		c.to.Warn(fmt.Sprintf("the cached file was changed: it is %s, not %s; it is fetched again", file.Digest, sum))
	case !errors.Is(err, fs.ErrNotExist):
		c.to.Warn(fmt.Sprintf("the cached file cannot be read (%v), it is fetched again", err))
	}
	if err := os.RemoveAll(d.image()); err != nil {
		return File{}, err
	}
	for {
		if err := d.complete(ctx); err != nil {
			return File{}, d.give(err)
		}
		file, err := d.check(ctx)
		if !errors.Is(err, errWrong) {
			return file, err
		}
		os.Remove(d.source())
		if left := os.Remove(d.image()); left != nil || !d.resumed {
			return File{}, cmp.Or(left, err)
		}
		c.to.Warn("what an earlier download left was damaged, starting again")
	}
}

// check looks whether the file is there and has its checksum.
func (d *download) check(ctx context.Context) (File, error) {
	f, err := host.OpenNoFollow(d.image())
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	file, err := check(ctx, f, d.src.String(), d.sum, d.to)
	file.Modified = d.origin().modified()
	return file, err
}

// complete downloads the file, from where an earlier process left it.
func (d *download) complete(ctx context.Context) (err error) {
	d.file, err = os.OpenFile(d.part(), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = d.file.Truncate(d.size) // gives the reserved space back
		}
		d.file.Close()
	}()
	if d.from = d.origin(); d.from.URL != d.src.String() || d.from.validator() == "" {
		err = d.restart()
	} else {
		d.size, err = d.file.Seek(0, io.SeekEnd)
		d.resumed = d.size > 0
	}
	if err != nil {
		return err
	}
	err = d.retry(ctx, d.src.String(), func() (int64, error) {
		err := d.attempt(ctx)
		if errors.Is(err, errChanged) {
			err = errors.Join(err, d.restart())
		}
		return d.size, err
	})
	if err != nil {
		return err
	}
	return host.Move(d.part(), d.image())
}

// restart forgets what has arrived.
func (d *download) restart() error {
	d.size, d.from, d.resumed = 0, origin{}, false
	_, err := d.file.Seek(0, io.SeekStart)
	return d.writing(errors.Join(err, d.file.Truncate(0)))
}

// give decides what an error leaves: nothing where the disk is full, else the
// beginning, for the next time.
func (d *download) give(err error) error {
	if host.DiskFull(err) || d.size == 0 || d.from.validator() == "" {
		os.Remove(d.part())
		os.Remove(d.source())
		return err
	}
	if f, ok := failure.In(err); ok && f.Try == tryLater {
		f.Try += ": what has arrived is kept"
	}
	return err
}

// errChanged says that the beginning we have is not of the file that the
// server has now.
var errChanged = errors.New("the file on the server has changed")

// attempt asks once for what is missing, on condition that the file is still
// the same.
func (d *download) attempt(ctx context.Context) error {
	header := http.Header{}
	if v := d.from.validator(); d.size > 0 && v != "" {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.size))
		header.Set("If-Range", v)
	}
	resp, err := get(ctx, d.http, d.src.url.String(), header)
	if answered(err, http.StatusRequestedRangeNotSatisfiable) {
		return errChanged
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := d.accept(resp); err != nil {
		return err
	}
	d.total = 0
	if resp.ContentLength >= 0 {
		d.total = d.size + resp.ContentLength
	}
	if err := d.reserve(); err != nil {
		return err
	}
	_, err = host.Copy(ctx, d, resp.Body)
	return err
}

// accept compares the answer with what is there: it is the rest of the same
// version, or the whole, for which we start again.
func (d *download) accept(resp *http.Response) error {
	now := origin{URL: d.src.String(), ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
	if resp.StatusCode == http.StatusPartialContent {
		var start int64
		_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start)
		if err != nil || start != d.size || d.size == 0 || now.validator() != "" && now.validator() != d.from.validator() {
			return errChanged
		}
		return nil
	}
	if err := d.restart(); err != nil {
		return err
	}
	d.from = now
	return d.writing(host.WriteJSON(d.source(), 0o600, now))
}

// reserve takes the whole file's space now, so that a disk that is too small
// is found before a long download, not after it.
func (d *download) reserve() error {
	if d.total <= d.size {
		return nil
	}
	err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, d.size, d.total-d.size)
	if host.DiskFull(err) {
		return d.writing(err)
	}
	return nil // not every filesystem can; then the writing fails
}

// writing makes an error of the cache's disk one that is final.
func (d *download) writing(err error) error {
	switch {
	case err == nil:
		return nil
	case !host.DiskFull(err):
		return failure.Wrap(err, "writing to "+d.dir, "check CACHE_DIR")
	}
	detail := text.Size(d.size) + " were written"
	if d.total > 0 {
		detail = text.Size(d.total) + " are needed"
	}
	return failure.Wrap(err, fmt.Sprintf("no space left in %s (%s)", d.dir, detail), "free some there, or set CACHE_DIR to a larger disk")
}

// Write appends what arrives to the file.
func (d *download) Write(b []byte) (int, error) {
	n, err := d.file.Write(b)
	d.size += int64(n)
	if err != nil {
		return n, d.writing(err)
	}
	if d.total == 0 && d.size > cmp.Or(d.Most, defaultMost) {
		err := failure.New(fmt.Sprintf("the server does not say how large the file is, and has sent %s of it", text.Size(d.size)), "check the URL")
		return n, errors.Join(err, d.restart()) // it does not come to an end: nothing of it is kept
	}
	d.to.Bytes(d.size, d.total)
	return n, nil
}

// origin says which version of which URL a file is.
type origin struct {
	URL          string `json:"url"` // without what may be secret in it
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
}

// origin returns what source.json says; nothing if it is unreadable.
func (d *download) origin() (o origin) {
	if host.ReadJSON(d.source(), &o) != nil {
		return origin{}
	}
	return o
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
