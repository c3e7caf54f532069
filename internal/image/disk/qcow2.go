package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// The fields of a qcow2 header, as QEMU's docs/interop/qcow2.txt has them.
const (
	qcow2Magic = "QFI\xfb"

	incompatibleDirty        = 1 << 0
	incompatibleCorrupt      = 1 << 1
	incompatibleExternalData = 1 << 2
	incompatibleExtendedL2   = 1 << 4

	offsetMask     = 0x00fffffffffffe00 // host offset in an L1 or plain L2 entry
	flagCompressed = 1 << 62
	flagZero       = 1

	maxL1Bytes     = 32 << 20 // QEMU's own limit
	maxBackingName = 1023     // bytes, likewise
)

type header struct {
	version, clusterBits         uint32
	backingFile, size            uint64
	backingName                  string
	encryption, l1Size, snapshot uint32
	l1Offset, incompatible       uint64
	compressionType              byte
}

var errTruncated = errors.New("the file ends before its own tables do")

// readHeader reads the header and refuses what QEMU would refuse, too.
func readHeader(r io.ReaderAt) (header, error) {
	b := readAt(r, 0, 112)
	if len(b) < 72 {
		return header{}, errTruncated
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	h := header{
		version: u32(b[4:]), backingFile: u64(b[8:]), clusterBits: u32(b[20:]), size: u64(b[24:]),
		encryption: u32(b[32:]), l1Size: u32(b[36:]), l1Offset: u64(b[40:]), snapshot: u32(b[60:]),
	}
	if h.version != 2 && h.version != 3 {
		return header{}, fmt.Errorf("version %d of qcow2 is not known", h.version)
	}
	if h.clusterBits < 9 || h.clusterBits > 21 {
		return header{}, fmt.Errorf("clusters of 2^%d bytes are not possible", h.clusterBits)
	}
	if h.version == 3 {
		if len(b) < 104 {
			return header{}, errTruncated
		}
		h.incompatible = u64(b[72:])
		if u32(b[100:]) > 104 && len(b) > 104 {
			h.compressionType = b[104]
		}
	}
	if h.backingFile != 0 {
		// At most 1023 bytes, within the first cluster (docs/interop/qcow2.txt).
		h.backingName = string(readAt(r, int64(h.backingFile&math.MaxInt64), int64(min(u32(b[16:]), maxBackingName))))
	}
	return h, nil
}

// refusal returns why the image must not be used, or nil. None of it may be
// left to qemu-img: it would open the other files already to tell us. base is
// the one backing file that the image may have, or empty.
func (h header) refusal(base string) error {
	const flatten = "flatten it with qemu-img convert -O qcow2"
	switch {
	case h.backingFile != 0 && (base == "" || h.backingName != base):
		return failure.New("the qcow2 image has a backing file", flatten+" where its backing file is")
	case h.incompatible&incompatibleExternalData != 0:
		return failure.New("the qcow2 image keeps its data in an external data file", flatten+" where that file is")
	case h.encryption != 0:
		return failure.New("the qcow2 image is encrypted", "give one that is not")
	case h.snapshot != 0:
		return failure.New(fmt.Sprintf("the qcow2 image holds %d internal snapshots, which would publish earlier states of the disk", h.snapshot), flatten)
	case h.incompatible&incompatibleDirty != 0:
		return failure.New("the qcow2 image was not closed properly", "repair it with qemu-img check -r all, or make it again")
	case h.incompatible&incompatibleCorrupt != 0:
		return failure.New("the qcow2 image is marked as corrupt", "repair it with qemu-img check -r all, or fetch it again")
	}
	return nil
}

func (h header) clusterSize() int64 { return 1 << h.clusterBits }

// compression is the type of the compressed clusters, if there are any.
func (h header) compression() Compression {
	if h.compressionType == 1 {
		return Zstd
	}
	return Zlib
}

// tables is what the mapping tables of a qcow2 file tell.
type tables struct {
	end               int64 // bytes that the file must have
	plain, compressed int64 // allocated clusters
	read, all         int   // tables of the second level
}

// walk follows the mapping tables of a file of fileSize bytes. It returns
// errTruncated at the first reference to what lies behind the file's end.
// qemu-img info reads no tables, and qemu-img check says nothing where less
// than a cluster is missing. Of the tables of the second level it reads as
// many as budget bytes hold and r does not refuse with ErrNotRead.
func (h header) walk(ctx context.Context, r io.ReaderAt, fileSize, budget int64) (tables, error) {
	entryBytes := int64(8)
	if h.incompatible&incompatibleExtendedL2 != 0 {
		entryBytes = 16
	}
	perTable := h.clusterSize() / entryBytes
	l1Entries := (int64(h.size) + h.clusterSize()*perTable - 1) / (h.clusterSize() * perTable)
	if l1Entries > int64(h.l1Size) || l1Entries*8 > maxL1Bytes {
		return tables{}, errors.New("its tables do not cover its virtual size")
	}
	if l1Entries*8 > budget {
		return tables{}, ErrNotRead
	}
	l1 := make([]byte, l1Entries*8)
	if n, err := r.ReadAt(l1, int64(h.l1Offset)); n < len(l1) {
		return tables{}, missing(err)
	}
	var t tables
	l2 := make([]byte, h.clusterSize())
	for i := range l1Entries {
		if ctx.Err() != nil {
			return tables{}, context.Cause(ctx)
		}
		offset := int64(binary.BigEndian.Uint64(l1[i*8:]) & offsetMask)
		if offset == 0 {
			continue
		}
		if t.all++; offset > fileSize-h.clusterSize() {
			return tables{}, errTruncated
		}
		if int64(t.read+1)*h.clusterSize() > budget {
			continue
		}
		if n, err := r.ReadAt(l2, offset); n < len(l2) {
			if err := missing(err); !errors.Is(err, ErrNotRead) {
				return tables{}, err
			}
			continue
		}
		t.read++
		for j := range perTable {
			t.add(h, binary.BigEndian.Uint64(l2[j*entryBytes:]), i*perTable+j)
		}
		if t.end > fileSize {
			return tables{}, errTruncated
		}
	}
	return t, nil
}

// missing is why a table cannot be read.
func missing(err error) error {
	if errors.Is(err, ErrNotRead) {
		return ErrNotRead
	}
	return errTruncated
}

// add counts one L2 entry, of the guest's cluster number n.
func (t *tables) add(h header, entry uint64, n int64) {
	switch {
	case entry&flagCompressed != 0:
		// The length is in sectors, of which the last may be cut short.
		bits := 62 - (h.clusterBits - 8)
		offset := int64(entry & (1<<bits - 1))
		more := int64(entry & (1<<62 - 1) >> bits)
		t.compressed++
		t.end = max(t.end, (offset/sectorSize+more)*sectorSize+1)
	case entry&flagZero != 0 || entry&offsetMask == 0:
	default:
		offset, length := int64(entry&offsetMask), h.clusterSize()
		if h.incompatible&incompatibleExtendedL2 != 0 {
			length = 1 // parts of it may be unallocated
		} else if left := int64(h.size) - n*length; left < length {
			length = max(left, 0)
		}
		t.plain++
		t.end = max(t.end, offset+length)
	}
}
