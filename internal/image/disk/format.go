package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

const (
	sectorSize = 512
	headBytes  = 64 << 10 // reaches past an ISO's descriptor at 32 KiB
)

// signature is a magic number by which a file is known.
type signature struct {
	offset int
	magic  string
	what   string // completes "it looks like …"
	try    string
}

const (
	tryUnpack  = "unpack it and give the disk image that is in it"
	tryConvert = "convert it once with qemu-img convert -O qcow2"
	tryInstall = "give a cloud image, not an installer"
)

// signatures of what people hand in by mistake, in the order of trying.
var signatures = []signature{
	{0, "\x1f\x8b", "a gzip archive", tryUnpack},
	{0, "\xfd7zXZ\x00", "an xz archive", tryUnpack},
	{0, "\x28\xb5\x2f\xfd", "a zstd archive", tryUnpack},
	{0, "BZh", "a bzip2 archive", tryUnpack},
	{0, "PK\x03\x04", "a zip archive", tryUnpack},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive", tryUnpack},
	{257, "ustar", "a tar archive (an OVA is one, too)", tryUnpack},
	{0, "KDMV", "a VMDK image", tryConvert},
	{0, "COWD", "a VMDK image", tryConvert},
	{0, "# Disk DescriptorFile", "a VMDK descriptor, whose data lie in other files", tryConvert},
	{64, "\x7f\x10\xda\xbe", "a VDI image", tryConvert},
	{0, "vhdxfile", "a VHDX image", tryConvert},
	{0, "conectix", "a VHD image", tryConvert},
	{0, "QED\x00", "a QED image", tryConvert},
	{0, "WithoutFreeSpace", "a Parallels image", tryConvert},
	{0, "WithouFreSpacExt", "a Parallels image", tryConvert},
	{0, "LUKS\xba\xbe", "a LUKS-encrypted disk", "give a disk that is not encrypted"},
	{0x8001, "CD001", "an ISO of a CD", tryInstall},
	{0, "\x7fELF", "a program", tryDownload},
	{0, "%PDF", "a PDF document", tryDownload},
}

// footers stand in the last sector.
var footers = []signature{
	{0, "conectix", "a VHD image", tryConvert},
	{0, "koly", "a macOS DMG image", tryConvert},
}

const tryDownload = "give a qcow2 or raw disk image; a URL must answer with the image itself"

// recognise finds the format by the file's own bytes, or what the file
// looks like instead. size is the file's length in bytes.
func recognise(r io.ReaderAt, size int64) (format string, other signature) {
	head := readAt(r, 0, headBytes)
	if bytes.HasPrefix(head, []byte(qcow2.Magic)) {
		return FormatQCOW2, signature{}
	}
	if s, ok := match(signatures, head); ok {
		return "", s
	}
	if s, ok := match(footers, readAt(r, max(0, size-sectorSize), sectorSize)); ok {
		return "", s
	}
	if hasPartitionTable(head) {
		return FormatRaw, signature{}
	}
	return "", signature{what: describe(head, size), try: tryDownload}
}

func match(all []signature, b []byte) (signature, bool) {
	for _, s := range all {
		if len(b) > s.offset && bytes.HasPrefix(b[s.offset:], []byte(s.magic)) {
			return s, true
		}
	}
	return signature{}, false
}

// unpartitioned describes data without a magic number or a partition table.
// Some of it is a raw disk all the same.
const unpartitioned = "data without a partition table"

// describe finds words for a file that has no known magic.
func describe(head []byte, size int64) string {
	if size == 0 {
		return "an empty file"
	}
	kind, _, _ := strings.Cut(http.DetectContentType(head), ";")
	switch kind {
	case "text/html":
		return "an HTML page"
	case "text/plain", "text/xml":
		return "a text file"
	case "application/octet-stream":
		return unpartitioned
	}
	return "a file of type " + kind
}

// hasPartitionTable recognises a raw disk: a boot signature in the first sector,
// which a GPT's protective MBR has, too.
func hasPartitionTable(head []byte) bool {
	return len(head) >= sectorSize && head[510] == 0x55 && head[511] == 0xaa
}

// rawNeeds returns the bytes that a raw disk's own partition table says it
// has, so that a truncated one is found.
func rawNeeds(r io.ReaderAt) int64 {
	head := readAt(r, 0, 2*sectorSize)
	if len(head) < sectorSize {
		return 0
	}
	if len(head) == 2*sectorSize && string(head[512:520]) == "EFI PART" {
		// The usable area, not the backup header behind it: that one is
		// rightly missing at the end of an image that was grown or cut.
		return sectors(binary.LittleEndian.Uint64(head[512+48:]) + 1)
	}
	var end uint64
	for i := 446; i < 510; i += 16 {
		entry := head[i : i+16]
		if kind := entry[4]; kind == 0 || kind == 0xee {
			continue
		}
		start, count := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		end = max(end, uint64(start)+uint64(count))
	}
	return sectors(end)
}

// sectors converts a number of sectors into bytes, at most maxVirtualSize+1
// (a table is an untrusted text, its numbers may overflow).
func sectors(n uint64) int64 { return int64(min(n, maxVirtualSize/sectorSize+1)) * sectorSize }

// readAt returns up to n bytes from offset, fewer where the file ends.
func readAt(r io.ReaderAt, offset, n int64) []byte {
	b := make([]byte, n)
	got, _ := r.ReadAt(b, offset)
	return b[:got]
}
