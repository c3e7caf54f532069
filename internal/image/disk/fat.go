package disk

import (
	"bytes"
	"encoding/binary"
	"io"
)

// fat is a FAT file system, as far as names are looked up in it (Microsoft's
// "FAT: General Overview of On-Disk Format", 1.03). Offsets and sizes are in
// bytes.
type fat struct {
	io.ReaderAt
	table, data, cluster int64
	rootAt, rootSize     int64 // of FAT12 and FAT16
	rootCluster          uint32
	entries              uint32 // of the table
	width                uint32 // bits of an entry
}

// maxDirectory bounds what is read of a directory, in bytes.
const maxDirectory = 256 << 10

// parseFAT reads the first sector, b, of a FAT file system.
func parseFAT(r io.ReaderAt, start int64, b []byte) (fat, bool) {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	perTable, total := int64(le.Uint16(b[22:])), int64(le.Uint16(b[19:]))
	if perTable == 0 {
		perTable = int64(le.Uint32(b[36:]))
	}
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || perCluster == 0 || tables == 0 || perTable == 0 {
		return fat{}, false
	}
	f := fat{ReaderAt: r, cluster: sector * perCluster, table: start + reserved*sector, rootSize: rootEntries * 32, rootCluster: le.Uint32(b[44:])}
	f.rootAt = f.table + tables*perTable*sector
	f.data = f.rootAt + (f.rootSize+sector-1)/sector*sector
	clusters := (total*sector - (f.data - start)) / f.cluster
	f.entries = uint32(max(0, min(clusters+2, 1<<28)))
	switch {
	case clusters < 4085:
		f.width = 12
	case clusters < 65525:
		f.width = 16
	default:
		f.width = 32
	}
	return f, true
}

// root returns the entries of the root directory.
func (f fat) root() ([]byte, error) {
	if f.width == 32 {
		return f.directory(f.rootCluster)
	}
	return readFull(f, f.rootAt, min(f.rootSize, maxDirectory))
}

// directory returns the entries of the directory that begins in a cluster.
func (f fat) directory(cluster uint32) ([]byte, error) {
	return f.read(cluster, maxDirectory, func(b []byte) bool { return bytes.Contains(b, make([]byte, 32)) })
}

// read returns the file that begins in a cluster, to the end of its last one: at
// most limit bytes and a cluster, and where last is not nil, no more than up to the
// first cluster that it says is the last.
func (f fat) read(cluster uint32, limit int, last func([]byte) bool) (all []byte, err error) {
	for cluster >= 2 && cluster < f.entries && len(all) < limit {
		b, err := readFull(f, f.data+int64(cluster-2)*f.cluster, min(f.cluster, maxDirectory))
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
		if last != nil && last(b) {
			break
		}
		if cluster, err = f.next(cluster); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// next is the cluster that follows in a chain.
func (f fat) next(cluster uint32) (uint32, error) {
	b, err := readFull(f, f.table+int64(cluster)*int64(f.width)/8, 4)
	if err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint32(b)
	if f.width == 12 && cluster%2 == 1 {
		v >>= 4
	}
	return v & (1<<min(f.width, 28) - 1), nil
}
