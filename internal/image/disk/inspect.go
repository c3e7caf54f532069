package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Info is what a disk image is that a containerdisk may be made of.
type Info struct {
	Format      string // FormatQCOW2 or FormatRaw
	VirtualSize int64  // bytes that the guest sees
	FileSize    int64  // length of the file in bytes: what a layer carries
	DataSize    int64  // bytes of the guest's data once unpacked, in whole clusters
	// Compression is that of at least half of its data. Compressing such an image
	// again costs seconds and gains next to nothing.
	Compression Compression
}

// Compressed says whether at least half of the disk's data is compressed.
func (i Info) Compressed() bool { return i.Compression != NoCompression }

// Inspect reads what the disk image at path is, and refuses what no
// containerdisk may be made of: a file that is no qcow2 or raw disk, a
// truncated one, one that refers to other files, an encrypted one, one with
// internal snapshots. It reads the header itself, so that the format is stated
// when qemu-img is asked.
func Inspect(ctx context.Context, path string) (Info, error) { return inspectOver(ctx, path, "") }

// inspectOver allows the image to be an overlay of base, an absolute path. The
// Info is of the overlay alone.
func inspectOver(ctx context.Context, path, base string) (info Info, err error) {
	defer func() { err = named(path, err) }()
	f, err := host.Open(path)
	if errors.Is(err, host.ErrNotRegular) {
		return Info{}, failure.New("this is no regular file", "give a qcow2 or raw disk image")
	}
	if err != nil {
		return Info{}, &failure.Error{What: errors.Unwrap(err).Error(), Try: "check the path and its permissions", Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	i := Look(f, st.Size())
	if err := i.refusal(base); err != nil {
		return Info{}, err
	}
	allocated := st.Sys().(*syscall.Stat_t).Blocks * sectorSize
	info = Info{Format: i.Format, VirtualSize: int64(i.VirtualSize), FileSize: i.FileSize, DataSize: allocated, Compression: NoCompression}
	if i.Format == FormatQCOW2 {
		t, err := i.Tables(ctx, f, math.MaxInt64)
		if ctx.Err() != nil {
			return Info{}, context.Cause(ctx)
		}
		if err != nil {
			return Info{}, truncated(err)
		}
		info.DataSize, info.Compression = t.Data, t.Compression
	}
	seen, err := Ask(ctx, path, info.Format)
	if err == nil && seen != info.VirtualSize {
		err = fmt.Errorf("qemu-img sees a virtual size of %d bytes, its header says %d", seen, info.VirtualSize)
	}
	return info, err
}

// named puts the file's name before an error.
func named(file string, err error) error {
	if err == nil {
		return nil
	}
	f, ok := failure.In(err)
	if !ok {
		return fmt.Errorf("inspecting %s: %w", file, err)
	}
	told := *f
	told.What = file + ": " + f.What
	return &told
}

func truncated(err error) error {
	return failure.Wrap(err, "the disk image is truncated or damaged", "fetch or make it again")
}

// refusal returns why the image must not be used, or nil. None of it may be
// left to qemu-img: it would open the other files to find out. base is
// the one backing file that the image may have, or empty.
func (i *Image) refusal(base string) error {
	const flatten = "flatten it with qemu-img convert -O qcow2"
	switch {
	case i.Format == "":
		return failure.New("this is no disk image, it looks like "+i.Other, i.try)
	case i.Damage != nil:
		return truncated(i.Damage)
	case i.BackingFile != "" && i.BackingFile != base:
		return failure.New("the qcow2 image has a backing file", flatten+" where its backing file is")
	case i.ExternalData:
		return failure.New("the qcow2 image keeps its data in an external data file", flatten+" where that file is")
	case i.Encrypted:
		return failure.New("the qcow2 image is encrypted", "give one that is not")
	case i.Snapshots != 0:
		what := text.Count(i.Snapshots, "internal snapshot")
		return failure.New(fmt.Sprintf("the qcow2 image holds %s, which would publish earlier states of the disk", what), flatten)
	case i.Dirty:
		return failure.New("the qcow2 image was not closed properly", "repair it with qemu-img check -r all, or make it again")
	case i.Corrupt:
		return failure.New("the qcow2 image is marked as corrupt", "repair it with qemu-img check -r all, or fetch it again")
	case i.OutOfRange():
		return failure.New(fmt.Sprintf("a virtual size of %d bytes is out of range", i.VirtualSize), "it must be above 0 and at most 2 TiB")
	}
	return nil
}

// KubeVirt's limits for qemu-img info on an image that it does not trust
// (pkg/virt-handler … validation.go): an image that needs more never starts.
const (
	infoCPUSeconds   = 10
	infoAddressSpace = 2000 << 20 // bytes
)

// Ask lets qemu-img info open the image under the limits that KubeVirt sets
// for it, and returns the virtual size that it sees, in bytes. An image that
// refers to other files must not come here: qemu-img would open them.
func Ask(ctx context.Context, path, format string) (int64, error) {
	abs, err := filepath.Abs(path) // also keeps "nbd:…" or "json:…" a file name
	if err != nil {
		return 0, err
	}
	qemuImg, err := host.Look("qemu-img")
	if err != nil {
		return 0, err
	}
	out, err := host.Output(ctx, host.Cmd{Program: "prlimit", Args: []string{
		"--cpu=" + strconv.Itoa(infoCPUSeconds), "--as=" + strconv.Itoa(infoAddressSpace),
		qemuImg, "info", "--output=json", "-f", format, abs,
	}})
	if err := explain(ctx, err, filepath.Dir(abs)); err != nil {
		if _, explained := failure.In(err); explained || ctx.Err() != nil {
			return 0, err
		}
		return 0, failure.Wrap(err, "qemu-img cannot open the disk image within KubeVirt's limits", "fetch or make it again")
	}
	var answer struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return 0, fmt.Errorf("reading the answer of qemu-img info: %w", err)
	}
	return answer.VirtualSize, nil
}
