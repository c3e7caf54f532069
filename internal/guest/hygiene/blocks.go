package hygiene

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// searchBlocks looks for what is not in a file that was read. In partitions
// whose files are not, it looks for private keys and secrets; in every block of
// the disk for the secrets: a deleted file's, a file system's journal.
func (d *opened) searchBlocks(ctx context.Context, volumes []volume, t *tree) error {
	d.p.Activity("searching the blocks outside of files")
	f, err := os.Open(d.path())
	if err != nil {
		return err
	}
	defer f.Close()
	for _, v := range volumes {
		if !slices.Contains(passive, v.kind) {
			continue
		}
		hits, err := t.search.in(blocks(ctx, f, v.start, v.size))
		if err != nil {
			return err
		}
		t.took(v.String(), hits)
	}
	if len(t.search.names) == 1 { // no secret
		return nil
	}
	hits, err := t.search.in(blocks(ctx, f, 0, d.size))
	t.inBlocks = hits.secrets
	return err
}

// dataReader reads a sparse file without its holes.
type dataReader struct {
	ctx      context.Context
	file     *os.File
	at, hole int64 // data reaches from at to hole
	end      int64 // of what is read
}

// blocks reads size bytes from start on.
func blocks(ctx context.Context, file *os.File, start, size int64) *dataReader {
	return &dataReader{ctx: ctx, file: file, at: start, hole: start, end: start + size}
}

func (r *dataReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.at == r.hole {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.ReadAt(b[:min(int64(len(b)), r.hole-r.at)], r.at)
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// next finds the next data behind the hole.
func (r *dataReader) next() error {
	var err error
	if r.at, err = r.file.Seek(r.hole, unix.SEEK_DATA); errors.Is(err, syscall.ENXIO) {
		return io.EOF
	}
	if err == nil && r.at >= r.end {
		err = io.EOF
	}
	if err == nil {
		r.hole, err = r.file.Seek(r.at, unix.SEEK_HOLE)
		r.hole = min(r.hole, r.end)
	}
	return err
}
