package contract

import (
	"cmp"
	"context"
	"errors"
	"io"
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
func (s *subject) lookAtDisk(ctx context.Context) error {
	if len(s.tree.disks) == 0 {
		return nil
	}
	name := s.tree.disks[0]
	on, ok := s.tree.paths[name]
	if !ok {
		return nil
	}
	s.content = s.layers[on.layer].contents[path.Dir(name)]
	if s.content.ReaderAt == nil || s.content.name != name {
		return nil // it is no file, or not the only one
	}
	copied, err := s.create()
	if err != nil {
		return err
	}
	if err := s.look(ctx, source{ReaderAt: &recorder{s.content, copied}, s: s}, copied); err != nil {
		return err
	}
	i := s.looked.Image
	s.Disk = &Disk{
		Name: name, Format: cmp.Or(i.Format, i.Other), VirtualSize: i.VirtualSize, FileSize: s.content.size, ClusterSize: i.ClusterSize,
		BackingFile: i.BackingFile, ExternalData: i.ExternalData, Encrypted: i.Encrypted, Snapshots: i.Snapshots,
		Compression: string(s.looked.tables.Compression), TablesRead: s.looked.tables.Read, Tables: s.looked.tables.All,
	}
	if s.looked.firmware != nil {
		s.Disk.Firmware = s.looked.firmware.String()
	}
	return nil
}

// look reads the disk's header and tables and asks qemu-img about a copy of
// what was read of it.
func (s *subject) look(ctx context.Context, seen io.ReaderAt, copied temporary) error {
	s.looked.Image = disk.Look(seen, s.content.size)
	i := s.looked.Image
	usable := i.Damage == nil && !i.OutOfRange() && s.content.size <= maxDiskFile
	if usable && i.Format == disk.FormatQCOW2 {
		s.looked.tables, s.looked.tablesErr = i.Tables(ctx, seen, s.limits.tables)
	}
	if usable {
		if f, err := i.Firmware(seen); err == nil {
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
	case copied.file.Truncate(s.content.size) != nil:
		s.looked.notAsked = "a file of its size cannot be made here"
	default:
		_, err := disk.Ask(ctx, copied.file.Name(), cmp.Or(i.Format, disk.FormatRaw))
		if f, ok := failure.In(err); !ok || f.Err == nil {
			return err
		}
		f, _ := failure.In(err)
		s.looked.qemu = f.What
	}
	return nil
}

// recorder writes what is read of a disk to the same place of a file.
type recorder struct {
	from io.ReaderAt
	to   io.WriterAt
}

func (r *recorder) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.from.ReadAt(p, offset)
	if errors.Is(err, disk.ErrNotRead) {
		return 0, disk.ErrNotRead
	}
	if n > 0 {
		if _, err := r.to.WriteAt(p[:n], offset); err != nil {
			return 0, err
		}
	}
	return n, err
}
