package hygiene

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// rawDisk is the unpacked disk. Its programs work in dir and call it by the
// name rawName, so that no path of the host can be taken for an option.
type rawDisk struct {
	dir  string
	p    progress.Reporter
	size int64 // virtual, in bytes
	// limit is what all files may have together, in bytes. Those that share
	// blocks or have holes may be longer than the disk, but not by far.
	limit   int64
	entries int   // that were read
	names   int64 // bytes of their paths
	unclean bool  // a file system's journal has what is not yet in its tables
}

const rawName = "disk.raw"

func (d *rawDisk) path() string { return filepath.Join(d.dir, rawName) }

// unpack makes the raw disk; one that is raw already is only linked.
func (d *rawDisk) unpack(ctx context.Context, o Options) error {
	abs, err := filepath.Abs(o.Disk) // also keeps "nbd:…" or "json:…" a file name
	if err != nil {
		return err
	}
	switch o.Format {
	case "raw":
		err = os.Symlink(abs, d.path())
	case "qcow2":
		d.p.Activity("unpacking the disk")
		err = host.Run(ctx, command(d.dir, "qemu-img", "convert", "-f", o.Format, "-O", "raw", abs, rawName))
	default:
		err = fmt.Errorf("the hygiene gate reads qcow2 and raw disks, not %q", o.Format)
	}
	if host.DiskFull(err) {
		return failure.New("no space left in "+filepath.Dir(d.dir)+" to look into the disk", "free some, or choose another directory")
	}
	if err != nil {
		return err
	}
	st, err := os.Stat(d.path())
	if err != nil {
		return err
	}
	d.size, d.limit = st.Size(), 4*st.Size()+1<<30
	return nil
}

// count bounds the memory for what a disk lists.
func (d *rawDisk) count(path string) error {
	d.entries++
	d.names += int64(len(path))
	if d.entries > maxEntries || d.names > maxNames {
		return damaged("the file system", "it has more than 8 million files, or more than 256 MiB of names")
	}
	return nil
}

// damaged is the error about a structure that cannot be right.
func damaged(what, why string) error {
	return failure.New(fmt.Sprintf("%s is damaged: %s", what, why), "make the disk again")
}

// searchBlocks looks for what is not in a file that was read. In partitions
// whose files are not, it looks for private keys and secrets; in every block of
// the disk for the secrets: a deleted file's, a file system's journal.
func (d *rawDisk) searchBlocks(ctx context.Context, t *tree) error {
	d.p.Activity("searching the blocks outside of files")
	f, err := os.Open(d.path())
	if err != nil {
		return err
	}
	defer f.Close()
	search := func(start, size int64) (hits, error) {
		return t.search.in(host.Reader(ctx, &dataReader{file: f, at: start, hole: start, end: start + size}))
	}
	for _, v := range t.volumes {
		if !v.passive() {
			continue
		}
		hits, err := search(v.start, v.size)
		if err != nil {
			return err
		}
		t.took(v.String(), hits)
	}
	if len(t.search.words) == 0 {
		return nil
	}
	hits, err := search(0, d.size)
	t.inBlocks = hits.secrets
	return err
}

// dataReader reads a part of a sparse file without its holes.
type dataReader struct {
	file     *os.File
	at, hole int64 // data reaches from at to hole
	end      int64 // of what is read
}

func (r *dataReader) Read(b []byte) (int, error) {
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
	if r.at, err = r.file.Seek(r.hole, unix.SEEK_DATA); errors.Is(err, syscall.ENXIO) || err == nil && r.at >= r.end {
		return io.EOF
	}
	if err == nil {
		r.hole, err = r.file.Seek(r.at, unix.SEEK_HOLE)
		r.hole = min(r.hole, r.end)
	}
	return err
}
