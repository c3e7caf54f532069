package containerdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/command"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// source is an opened disk that may become a containerdisk.
type source struct {
	*os.File
	info        os.FileInfo
	name        string // of the file in the image: disk.qcow2 or disk.img
	virtualSize int64  // bytes that the guest sees
	compressed  bool   // the data is compressed inside the disk already
}

// openDisk opens a qcow2 or raw disk and refuses every one that KubeVirt or
// CDI would refuse, or that needs another file to be read. The format comes
// from the magic number; QEMU never guesses it.
func openDisk(ctx context.Context, path string, p progress.Reporter) (_ *source, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.Wrap(err, "cannot open the disk", "")
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	s := &source{File: f}
	if s.info, err = f.Stat(); err != nil {
		return nil, failure.Wrap(err, "cannot read the disk", "")
	}
	if !s.info.Mode().IsRegular() {
		return nil, failure.New(path+" is no file", "name the disk file itself")
	}
	head := make([]byte, 1024)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, failure.Wrap(err, "cannot read the disk", "")
	}
	format, err := recognise(head[:n], s.info.Size())
	if err != nil {
		return nil, failure.Wrap(err, path+" cannot become a containerdisk", "")
	}
	if format == "raw" {
		s.name, s.virtualSize = "disk.img", s.info.Size()
		return s, nil
	}
	s.name = "disk.qcow2"
	return s, s.examine(ctx, path, p)
}

// otherFormats are disks and archives that are often mistaken for a raw disk.
var otherFormats = []struct{ magic, what string }{
	{"KDMV", "a VMDK image"},
	{"# Disk DescriptorFile", "a VMDK descriptor, whose data is elsewhere"},
	{"conectix", "a VHD image"},
	{"vhdxfile", "a VHDX image"},
	{"<<< ", "a VDI image"},
	{"QED\x00", "a QED image"},
	{"LUKS\xba\xbe", "encrypted (LUKS)"},
	{"\x1f\x8b", "a gzip file"},
	{"\xfd7zXZ", "an xz file"},
	{"\x28\xb5\x2f\xfd", "a zstd file"},
}

// recognise names the format of a disk of size bytes that begins with head:
// qcow2 or raw. A raw disk has no magic number but the boot sector's: every
// MBR or GPT disk ends its first 512 bytes with 55 AA.
func recognise(head []byte, size int64) (string, error) {
	if bytes.HasPrefix(head, []byte("QFI\xfb")) {
		return "qcow2", checkHeader(head)
	}
	for _, other := range otherFormats {
		if bytes.HasPrefix(head, []byte(other.magic)) {
			return "", errors.New("it is " + other.what + ", not qcow2 or raw")
		}
	}
	if len(head) < 512 || size%512 != 0 || head[510] != 0x55 || head[511] != 0xAA {
		return "", errors.New("it is no disk image: neither qcow2 nor raw with a boot sector")
	}
	return "raw", nil
}

// Offsets of the qcow2 header (QEMU docs/interop/qcow2.txt).
const (
	atVersion      = 4
	atBackingFile  = 8
	atCryptMethod  = 32
	atSnapshots    = 60
	atIncompatible = 72

	lengthV2 = 72
	lengthV3 = 104

	incompatibleDirty    = 1 << 0
	incompatibleCorrupt  = 1 << 1
	incompatibleDataFile = 1 << 2
)

// checkHeader refuses a qcow2 that needs more than itself to be read. It reads
// the header itself, so that QEMU is never shown an image that names files.
func checkHeader(head []byte) error {
	if len(head) < lengthV2 {
		return errors.New("its qcow2 header is cut off")
	}
	version := binary.BigEndian.Uint32(head[atVersion:])
	switch {
	case version != 2 && version != 3:
		return fmt.Errorf("it is qcow2 of the unknown version %d", version)
	case version == 3 && len(head) < lengthV3:
		return errors.New("its qcow2 header is cut off")
	case binary.BigEndian.Uint64(head[atBackingFile:]) != 0:
		return errors.New("it has a backing file: flatten it with qemu-img convert")
	case binary.BigEndian.Uint32(head[atCryptMethod:]) != 0:
		return errors.New("it is encrypted: KubeVirt has no key for it")
	case binary.BigEndian.Uint32(head[atSnapshots:]) != 0:
		return errors.New("it has internal snapshots, which would publish what was deleted: drop them with qemu-img convert")
	}
	if version == 2 {
		return nil
	}
	switch features := binary.BigEndian.Uint64(head[atIncompatible:]); {
	case features&incompatibleDataFile != 0:
		return errors.New("it has an external data file: flatten it with qemu-img convert")
	case features&(incompatibleDirty|incompatibleCorrupt) != 0:
		return errors.New("it was not closed properly or is damaged: see qemu-img check")
	}
	return nil
}

// examine asks QEMU whether a qcow2 is sound, how large the guest sees it, and
// whether its data is compressed. It reads the tables only, not the data.
func (s *source) examine(ctx context.Context, path string, p progress.Reporter) error {
	p.Activity("checking the disk")
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if _, err := qemuImg(ctx, "info", path, &info); err != nil {
		return failure.Wrap(err, "QEMU cannot read "+path, "")
	}
	var check struct {
		Allocated  int64 `json:"allocated-clusters"`
		Compressed int64 `json:"compressed-clusters"`
	}
	code, err := qemuImg(ctx, "check", path, &check)
	switch {
	case err != nil && code == checkLeaks:
		p.Warn("the disk has clusters that nothing uses; qemu-img convert would make it smaller")
	case err != nil:
		return failure.Wrap(err, path+" is damaged or cut off", "build it again")
	}
	s.virtualSize = info.VirtualSize
	// qemu-img convert -c leaves clusters as they are that do not get smaller,
	// so "all of them" would be too strict.
	s.compressed = 2*check.Compressed >= check.Allocated
	return nil
}

// checkLeaks is the exit code of qemu-img check for clusters that nothing
// refers to: a waste of space, no damage.
const checkLeaks = 3

// Limits under which KubeVirt asks for the same (pkg/container-disk and
// cmd/virt-chroot: 10 s of CPU, 2000 MiB of address space). A disk on which
// QEMU needs more would never start there.
const (
	limitCPU          = "--cpu=10"
	limitAddressSpace = "--as=2097152000"
)

// qemuImg runs a question of qemu-img about a qcow2 and decodes the answer. It
// returns the exit code too, as some answers are worth having in spite of it.
func qemuImg(ctx context.Context, question, path string, answer any) (int, error) {
	var out bytes.Buffer
	err := command.Run(ctx, command.Cmd{
		Program: "prlimit",
		Args: []string{limitCPU, limitAddressSpace, "--core=0", "--",
			"qemu-img", question, "--output=json", "-f", "qcow2", fileName(path)},
		Stdout: &out,
	})
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if err != nil && code != checkLeaks {
		return code, err
	}
	if decodeErr := json.Unmarshal(out.Bytes(), answer); decodeErr != nil {
		return code, fmt.Errorf("qemu-img %s: %w", question, decodeErr)
	}
	return code, err
}

// fileName keeps QEMU from taking a path for a protocol ("nbd:…", "json:…") or
// an option.
func fileName(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "./" + path
}
