package contract

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
)

// looked is what was found out about the disk.
type looked struct {
	disk.Image
	tables    disk.Tables
	tablesErr error
	firmware  *disk.Firmware // nil where that cannot be seen
	qemu      string         // what qemu-img said against it, or empty
	notAsked  string         // why qemu-img was not asked, or empty
}

// maxDiskFile is the largest file that is a disk of at most 2 TiB, in bytes.
const maxDiskFile = 2<<40 + 1<<30

// lookAtDisk looks at the disk that KubeVirt would start.
func (s *subject) lookAtDisk(ctx context.Context) (err error) {
	if len(s.tree.disks) == 0 {
		return nil
	}
	name := s.tree.disks[0]
	on, ok := s.tree.paths[name]
	if !ok {
		return nil
	}
	c := s.layers[on.layer].contents[path.Dir(name)]
	if c == nil || c.name != name {
		return nil // it is no file, or not the only one
	}
	if c.copied == nil {
		if c.copied, err = s.create(); err != nil {
			return err
		}
	}
	if err := s.look(ctx, c); err != nil {
		return err
	}
	i := s.looked.Image
	s.Disk = &Disk{
		Name: name, Format: cmp.Or(i.Format, i.Other),
		VirtualSize: i.VirtualSize, FileSize: c.size, ClusterSize: i.ClusterSize,
		BackingFile: i.BackingFile, ExternalData: i.ExternalData, Encrypted: i.Encrypted, Snapshots: i.Snapshots,
		Compression: string(s.looked.tables.Compression), TablesRead: s.looked.tables.Read, Tables: s.looked.tables.All,
		Firmware: s.looked.firmware,
	}
	return nil
}

// look reads the disk's header and tables and asks qemu-img about the copy of
// what was read of it.
func (s *subject) look(ctx context.Context, c *content) error {
	i := disk.Look(c, c.size)
	s.looked.Image = i
	usable := i.Damage == nil && !i.OutOfRange() && c.size <= maxDiskFile
	if usable && i.Format == disk.FormatQCOW2 {
		s.looked.tables, s.looked.tablesErr = i.Tables(ctx, c, s.limits.tables)
	}
	if usable {
		if f, err := i.Firmware(c); err == nil {
			s.looked.firmware = &f
		}
	}
	if s.fault != nil || ctx.Err() != nil {
		return s.fault
	}
	switch {
	case !usable || i.Format == "" && !i.Unpartitioned:
		s.looked.notAsked = "it is no disk image that can be read"
	case i.ReadsOthers():
		s.looked.notAsked = "it would open other files"
	case i.Encrypted:
		s.looked.notAsked = "the disk is encrypted"
	case i.Snapshots > 0 || i.Bitmaps:
		s.looked.notAsked = "it would read tables that were not read here"
	case c.copied.Truncate(c.size) != nil:
		s.looked.notAsked = "a file of its size cannot be made here"
	default:
		_, err := disk.Ask(ctx, c.copied.Name(), cmp.Or(i.Format, disk.FormatRaw))
		f, ok := failure.In(err)
		if !ok || f.Err == nil {
			return err
		}
		s.looked.qemu = f.What
	}
	return nil
}

// content is that of a file in a layer: what is read of it goes into a copy, too,
// about which qemu-img is asked. Of a file that comes in a stream only the
// beginning is kept, in that copy.
type content struct {
	s      *subject
	name   string
	size   int64
	from   io.ReaderAt // nil for one that came in a stream
	kept   int64       // bytes of that one
	copied *os.File
}

// ReadAt implements io.ReaderAt.
func (c *content) ReadAt(p []byte, offset int64) (int, error) {
	switch {
	case c.from != nil:
		n, err := c.from.ReadAt(p, offset)
		if _, failed := c.copied.WriteAt(p[:n], offset); failed != nil {
			return 0, c.s.noRoom(failed)
		}
		return n, err
	case offset < 0:
		return 0, io.EOF
	case min(offset+int64(len(p)), c.size) > c.kept:
		return 0, disk.ErrNotRead
	}
	n, err := c.copied.ReadAt(p, offset)
	return n, c.s.blame(err)
}

// keep writes the beginning of a disk that comes in a stream.
func (c *content) keep(in io.Reader) (err error) {
	if len(c.s.copies) == maxKept {
		return fmt.Errorf("more than %d files may be the disk", maxKept)
	}
	if c.copied, err = c.s.create(); err != nil {
		return err
	}
	c.kept, err = io.Copy(c.copied, io.LimitReader(in, c.s.limits.kept))
	if broken := (*os.PathError)(nil); errors.As(err, &broken) {
		return c.s.noRoom(err)
	}
	return err
}
