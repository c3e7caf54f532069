package pipeline

import (
	"os"
	"path/filepath"

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

// Space is what a build takes in its OUTPUT_DIR from now on, and what of that
// stays when it has ended. Base is what the base image holds, in bytes as all of
// these.
func Space(c settings.Config, outputDir string, base int64) (most, stays int64) {
	for _, n := range needs(c, workDir(outputDir), base) {
		most += n.Bytes
		if n.What == layoutSpace {
			stays += n.Bytes
		}
	}
	return most, stays
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
