package disk

import (
	"bytes"
	"cmp"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	qcow2log "github.com/lima-vm/go-qcow2reader/log"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/host"
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
	// SecureBoot: that loader carries a signature of Microsoft's, as shim does, whose
	// keys firmware with Secure Boot knows.
	SecureBoot bool
	// Architecture is whose boot loader that is; empty without one, or where there are
	// those of several.
	Architecture string
}

// Starts says whether machines of an architecture can start from the disk, as far as its
// boot loader says for which it is.
func (f Firmware) Starts(architecture string) bool {
	return f.Architecture == "" || f.Architecture == architecture
}

// String names them as people do.
func (f Firmware) String() string {
	var all []string
	if f.BIOS {
		all = append(all, "BIOS")
	}
	if f.UEFI && f.SecureBoot {
		all = append(all, "UEFI with Secure Boot")
	} else if f.UEFI {
		all = append(all, "UEFI")
	}
	return cmp.Or(strings.Join(all, " and "), "nothing that a firmware starts")
}

// MarshalText writes what String says.
func (f Firmware) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what String says.
func (f *Firmware) UnmarshalText(b []byte) error {
	for i := range 8 {
		*f = Firmware{BIOS: i&1 != 0, UEFI: i&2 != 0, SecureBoot: i&4 != 0}
		if f.String() == string(b) {
			return nil
		}
	}
	return fmt.Errorf("no firmware is called %q", b)
}

// FirmwareOf looks at a disk image on this host.
func FirmwareOf(file string) (Firmware, error) {
	f, err := host.Open(file)
	if err != nil {
		return Firmware{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Firmware{}, err
	}
	i := Look(f, info.Size())
	return i.Firmware(f)
}

// Firmware looks at what the guest's firmware would see: the first sector, the
// partition table, and the names in an EFI system partition. It reads a few
// clusters of an image that is whole and reads no other files.
func (i *Image) Firmware(r io.ReaderAt) (f Firmware, err error) {
	if i.Format == "" || i.Damage != nil || i.ReadsOthers() || i.Encrypted || i.OutOfRange() {
		return f, errors.New("the image cannot be looked into")
	}
	guest := r
	if i.Format == FormatQCOW2 {
		if uint64(i.header.L1Size) > max(maxL1, 2*i.VirtualSize/uint64(i.ClusterSize*i.ClusterSize/8)) {
			return f, errors.New("the image's first table is larger than its disk")
		}
		if guest, err = qcow2.Open(r, nil); err != nil {
			return f, fmt.Errorf("reading the image: %w", err)
		}
	}
	first, err := readFull(guest, 0, sectorSize)
	if err != nil {
		return f, fmt.Errorf("reading the first sector: %w", err)
	}
	// The 440 bytes before the disk's signature (UEFI specification, 5.2.1).
	f.BIOS = len(bytes.Trim(first[:440], "\x00")) > 0
	start, err := systemPartition(guest, first)
	if err == nil && start > 0 {
		f.Architecture, f.UEFI, f.SecureBoot, err = loader(guest, start)
	}
	if err != nil {
		err = fmt.Errorf("reading the EFI system partition: %w", err)
	}
	return f, err
}

func readFull(r io.ReaderAt, offset, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, offset)
	if got == len(b) {
		err = nil
	}
	return b, err
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
	head, err := readFull(r, sectorSize, sectorSize)
	if err != nil {
		return 0, err
	}
	at, count, size := binary.LittleEndian.Uint64(head[72:]), binary.LittleEndian.Uint32(head[80:]), binary.LittleEndian.Uint32(head[84:])
	if string(head[:8]) != "EFI PART" || at > 1<<20 || count > 1024 || size < 128 || size > 4096 {
		return 0, nil
	}
	table, err := readFull(r, int64(at)*sectorSize, int64(count*size))
	if err != nil {
		return 0, err
	}
	for ; len(table) >= int(size); table = table[size:] {
		if start := binary.LittleEndian.Uint64(table[32:]); bytes.Equal(table[:16], espType) && start < maxVirtualSize/sectorSize {
			return int64(start) * sectorSize, nil
		}
	}
	return 0, nil
}

// maxLoader bounds what is read of a boot loader, in bytes. Shim has a million, GRUB
// as one file four.
const maxLoader = 16 << 20

// loader says whether the FAT file system that begins at start holds EFI/BOOT with
// a loader, for which architecture, and whether Microsoft signed it.
func loader(r io.ReaderAt, start int64) (architecture string, isThere, signed bool, err error) {
	b, err := readFull(r, start, sectorSize)
	if err != nil {
		return "", false, false, err
	}
	f, ok := parseFAT(r, start, b)
	if !ok {
		return "", false, false, nil
	}
	dir, err := f.root()
	for _, name := range []string{"EFI        ", "BOOT       "} {
		cluster, isThere := lookup(dir, name)
		if err != nil || !isThere || cluster == 0 {
			return "", false, false, err
		}
		dir, err = f.directory(cluster)
	}
	for _, a := range arch.All {
		name, extension, _ := strings.Cut(a.Loader(), ".")
		cluster, found := lookup(dir, fmt.Sprintf("%-8s%s", name, extension)) // as FAT writes it
		if !found || err != nil {
			continue
		}
		if isThere {
			return "", isThere, signed, nil
		}
		var content []byte
		content, err = f.read(cluster, maxLoader, nil)
		architecture, isThere, signed = a.Name, true, signedByMicrosoft(content)
	}
	return architecture, isThere, signed, err
}

// signedByMicrosoft says whether a PE file has a certificate table that names
// Microsoft. Whether the signature holds is for the firmware to say.
func signedByMicrosoft(b []byte) bool {
	file, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		return false
	}
	header, ok := file.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return false
	}
	// This directory's address is an offset in the file (PE format, "The attribute certificate table").
	table := header.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY]
	from := min(uint64(table.VirtualAddress), uint64(len(b)))
	return bytes.Contains(b[from:min(from+uint64(table.Size), uint64(len(b)))], []byte("Microsoft"))
}

// lookup finds a short name among a directory's entries and returns the cluster
// in which it begins.
func lookup(dir []byte, name string) (uint32, bool) {
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		const label = 0x08 // the file system's own name, often EFI, and every part of a long one
		if dir[11]&label == 0 && string(dir[:11]) == name {
			return uint32(binary.LittleEndian.Uint16(dir[20:]))<<16 | uint32(binary.LittleEndian.Uint16(dir[26:])), true
		}
	}
	return 0, false
}
