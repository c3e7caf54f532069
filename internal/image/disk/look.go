// Package disk looks into disk images and makes the one that is packed, with
// qemu-img. Formats are stated, never probed: a guest can write another
// format's magic into the first sector of its own raw disk.
//
// Look and Image.Tables read what an image says about itself, through any
// reader and without any demand on it; Firmware reads what would start it.
// Inspect demands of a file what a containerdisk needs. Sparsify makes the
// image that is packed.
package disk

import (
	"errors"
	"fmt"
	"io"

	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// The two formats that KubeVirt takes.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// maxVirtualSize is 2 TiB, what an MBR can address. No cloud image is near it.
const maxVirtualSize = 2 << 40

// ErrNotRead is what a reader of Look answers for parts of the image that it
// does not have, so that they are not taken for missing.
var ErrNotRead = errors.New("this part of the disk image was not read")

// Image is what a disk image says about itself.
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

	header qcow2.Header // all of its parts are there, whatever the version
	try    string       // what to do about a file that is neither
}

// Look reads what an image of size bytes says about itself, but for its
// tables. It reads at most 64 KiB at its beginning and the last sector.
func Look(r io.ReaderAt, size int64) Image {
	format, other := recognise(r, size)
	i := Image{Format: format, FileSize: size, VirtualSize: uint64(size+sectorSize-1) / sectorSize * sectorSize}
	switch format {
	case FormatQCOW2:
		i.Damage = i.readHeader(r)
	case FormatRaw:
		if need := rawNeeds(r); need > size {
			i.Damage = fmt.Errorf("its partition table covers %d bytes, the file has %d", need, size)
		}
	default:
		i.Other, i.try, i.Unpartitioned = other.what, other.try, other.what == unpartitioned
	}
	return i
}

// ReadsOthers says whether a program that opens the image opens other files,
// too: such an image is never given to qemu-img.
func (i *Image) ReadsOthers() bool { return i.BackingFile != "" || i.ExternalData }

// OutOfRange says whether no cloud image has such a virtual size.
func (i *Image) OutOfRange() bool { return i.VirtualSize == 0 || i.VirtualSize > maxVirtualSize }
