package base

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const defaultMost = 64 << 30 // bytes of a file whose server does not say its size

// errChanged says that the beginning we have is not of the file that the
// server has now.
var errChanged = errors.New("the file on the server has changed")

// transfer is one download: the file in the making and its hashes so far.
type transfer struct {
	*downloader
	*entry
	src     source
	file    *os.File
	size    int64
	hashes  *hashes
	from    origin // of the bytes that are there
	resumed bool   // some of them came from an earlier process
}

// download fetches the file into its entry of the cache.
func (d *downloader) download(ctx context.Context, src source, e *entry) (File, error) {
	file, err := os.OpenFile(e.part(), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return File{}, err
	}
	defer file.Close()
	t := &transfer{downloader: d, entry: e, src: src, file: file}
	if err := t.takeOver(ctx); err != nil {
		return File{}, err
	}
	err = t.complete(ctx)
	if ctx.Err() == nil && t.resumed && isWrongSum(err) {
		// The beginning that an earlier process left may be to blame.
		d.to.Warn("what an earlier download left was damaged, starting again")
		if err = t.restart(); err == nil {
			err = t.complete(ctx)
		}
	}
	if err != nil {
		return File{}, t.give(err)
	}
	f := File{Path: e.image(), Digest: t.hashes.digest(), Size: t.size, Modified: t.from.modified()}
	return f, host.Move(e.part(), f.Path)
}

// takeOver hashes the beginning that an earlier download left, if it is one of
// the same URL and version, or empties the file.
func (t *transfer) takeOver(ctx context.Context) (err error) {
	t.from, t.hashes = t.origin(), newHashes(t.sum)
	if t.from.URL != t.src.String() || t.from.validator() == "" {
		return t.restart()
	}
	t.size, err = host.Copy(ctx, t.hashes, t.file)
	t.resumed = t.size > 0
	return err
}

// restart forgets what is there.
func (t *transfer) restart() error {
	t.size, t.from, t.resumed, t.hashes = 0, origin{}, false, newHashes(t.sum)
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	_, err := t.file.Seek(0, io.SeekStart)
	return err
}

// complete fetches what is missing and checks the whole.
func (t *transfer) complete(ctx context.Context) error {
	err := t.retry(ctx, t.src.String(), func() (int64, error) {
		err := t.attempt(ctx)
		if errors.Is(err, errChanged) {
			err = errors.Join(err, t.restart())
		}
		return t.size, err
	})
	if err != nil {
		return err
	}
	return t.hashes.check(t.src.String())
}

// give decides what an error leaves: nothing where the bytes are wrong or the
// disk is full, else the beginning, for the next time.
func (t *transfer) give(err error) error {
	if host.DiskFull(err) || isWrongSum(err) || t.size == 0 || t.from.validator() == "" {
		os.Remove(t.part())
		os.Remove(t.source())
		return err
	}
	_ = t.file.Truncate(t.size) // gives the reserved space back
	if f, ok := failure.In(err); ok && f.Try == tryLater {
		f.Try += ": what has arrived is kept"
	}
	return err
}

// attempt asks once for what is missing, on condition that the file is still
// the same.
func (t *transfer) attempt(ctx context.Context) error {
	header := http.Header{}
	if v := t.from.validator(); t.size > 0 && v != "" {
		header.Set("Range", fmt.Sprintf("bytes=%d-", t.size))
		header.Set("If-Range", v)
	}
	resp, err := get(ctx, t.http, t.src.url, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := t.accept(resp); err != nil {
		return err
	}
	total := int64(0)
	if resp.ContentLength >= 0 {
		total = t.size + resp.ContentLength
	}
	if err := t.reserve(total); err != nil {
		return permanentError{err}
	}
	return t.receive(resp.Body, total)
}

// accept compares the answer with what is there: it is the rest of the same
// version, or the whole, for which we start again.
func (t *transfer) accept(resp *http.Response) error {
	now := originOf(t.src, resp)
	if resp.StatusCode == http.StatusPartialContent {
		var start int64
		_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start)
		if err != nil || start != t.size || t.size == 0 || now.validator() != "" && now.validator() != t.from.validator() {
			return errChanged
		}
		return nil
	}
	if err := t.restart(); err != nil {
		return permanentError{err}
	}
	t.from = now
	return t.saveOrigin(now)
}

// reserve takes the whole file's space now, so that a disk that is too small
// is found before a long download, not after it.
func (t *transfer) reserve(total int64) error {
	if total <= t.size {
		return nil
	}
	err := unix.Fallocate(int(t.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, t.size, total-t.size)
	if host.DiskFull(err) {
		return t.full(err, text.Size(total)+" are needed")
	}
	return nil // not every filesystem can; then the writing fails
}

func (t *transfer) full(err error, detail string) error {
	return failure.Wrap(err, fmt.Sprintf("no space left in %s (%s)", t.dir, detail), "free some there, or set CACHE_DIR to a larger disk")
}

// receive appends the body to the file and its hashes.
func (t *transfer) receive(body io.Reader, total int64) error {
	b := make([]byte, 1<<20)
	for {
		n, readErr := body.Read(b)
		if _, err := t.file.Write(b[:n]); host.DiskFull(err) {
			return permanentError{t.full(err, text.Size(t.size)+" were written")}
		} else if err != nil {
			return permanentError{err}
		}
		t.hashes.Write(b[:n])
		t.size += int64(n)
		if total == 0 && t.size > cmp.Or(t.Most, defaultMost) {
			err := failure.New(fmt.Sprintf("the server does not say how large the file is, and has sent %s of it", text.Size(t.size)), "check the URL")
			return permanentError{errors.Join(err, t.restart())} // it does not come to an end: nothing of it is kept
		}
		t.to.Bytes(t.size, total)
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}
