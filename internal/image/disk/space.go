package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Need is space that a build will take.
type Need struct {
	Bytes int64
	What  string // "the provisioned disk"
}

// BuildPlan is what the need for space is estimated from.
type BuildPlan struct {
	Base        Info
	DiskSize    int64 // DISK_SIZE in bytes, the most that the guest can write
	Method      Method
	Compression Compression
	Left        Left
}

// Left is what an earlier run of the build left, in bytes: that room is taken
// already.
type Left struct{ Provisioned, Sparsified int64 }

// LayoutSpace is what Need.What calls the part that stays when a build has
// ended.
const LayoutSpace = "the OCI layout"

// growth is what provisioning adds to any base: package lists, archives and
// their contents before they are deleted and trimmed.
const growth = 1 << 30

// BuildNeeds estimates what a build takes in OUTPUT_DIR from now on, the base
// image being there. DISK_SIZE in full would refuse builds that take a tenth of
// it. So:
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
		{max(provisioned-p.Left.Provisioned, 0), "the provisioned disk"},
		{max(sparsified-p.Left.Sparsified, 0), "the sparsified disk"},
		{sparsified, LayoutSpace},
	}
	if unpacked := provisioned - sparsified; unpacked > 0 {
		needs = append(needs, Need{unpacked, "what the hygiene gate unpacks, in place of the layout"})
	}
	if p.Method == VirtSparsify {
		needs = append(needs, Need{provisioned, "virt-sparsify's copy"})
	}
	return needs
}

// CheckSpace checks whether there is room for all needs in a directory, which may
// not exist yet; setting is the variable that moves it, "OUTPUT_DIR".
func CheckSpace(dir, setting string, needs ...Need) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	free, err := host.FreeSpace(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		free, err = host.FreeSpace(dir)
	}
	var sum int64
	var parts []string
	for _, n := range needs {
		sum += n.Bytes
		parts = append(parts, n.What+" "+text.Size(n.Bytes))
	}
	if err != nil || free >= sum {
		return err
	}
	what := fmt.Sprintf("%s has %s free, but about %s are needed (%s)", dir, text.Size(free), text.Size(sum), strings.Join(parts, ", "))
	return failure.New(what, "free some there, or set "+setting+" to a directory on a larger disk")
}
