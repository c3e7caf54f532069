package disk

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
)

// ErrNotRead is what a reader of Look answers for parts of the image that it
// does not have, so that they are not taken for missing.
var ErrNotRead = errors.New("this part of the disk image was not read")

// Image is a disk image that is looked into through a reader, without any
// demand on it: what Inspect refuses stands here as a fact.
type Image struct {
	Format string // FormatQCOW2, FormatRaw, or empty where it is neither
	// Other is what a file that is neither looks like ("a VMDK image").
	Other string
	// Unpartitioned says of a file that is neither that it may be a raw disk
	// without a partition table.
	Unpartitioned bool
	VirtualSize   uint64 // bytes that the guest sees
	FileSize      int64  // bytes
	// Damage is why no program can read the image, or nil.
	Damage error

	// What follows is about qcow2 images only.

	Version        int
	ClusterSize    int64  // bytes
	BackingFile    string // its name, "?" where that cannot be read
	ExternalData   bool   // the data are in another file
	Encrypted      bool
	Snapshots      int // internal ones
	Dirty, Corrupt bool
	Bitmaps        bool // there are persistent bitmaps

	header header
}

// Extensions of a qcow2 header (QEMU's docs/interop/qcow2.txt).
const (
	extensionEnd     = 0
	extensionBitmaps = 0x23852875
)

// Look reads what an image of size bytes says about itself, but for its
// tables. It reads at most 64 KiB at its beginning and the last sector.
func Look(r io.ReaderAt, size int64) Image {
	format, other := recognise(r, size)
	i := Image{Format: format, FileSize: size}
	switch format {
	case FormatRaw:
		i.VirtualSize = uint64(size+sectorSize-1) / sectorSize * sectorSize
		if need := rawNeeds(r); need > size {
			i.Damage = errTruncated
		}
	case FormatQCOW2:
		i.lookQCOW2(r)
	default:
		i.Other, i.Unpartitioned = other.what, other.what == unpartitioned
		i.VirtualSize = uint64(size+sectorSize-1) / sectorSize * sectorSize
	}
	return i
}

func (i *Image) lookQCOW2(r io.ReaderAt) {
	h, err := readHeader(r)
	if err != nil {
		i.Damage = err
		return
	}
	i.header, i.Version, i.VirtualSize, i.ClusterSize = h, int(h.version), h.size, h.clusterSize()
	i.ExternalData = h.incompatible&incompatibleExternalData != 0
	i.Dirty, i.Corrupt = h.incompatible&incompatibleDirty != 0, h.incompatible&incompatibleCorrupt != 0
	i.Encrypted, i.Snapshots = h.encryption != 0, int(h.snapshot)
	if h.backingFile != 0 {
		i.BackingFile = cmp.Or(h.backingName, "?")
	}
	i.Bitmaps = hasExtension(r, h, extensionBitmaps)
}

// hasExtension walks the header's extensions: type, length, padded data.
func hasExtension(r io.ReaderAt, h header, kind uint32) bool {
	at := int64(72)
	if h.version == 3 {
		at = int64(binary.BigEndian.Uint32(append(readAt(r, 100, 4), 0, 0, 0, 0)))
	}
	for at >= 72 && at < min(h.clusterSize(), headBytes) {
		b := readAt(r, at, 8)
		if len(b) < 8 || binary.BigEndian.Uint32(b) == extensionEnd {
			return false
		}
		if binary.BigEndian.Uint32(b) == kind {
			return true
		}
		at += 8 + (int64(binary.BigEndian.Uint32(b[4:]))+7)/8*8
	}
	return false
}

// ReadsOthers says whether a program that opens the image opens other files,
// too: such an image is never given to qemu-img.
func (i Image) ReadsOthers() bool { return i.BackingFile != "" || i.ExternalData }

// Absurd says whether no cloud image has such a virtual size.
func (i Image) Absurd() bool { return i.VirtualSize == 0 || i.VirtualSize > maxVirtualSize }

// Tables is what the mapping tables of a qcow2 image tell, as far as they were
// read.
type Tables struct {
	Read, All   int // tables of the second level
	Compression Compression
	// Data is whether any guest data was seen.
	Data bool
}

// Tables reads the mapping tables of a qcow2 image through r: the first level
// and, as far as they fit into budget bytes together, those of the second. It
// fails where one of them refers to what lies behind the file's end.
func (i Image) Tables(ctx context.Context, r io.ReaderAt, budget int64) (Tables, error) {
	if i.Format != FormatQCOW2 || i.Damage != nil || i.Absurd() {
		return Tables{}, errors.New("it is no qcow2 image whose tables can be read")
	}
	t, err := i.header.walk(ctx, r, i.FileSize, budget)
	if err != nil {
		return Tables{}, err
	}
	told := Tables{Read: t.read, All: t.all, Data: t.plain+t.compressed > 0, Compression: NoCompression}
	if t.compressed > 0 && t.compressed >= t.plain {
		told.Compression = i.header.compression()
	}
	return told, nil
}
