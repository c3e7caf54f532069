package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	qcow2log "github.com/lima-vm/go-qcow2reader/log"
)

func init() {
	qcow2log.SetWarnFunc(nil) // an image's state is a fact of Look, not a line for people
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxCluster))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	})
}

// maxCluster is the largest cluster of a qcow2 image, in bytes
// (QEMU's docs/interop/qcow2.txt, cluster_bits).
const maxCluster = 2 << 20

// maxL1 is how many entries a first table may have that needs less: the library
// reads them all.
const maxL1 = 4096

// Firmware is what a disk can be started by.
type Firmware struct {
	BIOS bool // it has boot code in its first sector
	UEFI bool // it has an EFI system partition with a boot loader in its default place
}

// String names them as people do.
func (f Firmware) String() string {
	switch {
	case f.BIOS && f.UEFI:
		return "BIOS and UEFI"
	case f.BIOS:
		return "BIOS"
	case f.UEFI:
		return "UEFI"
	}
	return "nothing that a firmware starts"
}

// FirmwareOf looks at a disk image on this host.
func FirmwareOf(file string) (Firmware, error) {
	f, err := os.Open(file)
	if err != nil {
		return Firmware{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Firmware{}, err
	}
	return Look(f, info.Size()).Firmware(f)
}

// Firmware looks at what the guest's firmware would see: the first sector, the
// partition table, and the names in an EFI system partition. It reads a few
// clusters of an image that is whole and reads no other files.
func (i Image) Firmware(r io.ReaderAt) (f Firmware, err error) {
	if i.Format == "" || i.Damage != nil || i.ReadsOthers() || i.Encrypted || i.Absurd() {
		return f, errors.New("the image cannot be looked into")
	}
	guest := io.ReaderAt(r)
	if i.Format == FormatQCOW2 {
		if uint64(i.header.l1Size) > max(maxL1, 2*i.VirtualSize/uint64(i.ClusterSize*i.ClusterSize/8)) {
			return f, errors.New("the image's first table is larger than its disk")
		}
		image, err := qcow2.Open(r, nil)
		if err != nil {
			return f, fmt.Errorf("reading the image: %w", err)
		}
		guest = image
	}
	first := make([]byte, sectorSize)
	if _, err := guest.ReadAt(first, 0); err != nil && !errors.Is(err, io.EOF) {
		return f, fmt.Errorf("reading the first sector: %w", err)
	}
	// The 440 bytes before the disk's signature (UEFI specification, 5.2.1).
	f.BIOS = len(bytes.Trim(first[:440], "\x00")) > 0
	start, err := systemPartition(guest, first)
	if err != nil || start == 0 {
		return f, err
	}
	f.UEFI, err = hasLoader(guest, start)
	return f, err
}

// espType is the type of an EFI system partition, as GPT writes it
// (C12A7328-F81F-11D2-BA4B-00A0C93EC93B, mixed endian).
var espType = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// systemPartition is where the EFI system partition begins, in bytes, or 0.
func systemPartition(r io.ReaderAt, first []byte) (int64, error) {
	const mbrESP, protective = 0xef, 0xee
	gpt := false
	for i := range 4 {
		entry := first[446+16*i:]
		switch entry[4] {
		case mbrESP:
			return int64(binary.LittleEndian.Uint32(entry[8:])) * sectorSize, nil
		case protective:
			gpt = true
		}
	}
	if !gpt {
		return 0, nil
	}
	head := make([]byte, sectorSize)
	if _, err := r.ReadAt(head, sectorSize); err != nil {
		return 0, fmt.Errorf("reading the partition table: %w", err)
	}
	at, count, size := binary.LittleEndian.Uint64(head[72:]), binary.LittleEndian.Uint32(head[80:]), binary.LittleEndian.Uint32(head[84:])
	if string(head[:8]) != "EFI PART" || at > 1<<20 || count > 1024 || size < 128 || size > 4096 {
		return 0, nil
	}
	table := make([]byte, int(count*size))
	if _, err := r.ReadAt(table, int64(at)*sectorSize); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("reading the partition table: %w", err)
	}
	for ; len(table) >= int(size); table = table[size:] {
		if start := binary.LittleEndian.Uint64(table[32:]); bytes.Equal(table[:16], espType) && start < maxVirtualSize/sectorSize {
			return int64(start) * sectorSize, nil
		}
	}
	return 0, nil
}

// loaders are the names of boot loaders in EFI/BOOT (UEFI specification,
// 3.5.1.1), as FAT writes them.
var loaders = []string{"BOOTX64 EFI", "BOOTAA64EFI"}

// fat is a FAT file system, as far as names are looked up in it (Microsoft's
// "FAT: General Overview of On-Disk Format", 1.03).
type fat struct {
	r                    io.ReaderAt
	start, table, data   int64 // in bytes
	root, rootSize       int64 // of FAT12 and FAT16
	cluster              int64 // size in bytes
	rootCluster, entries uint32
	width                int // bits of an entry
}

// maxDirectory bounds what is read of a directory, in bytes.
const maxDirectory = 256 << 10

// hasLoader says whether a FAT file system holds EFI/BOOT with a loader.
func hasLoader(r io.ReaderAt, start int64) (bool, error) {
	b := make([]byte, sectorSize)
	if _, err := r.ReadAt(b, start); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("reading the EFI system partition: %w", err)
	}
	f, ok := parseFAT(r, start, b)
	if !ok {
		return false, nil
	}
	dir, err := f.directory(0)
	for _, name := range []string{"EFI", "BOOT"} {
		if err != nil {
			return false, err
		}
		at, isThere := lookup(dir, name+strings.Repeat(" ", 11-len(name)))
		if !isThere || at == 0 {
			return false, nil
		}
		dir, err = f.directory(at)
	}
	for _, name := range loaders {
		if _, isThere := lookup(dir, name); isThere {
			return true, err
		}
	}
	return false, err
}

// parseFAT reads the first sector of a FAT file system.
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
	f := fat{r: r, start: start, cluster: sector * perCluster, table: start + reserved*sector, rootSize: rootEntries * 32, rootCluster: le.Uint32(b[44:])}
	f.root = f.table + tables*perTable*sector
	f.data = f.root + (f.rootSize+sector-1)/sector*sector
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

// directory returns the entries of the directory that begins in a cluster; the
// root is 0.
func (f fat) directory(cluster uint32) ([]byte, error) {
	if cluster == 0 && f.width < 32 {
		b := make([]byte, min(f.rootSize, maxDirectory))
		_, err := f.r.ReadAt(b, f.root)
		return b, err
	}
	if cluster == 0 {
		cluster = f.rootCluster
	}
	var all []byte
	for cluster >= 2 && cluster < f.entries && len(all) < maxDirectory {
		b := make([]byte, min(f.cluster, maxDirectory))
		if _, err := f.r.ReadAt(b, f.data+int64(cluster-2)*f.cluster); err != nil {
			return nil, fmt.Errorf("reading the EFI system partition: %w", err)
		}
		all = append(all, b...)
		if bytes.Contains(b, make([]byte, 32)) { // the end, and it may be all there is
			break
		}
		var err error
		if cluster, err = f.next(cluster); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// next is the cluster that follows in a chain.
func (f fat) next(cluster uint32) (uint32, error) {
	b := make([]byte, 4)
	at := int64(cluster) * int64(f.width) / 8
	if _, err := f.r.ReadAt(b, f.table+at); err != nil {
		return 0, fmt.Errorf("reading the EFI system partition: %w", err)
	}
	v := binary.LittleEndian.Uint32(b)
	switch {
	case f.width == 12 && cluster%2 == 1:
		v = v >> 4 & 0xfff
	case f.width == 12:
		v &= 0xfff
	case f.width == 16:
		v &= 0xffff
	default:
		v &= 0x0fffffff
	}
	return v, nil
}

// lookup finds a short name among a directory's entries and returns the cluster
// in which it begins.
func lookup(dir []byte, name string) (uint32, bool) {
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		const longName = 0x0f
		if dir[11]&longName != longName && string(dir[:11]) == name {
			return uint32(binary.LittleEndian.Uint16(dir[20:]))<<16 | uint32(binary.LittleEndian.Uint16(dir[26:])), true
		}
	}
	return 0, false
}
