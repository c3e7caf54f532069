package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// Info is what a disk image is.
type Info struct {
	Format      string // FormatQCOW2 or FormatRaw
	VirtualSize int64  // bytes that the guest sees
	FileSize    int64  // length of the file in bytes: what a layer carries
	ActualSize  int64  // bytes that the file takes on its filesystem
	DataSize    int64  // bytes of the guest's data once unpacked, in whole clusters
	// Compression is that of at least half of its data. Compressing such an image
	// again costs seconds and gains next to nothing.
	Compression Compression
}

// Compressed says whether at least half of the disk's data is compressed.
func (i Info) Compressed() bool { return i.Compression != NoCompression }

// KubeVirt's limits for qemu-img info on an image that it does not trust
// (pkg/virt-handler … validation.go): an image that needs more never starts.
const (
	infoCPUSeconds   = 10
	infoAddressSpace = 2000 << 20 // bytes
)

// maxVirtualSize is 2 TiB, what an MBR can address. No cloud image is near it.
const maxVirtualSize = 2 << 40

// Inspect tells what the disk image at path is. It reads the header itself,
// so that the format is stated when qemu-img is asked, and refuses what no
// containerdisk may be made of: a file that is no qcow2 or raw disk, a
// truncated one, one that refers to other files, an encrypted one, one with
// internal snapshots.
func Inspect(ctx context.Context, path string) (Info, error) {
	return inspectOver(ctx, path, "")
}

// inspectOver allows the image to be an overlay of base, an absolute path.
// What is told is of the overlay alone.
func inspectOver(ctx context.Context, path, base string) (Info, error) {
	info, err := inspect(ctx, path, base)
	if err == nil {
		return info, nil
	}
	if f, ok := failure.In(err); ok {
		named := *f
		named.What = path + ": " + f.What
		return Info{}, &named
	}
	return Info{}, fmt.Errorf("inspecting %s: %w", path, err)
}

func inspect(ctx context.Context, path, base string) (Info, error) {
	// Not blocking: the path may be that of a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Info{}, failure.New(errors.Unwrap(err).Error(), "check the path and its permissions")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	if !st.Mode().IsRegular() {
		return Info{}, failure.New("this is no regular file", "give a qcow2 or raw disk image")
	}
	format, other := recognise(f, st.Size())
	if format == "" {
		return Info{}, failure.New("this is no disk image, it looks like "+other.what, other.try)
	}
	info := Info{Format: format, FileSize: st.Size(), ActualSize: allocated(st), Compression: NoCompression}
	if format == FormatRaw {
		err = info.readRaw(f)
	} else {
		err = info.readQCOW2(ctx, f, base)
	}
	if err != nil {
		return Info{}, err
	}
	return info, info.ask(ctx, path)
}

func allocated(st os.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks * 512 }

func (i *Info) readRaw(f *os.File) error {
	i.VirtualSize, i.DataSize = (i.FileSize+sectorSize-1)/sectorSize*sectorSize, i.ActualSize
	if need := rawNeeds(f); need > i.FileSize {
		return truncated(fmt.Errorf("its partition table covers %d bytes, the file has %d", need, i.FileSize))
	}
	return i.checkVirtualSize(uint64(i.VirtualSize))
}

func (i *Info) readQCOW2(ctx context.Context, f *os.File, base string) error {
	h, err := readHeader(f)
	if err != nil {
		return truncated(err)
	}
	if err := h.refusal(base); err != nil {
		return err
	}
	if err := i.checkVirtualSize(h.size); err != nil {
		return err
	}
	t, err := h.walk(ctx, f, i.FileSize, math.MaxInt64)
	if ctx.Err() != nil {
		return err
	}
	if err != nil {
		return truncated(err)
	}
	i.VirtualSize = int64(h.size)
	i.DataSize = (t.plain + t.compressed) * h.clusterSize()
	if t.compressed > 0 && t.compressed >= t.plain {
		i.Compression = h.compression()
	}
	return nil
}

func truncated(err error) error {
	return failure.Wrap(err, "the disk image is truncated or damaged", "fetch or make it again")
}

func (i *Info) checkVirtualSize(size uint64) error {
	if size == 0 || size > maxVirtualSize {
		return failure.New(fmt.Sprintf("a virtual size of %d bytes is absurd", size), "it must be above 0 and at most 2 TiB")
	}
	return nil
}

// ask compares qemu-img's answer with ours.
func (i *Info) ask(ctx context.Context, path string) error {
	said, err := Ask(ctx, path, i.Format)
	if err == nil && said != i.VirtualSize {
		err = fmt.Errorf("qemu-img sees a virtual size of %d bytes, its header says %d", said, i.VirtualSize)
	}
	return err
}

// Ask lets qemu-img info open the image under the limits that KubeVirt sets
// for it, and returns the virtual size that it sees, in bytes. An image that
// refers to other files must not come here: qemu-img would open them.
func Ask(ctx context.Context, path, format string) (int64, error) {
	abs, err := filepath.Abs(path) // also keeps "nbd:…" or "json:…" a file name
	if err != nil {
		return 0, err
	}
	qemuImg, err := lookQemuImg()
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
	var said struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		return 0, fmt.Errorf("reading the answer of qemu-img info: %w", err)
	}
	return said.VirtualSize, nil
}

func lookQemuImg() (string, error) {
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		return "", failure.New("qemu-img is not installed", "apt-get install qemu-utils")
	}
	return path, nil
}
