package disk

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// Sizes and bits are those of QEMU's docs/interop/qcow2.txt. The library has
// the header's fields; it does not say where a table or cluster lies, without
// which nobody knows whether a file is whole.
const (
	offsetMask     = 0x00fffffffffffe00 // host offset in an L1 or plain L2 entry
	flagCompressed = 1 << 62
	flagZero       = 1

	maxL1Bytes     = 32 << 20 // QEMU's own limit
	maxBackingName = 1023     // bytes, likewise
)

var errTruncated = errors.New("the file ends before its own tables do")

// readHeader reads the header and refuses what QEMU would refuse, too.
func (i *Image) readHeader(r io.ReaderAt) error {
	h := &i.header
	h.HeaderFieldsV3, h.HeaderFieldsAdditional = &qcow2.HeaderFieldsV3{}, &qcow2.HeaderFieldsAdditional{}
	in := io.NewSectionReader(r, 0, math.MaxInt64)
	if binary.Read(in, binary.BigEndian, &h.HeaderFieldsV2) != nil {
		return errTruncated
	}
	i.VirtualSize = h.Size
	if h.Version != 2 && h.Version != 3 {
		return fmt.Errorf("version %d of qcow2 is not known", h.Version)
	}
	if h.ClusterBits < 9 || h.ClusterBits > 21 {
		return fmt.Errorf("clusters of 2^%d bytes are not possible", h.ClusterBits)
	}
	if h.Version == 3 && binary.Read(in, binary.BigEndian, h.HeaderFieldsV3) != nil {
		return errTruncated
	}
	if h.HeaderLength > 104 && binary.Read(in, binary.BigEndian, h.HeaderFieldsAdditional) != nil {
		return errTruncated
	}
	i.Version, i.ClusterSize = int(h.Version), 1<<h.ClusterBits
	i.Encrypted, i.Snapshots = h.CryptMethod != qcow2.CryptMethodNone, int(h.NbSnapshots)
	i.Dirty = i.incompatible(qcow2.IncompatibleFeaturesDirtyBit)
	i.Corrupt = i.incompatible(qcow2.IncompatibleFeaturesCorruptBit)
	i.ExternalData = i.incompatible(qcow2.IncompatibleFeaturesExternalDataFileBit)
	i.Bitmaps = h.AutoclearFeatures>>qcow2.AutoclearFeaturesBitmapsExtensionBit&1 == 1
	if h.BackingFileOffset != 0 {
		name := readAt(r, int64(h.BackingFileOffset&math.MaxInt64), int64(min(h.BackingFileSize, maxBackingName)))
		i.BackingFile = cmp.Or(string(name), "?")
	}
	return nil
}

func (i *Image) incompatible(bit int) bool { return i.header.IncompatibleFeatures>>bit&1 == 1 }

// Tables is what the mapping tables of a qcow2 image say, as far as they were
// read.
type Tables struct {
	Read, All int   // tables of the second level
	Data      int64 // bytes of the guest's data once unpacked, in whole clusters
	// Compression is that of at least half of the data.
	Compression Compression

	compressed int64 // the part of Data that is
	end        int64 // bytes that the file must have
}

// Tables reads the mapping tables of a qcow2 image through r: the first level
// and, as far as they fit into budget bytes together and r does not refuse them
// with ErrNotRead, those of the second. It fails where one of them refers to
// what lies behind the file's end: qemu-img info reads no tables, and qemu-img
// check says nothing where less than a cluster is missing.
func (i *Image) Tables(ctx context.Context, r io.ReaderAt, budget int64) (Tables, error) {
	if i.Format != FormatQCOW2 || i.Damage != nil || i.OutOfRange() {
		return Tables{}, errors.New("it is no qcow2 image whose tables can be read")
	}
	entryBytes := int64(8)
	if i.incompatible(qcow2.IncompatibleFeaturesExtendedL2EntriesBit) {
		entryBytes = 16
	}
	perTable := i.ClusterSize / entryBytes
	l1Entries := (int64(i.VirtualSize) + i.ClusterSize*perTable - 1) / (i.ClusterSize * perTable)
	if l1Entries > int64(i.header.L1Size) || l1Entries*8 > maxL1Bytes {
		return Tables{}, errors.New("its tables do not cover its virtual size")
	}
	if l1Entries*8 > budget {
		return Tables{}, ErrNotRead
	}
	l1, err := readTable(r, int64(i.header.L1TableOffset), l1Entries*8)
	if err != nil {
		return Tables{}, err
	}
	t := Tables{Compression: NoCompression}
	for n := range l1Entries {
		if ctx.Err() != nil {
			return Tables{}, context.Cause(ctx)
		}
		offset := int64(binary.BigEndian.Uint64(l1[n*8:]) & offsetMask)
		if offset == 0 {
			continue
		}
		if t.All++; offset > i.FileSize-i.ClusterSize {
			return Tables{}, errTruncated
		}
		if int64(t.Read+1)*i.ClusterSize > budget {
			continue
		}
		l2, err := readTable(r, offset, i.ClusterSize)
		if errors.Is(err, ErrNotRead) {
			continue
		}
		if err != nil {
			return Tables{}, err
		}
		t.Read++
		for j := range perTable {
			t.add(i, binary.BigEndian.Uint64(l2[j*entryBytes:]), n*perTable+j)
		}
		if t.end > i.FileSize {
			return Tables{}, errTruncated
		}
	}
	if t.compressed > 0 && 2*t.compressed >= t.Data {
		t.Compression = Zlib
		if i.header.CompressionType == qcow2.CompressionTypeZstd {
			t.Compression = Zstd
		}
	}
	return t, nil
}

func readTable(r io.ReaderAt, offset, n int64) ([]byte, error) {
	table, err := readFull(r, offset, n)
	if err != nil && !errors.Is(err, ErrNotRead) {
		err = errTruncated
	}
	return table, err
}

// add counts one L2 entry, of the guest's cluster number n.
func (t *Tables) add(i *Image, entry uint64, n int64) {
	switch {
	case entry&flagCompressed != 0:
		// The length is in sectors, of which the last may be cut short.
		bits := 62 - (i.header.ClusterBits - 8)
		offset := int64(entry & (1<<bits - 1))
		more := int64(entry & (1<<62 - 1) >> bits)
		t.compressed += i.ClusterSize
		t.end = max(t.end, (offset/sectorSize+more)*sectorSize+1)
	case entry&flagZero != 0 || entry&offsetMask == 0:
		return
	default:
		length := i.ClusterSize
		if i.incompatible(qcow2.IncompatibleFeaturesExtendedL2EntriesBit) {
			length = 1 // parts of it may be unallocated
		} else if left := int64(i.VirtualSize) - n*length; left < length {
			length = max(left, 0)
		}
		t.end = max(t.end, int64(entry&offsetMask)+length)
	}
	t.Data += i.ClusterSize
}
