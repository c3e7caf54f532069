package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Need is space that a build will take in one place.
type Need struct {
	Dir     string // may not exist yet
	Bytes   int64
	What    string // "the provisioned disk"
	Setting string // the variable that moves it, "OUTPUT_DIR"
}

// BuildPlan is what the need for space is estimated from.
type BuildPlan struct {
	Base        Info
	DiskSize    int64 // DISK_SIZE in bytes, the most that the guest can write
	Method      Method
	Compression Compression
	WorkDir     string // where the disks lie
	TmpDir      string // where virt-sparsify's copy lies
	LayoutDir   string // where the OCI layout goes
	Left        Left
}

// Left is what an earlier run of the build left in WorkDir, in bytes: that
// room is taken already.
type Left struct{ Provisioned, Sparsified int64 }

// LayoutSpace is what Need.What calls the part that stays when a build has
// ended.
const LayoutSpace = "the OCI layout"

// growth is what provisioning adds to any base: package lists, archives and
// their contents before they are deleted and trimmed.
const growth = 1 << 30

// BuildNeeds estimates what a build takes from now on, the base image being
// there. DISK_SIZE in full would refuse builds that take a tenth of it. So:
//   - the provisioned disk holds the base's data and as much again (an
//     upgrade rewrites a part, a desktop doubles a server) and 1 GiB, but
//     never more than DISK_SIZE and a hundredth for qcow2's tables;
//   - virt-sparsify works on a copy of that;
//   - the sparsified disk is half of it where it is compressed (measured: a
//     third), else all of it;
//   - the layout holds the sparsified disk once more;
//   - before that the hygiene gate unpacks the disk, for a while.
func BuildNeeds(p BuildPlan) []Need {
	provisioned := min(2*p.Base.DataSize+growth, p.DiskSize+p.DiskSize/100)
	sparsified := provisioned
	if p.Compression != NoCompression {
		sparsified /= 2
	}
	needs := []Need{
		{p.WorkDir, max(provisioned-p.Left.Provisioned, 0), "the provisioned disk", "OUTPUT_DIR"},
		{p.WorkDir, max(sparsified-p.Left.Sparsified, 0), "the sparsified disk", "OUTPUT_DIR"},
		{p.LayoutDir, sparsified, LayoutSpace, "OUTPUT_DIR"},
	}
	if unpacked := provisioned - sparsified; unpacked > 0 {
		needs = append(needs, Need{p.WorkDir, unpacked, "what the hygiene gate unpacks, in place of the layout", "OUTPUT_DIR"})
	}
	if p.Method == VirtSparsify {
		needs = append(needs, Need{p.TmpDir, provisioned, "virt-sparsify's copy", "OUTPUT_DIR"})
	}
	return needs
}

// CheckNeeds checks all needs at once: those on the same filesystem add up.
// The error names every filesystem that is too small.
func CheckNeeds(needs []Need) error {
	var devices []uint64
	on := map[uint64][]Need{}
	for _, n := range needs {
		dir, device, err := existing(n.Dir)
		if err != nil {
			return err
		}
		if on[device] == nil {
			devices = append(devices, device)
		}
		n.Dir = dir
		on[device] = append(on[device], n)
	}
	var errs []error
	for _, device := range devices {
		errs = append(errs, checkOne(on[device]))
	}
	return errors.Join(errs...)
}

// checkOne checks needs that share a filesystem.
func checkOne(needs []Need) error {
	var sum int64
	var parts []string
	for _, n := range needs {
		sum += n.Bytes
		parts = append(parts, n.What+" "+text.Size(n.Bytes))
	}
	free, err := host.FreeSpace(needs[0].Dir)
	if err != nil || free >= sum {
		return err
	}
	what := fmt.Sprintf("%s has %s free, but about %s are needed (%s)", needs[0].Dir, text.Size(free), text.Size(sum), strings.Join(parts, ", "))
	return failure.New(what, "free some there, or set "+needs[0].Setting+" to a directory on a larger disk")
}

// existing returns dir or its nearest parent that exists, and its device.
func existing(dir string) (string, uint64, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", 0, err
	}
	for {
		st, err := os.Stat(dir)
		if err == nil {
			return dir, st.Sys().(*syscall.Stat_t).Dev, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", 0, err
		}
		dir = filepath.Dir(dir)
	}
}
