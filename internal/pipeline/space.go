package pipeline

import (
	"os"
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

const (
	// growth is what provisioning adds to any base: package lists, archives and
	// their contents before they are deleted and trimmed.
	growth = 1 << 30
	// layoutSpace is what host.Need.What calls the part that stays when a build
	// has ended.
	layoutSpace = "the OCI layout"
)

// Resources is what making an image takes of the host.
type Resources struct {
	// CPUs is a matter of speed: an image that asks for more than the host has
	// takes them all and is built alone.
	CPUs      int
	MemoryMiB int
	Disk      int64 // the most that it takes in its OUTPUT_DIR from now on, in bytes
	Keep      int64 // what of it stays
}

const (
	// qemuMiB is what QEMU and the programs beside it take besides the guest's
	// memory.
	qemuMiB = 512
	// baseData is what is assumed of a base that is not there yet, in bytes: a
	// server image has less. The build itself knows, and checks again.
	baseData = 1 << 30
)

// Estimate is what a build takes of the host. A guest that installs packages
// keeps half of its processors busy (measured: 1.05 of 2 under emulation). Which
// accelerator works is the build's to find out: the guest is counted as one that
// may have them all.
func Estimate(c settings.Config) Resources {
	r := Resources{CPUs: (vm.Verdict{}.CPUs(c.CPUs) + 1) / 2, MemoryMiB: c.MemoryMiB + qemuMiB}
	for _, n := range needs(c, workDir(c.OutputDir), baseData) {
		r.Disk += n.Bytes
		if n.What == layoutSpace {
			r.Keep += n.Bytes
		}
	}
	return r
}

// needs estimates what a build takes, of which an earlier run may have left some
// in work. DISK_SIZE in full would refuse builds that take a tenth of it. So:
//   - the provisioned disk holds the base's data and as much again (an
//     upgrade rewrites a part, a desktop doubles a server) and 1 GiB, but
//     never more than DISK_SIZE and a hundredth for qcow2's tables;
//   - virt-sparsify works on a copy of that;
//   - the sparsified disk is half of it where it is compressed (measured: a
//     third), else all of it;
//   - the layout holds the sparsified disk once more;
//   - before that the hygiene gate unpacks the disk, for a while.
func needs(c settings.Config, work string, base int64) []host.Need {
	left := func(s stage) int64 {
		info, err := os.Stat(filepath.Join(work, s.file))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	provisioned := min(2*base+growth, c.DiskSize+c.DiskSize/100)
	sparsified := provisioned
	if disk.Compression(c.Compression) != disk.NoCompression {
		sparsified /= 2
	}
	all := []host.Need{
		{Bytes: max(provisioned-left(provisioning), 0), What: "the provisioned disk"},
		{Bytes: max(sparsified-left(sparsifying), 0), What: "the sparsified disk"},
		{Bytes: sparsified, What: layoutSpace},
	}
	if unpacked := provisioned - sparsified; unpacked > 0 {
		all = append(all, host.Need{Bytes: unpacked, What: "what the hygiene gate unpacks, in place of the layout"})
	}
	if disk.Method(c.Sparsify) == disk.VirtSparsify {
		all = append(all, host.Need{Bytes: provisioned, What: "virt-sparsify's copy"})
	}
	return all
}
