package hygiene

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// searchBlocks looks for the secrets in every block of the disk: a deleted
// file's, swap, a boot partition, a file system's journal.
func (d *disk) searchBlocks(ctx context.Context, t *tree) error {
	if len(t.search.names) == 1 {
		return nil
	}
	d.p.Activity("searching the blocks outside of files")
	f, err := os.Open(d.path())
	if err != nil {
		return err
	}
	defer f.Close()
	hits, err := t.search.in(&dataReader{ctx: ctx, file: f})
	t.inBlocks = hits.secrets
	return err
}

// dataReader reads a sparse file without its holes.
type dataReader struct {
	ctx      context.Context
	file     *os.File
	at, hole int64 // data reaches from at to hole
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
	if err == nil {
		r.hole, err = r.file.Seek(r.at, unix.SEEK_HOLE)
	}
	return err
}
