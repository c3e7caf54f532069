package disk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zlib"
)

// A stream-optimized VMDK (VMware's Virtual Disk Format 5.0, "Stream-Optimized
// Compressed Sparse Extents"): a header, a description, the grains that are not empty,
// each compressed, with tables of where they are between them, a directory of the
// tables, and a header again that says where that is. qemu-img's have no such footer,
// and programs that read the format as a stream refuse them.
const (
	grainSize      = 128 * sectorSize
	grainsPerTable = 512
	vmdkOverhead   = 128 // sectors before the first grain
	directoryAtEnd = ^uint64(0)
)

// vmdkHeader is a SparseExtentHeader.
type vmdkHeader struct {
	Magic, Version, Flags              uint32
	Capacity, GrainSize                uint64 // sectors
	DescriptionOffset, DescriptionSize uint64 // sectors
	TableEntries                       uint32
	SpareDirectory, Directory          uint64 // sectors
	Overhead                           uint64 // sectors
	Unclean                            uint8
	LineEnds                           [4]byte // which a copy as text would break
	Algorithm                          uint16
	_                                  [433]byte
}

// vmdkMarker stands before everything behind the description but grains, and fills a
// sector.
type vmdkMarker struct {
	Sectors    uint64 // of what follows
	Size, Type uint32
	_          [496]byte
}

const (
	endOfStream = iota
	tableMarker
	directoryMarker
	footerMarker
)

// vmdkWriter counts the sectors that it wrote.
type vmdkWriter struct {
	*bufio.Writer
	sectors uint32
}

// add writes values, and fills the last sector.
func (w *vmdkWriter) add(values ...any) error {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return err
		}
	}
	b.Write(make([]byte, -b.Len()&(sectorSize-1)))
	w.sectors += uint32(b.Len() / sectorSize)
	_, err := b.WriteTo(w)
	return err
}

// writeVMDK writes size bytes of a disk as a file called name. The digest, "sha256:…", is
// the disk's: its identity is made of that.
func writeVMDK(to io.Writer, disk io.Reader, size int64, name, digest string) error {
	w := &vmdkWriter{Writer: bufio.NewWriterSize(to, 1<<20)}
	header := vmdkHeader{
		Magic: 0x564d444b, Version: 3, Flags: 1 | 1<<16 | 1<<17, // line ends, compressed grains, markers
		Capacity: uint64(size / sectorSize), GrainSize: grainSize / sectorSize,
		DescriptionOffset: 1, DescriptionSize: vmdkOverhead - 1, TableEntries: grainsPerTable,
		Directory: directoryAtEnd, Overhead: vmdkOverhead, LineEnds: [4]byte{'\n', ' ', '\r', '\n'}, Algorithm: 1, // deflate
	}
	description := make([]byte, (vmdkOverhead-1)*sectorSize)
	copy(description, vmdkDescription(size, name, digest))
	if err := w.add(header, description); err != nil {
		return err
	}
	var directory []uint32
	for left := size; left > 0; left -= grainsPerTable * grainSize {
		at, err := w.table(io.LimitReader(disk, left), uint64(len(directory))*grainsPerTable)
		if err != nil {
			return err
		}
		directory = append(directory, at)
	}
	length := uint64(4*len(directory)+sectorSize-1) / sectorSize
	if err := w.add(vmdkMarker{Sectors: length, Type: directoryMarker}); err != nil {
		return err
	}
	header.Directory = uint64(w.sectors)
	if err := w.add(directory); err != nil {
		return err
	}
	if err := w.add(vmdkMarker{Sectors: 1, Type: footerMarker}, header, vmdkMarker{Type: endOfStream}); err != nil {
		return err
	}
	return w.Flush()
}

// table writes the next grains of a disk, the first of which has that number, and their
// table, and returns where that is: 0 where all of them are empty.
func (w *vmdkWriter) table(disk io.Reader, first uint64) (at uint32, err error) {
	var table [grainsPerTable]uint32
	grain, empty := make([]byte, grainSize), make([]byte, grainSize)
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	for i := range table {
		clear(grain)
		_, err := io.ReadFull(disk, grain)
		if errors.Is(err, io.EOF) { // before the grain: the disk ends
			break
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		if bytes.Equal(grain, empty) {
			continue
		}
		packed.Reset()
		z.Reset(&packed)
		if _, err := z.Write(grain); err != nil {
			return 0, err
		}
		if err := z.Close(); err != nil {
			return 0, err
		}
		table[i] = w.sectors
		if err := w.add((first+uint64(i))*grainSize/sectorSize, uint32(packed.Len()), packed.Bytes()); err != nil {
			return 0, err
		}
	}
	if table == [grainsPerTable]uint32{} {
		return 0, nil
	}
	if err := w.add(vmdkMarker{Sectors: 4 * grainsPerTable / sectorSize, Type: tableMarker}); err != nil {
		return 0, err
	}
	at = w.sectors
	return at, w.add(table)
}

// vmdkDescription says what the file is, to people, too.
func vmdkDescription(size int64, name, digest string) string {
	const heads, perTrack = 255, 63 // as VMware gives large disks
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%s
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "10"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.adapterType = "lsilogic"
`, strings.TrimPrefix(digest, "sha256:")[:8], size/sectorSize, name, size/sectorSize/heads/perTrack, heads, perTrack)
}
