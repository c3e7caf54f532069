package base

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// errChanged says that the beginning we have is not of the file that the
// server has now.
var errChanged = errors.New("the file on the server has changed")

// transfer is one download: the file in the making and its hashes so far.
type transfer struct {
	entry   *entry
	client  *http.Client
	src     source
	options DownloadOptions
	to      progress.Reporter
	file    *os.File
	size    int64
	hashes  *hashes
	from    origin // of the bytes that are there
	resumed bool   // some of them came from an earlier process
}

// download fetches the file into the cache.
func (e *entry) download(ctx context.Context, client *http.Client, src source, o DownloadOptions, to progress.Reporter) (File, error) {
	t := &transfer{entry: e, client: client, src: src, options: o, to: to}
	if err := t.open(ctx); err != nil {
		return File{}, err
	}
	defer t.file.Close()
	err := t.complete(ctx)
	if err != nil && ctx.Err() == nil && t.resumed && wrongSum(err) {
		// The beginning that an earlier process left may be to blame.
		to.Warn("what an earlier download left was damaged, starting again")
		if err = t.restart(); err == nil {
			err = t.complete(ctx)
		}
	}
	if err != nil {
		return File{}, t.give(err)
	}
	if err := t.commit(); err != nil {
		return File{}, err
	}
	return File{Path: e.image(), Digest: t.hashes.digest(), Size: t.size, Modified: t.from.modified()}, nil
}

// sumError marks a wrong checksum.
type sumError struct{ error }

func (s sumError) Unwrap() error { return s.error }

func wrongSum(err error) bool { return errors.As(err, &sumError{}) }

// complete fetches what is missing and checks the whole.
func (t *transfer) complete(ctx context.Context) error {
	err := t.options.retry(ctx, t.src.String(), t.to, func() (int64, error) {
		err := t.attempt(ctx)
		if errors.Is(err, errChanged) {
			err = errors.Join(err, t.restart())
		}
		return t.size, err
	})
	if err != nil {
		return err
	}
	if err := t.hashes.check(t.entry.sum, t.src.String()); err != nil {
		return sumError{err}
	}
	return nil
}

// give decides what an error leaves: nothing where the bytes are wrong or the
// disk is full, else the beginning, for the next time.
func (t *transfer) give(err error) error {
	if noSpace(err) || wrongSum(err) || t.size == 0 || t.from.validator() == "" {
		os.Remove(t.file.Name())
		os.Remove(t.entry.file("source.json"))
		return err
	}
	_ = t.file.Truncate(t.size) // gives the reserved space back
	if f, ok := failure.In(err); ok && f.Try == tryLater {
		f.Try += ": what has arrived is kept"
	}
	return err
}

// open opens the beginning that an earlier download left, if it is one of the
// same URL and version.
func (t *transfer) open(ctx context.Context) error {
	name := t.entry.file("image.part")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	t.file, t.hashes = f, newHashes(t.entry.sum.Algorithm)
	if err := t.takeOver(ctx); err != nil {
		f.Close()
		return err
	}
	return nil
}

// takeOver hashes the beginning that is there, or empties the file.
func (t *transfer) takeOver(ctx context.Context) error {
	t.from = t.entry.origin()
	if t.from.URL != t.src.String() || t.from.validator() == "" {
		return t.restart()
	}
	st, err := t.file.Stat()
	if err != nil {
		return err
	}
	if err := t.hashes.feed(ctx, t.file, st.Size(), progress.Discard); err != nil {
		return err
	}
	t.size, t.resumed = st.Size(), st.Size() > 0
	return nil
}

// restart forgets what is there.
func (t *transfer) restart() error {
	t.size, t.from, t.resumed, t.hashes = 0, origin{}, false, newHashes(t.entry.sum.Algorithm)
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	_, err := t.file.Seek(0, io.SeekStart)
	return err
}

// attempt asks once for what is missing.
func (t *transfer) attempt(ctx context.Context) error {
	resp, err := get(ctx, t.client, t.src.url, t.rangeHeader())
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

// rangeHeader asks for the rest, on condition that the file is still the same.
func (t *transfer) rangeHeader() http.Header {
	h := http.Header{}
	if v := t.from.validator(); t.size > 0 && v != "" {
		h.Set("Range", fmt.Sprintf("bytes=%d-", t.size))
		h.Set("If-Range", v)
	}
	return h
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
	return t.entry.saveOrigin(now)
}

// reserve takes the whole file's space now, so that a disk that is too small
// is found before a long download, not after it.
func (t *transfer) reserve(total int64) error {
	if total <= t.size {
		return nil
	}
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	err := syscall.Fallocate(int(t.file.Fd()), keepSize, t.size, total-t.size)
	if noSpace(err) {
		return t.full(err, fmt.Sprintf("%.1f GiB are needed", float64(total)/(1<<30)))
	}
	return nil // not every filesystem can; then the writing tells
}

func (t *transfer) full(err error, detail string) error {
	return failure.Wrap(err, fmt.Sprintf("no space left in %s (%s)", t.entry.dir, detail), "free some there, or set CACHE_DIR to a larger disk")
}

// receive appends the body to the file and its hashes.
func (t *transfer) receive(body io.Reader, total int64) error {
	b := make([]byte, 1<<20)
	for {
		n, readErr := body.Read(b)
		if _, err := t.file.Write(b[:n]); noSpace(err) {
			return permanentError{t.full(err, fmt.Sprintf("%.1f GiB were written", float64(t.size)/(1<<30)))}
		} else if err != nil {
			return permanentError{err}
		}
		t.hashes.Write(b[:n])
		t.size += int64(n)
		if total == 0 && t.size > t.options.most() {
			return permanentError{t.endless()}
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

const defaultMost = 64 << 30 // bytes

func (o DownloadOptions) most() int64 { return cmp.Or(o.Most, defaultMost) }

// endless throws away what a server sends that does not come to an end.
func (t *transfer) endless() error {
	err := failure.New(fmt.Sprintf("the server does not say how large the file is, and has sent %d MiB of it", t.size>>20), "check the URL")
	return errors.Join(err, t.restart())
}

// commit brings the file to stable storage and gives it its name.
func (t *transfer) commit() error {
	if err := t.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(t.file.Name(), t.entry.image()); err != nil {
		return err
	}
	return host.Sync(filepath.Dir(t.entry.image()))
}
