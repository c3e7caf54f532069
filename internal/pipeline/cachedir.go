package pipeline

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// CheckCache makes the folder of CACHE_DIR where it is missing, and refuses one
// that somebody else could put things into: programs that are kept there run.
func CheckCache(dir string) error {
	way := place{"CACHE_DIR", "set CACHE_DIR to a folder of your own"}
	if err := way.mkdir(dir, 0o755); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return failure.Wrap(err, "CACHE_DIR", way.try)
	}
	sys := st.Sys().(*syscall.Stat_t)
	switch mode := st.Mode(); {
	case !st.IsDir():
		return failure.New(fmt.Sprintf("CACHE_DIR: %s is no folder", dir), way.try)
	case sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
		return failure.New(fmt.Sprintf("CACHE_DIR: %s belongs to user %d, whose programs would run as ours (%d)", dir, sys.Uid, os.Geteuid()), way.try)
	case !host.InPod() && (mode&0o002 != 0 || mode&0o020 != 0 && !privateGroup(sys.Uid, sys.Gid)):
		return failure.New(fmt.Sprintf("CACHE_DIR: others may write to %s (%s), and what they put there would run", dir, mode), "remove it, or "+way.try)
	}
	return nil
}

// place is a folder as messages call it, and what to do about it.
type place struct{ name, try string }

// mkdir makes the folder where it is missing, in a place where nobody else could
// exchange it.
func (p place) mkdir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return failure.Wrap(err, p.name+" cannot be made", p.try)
	}
	if err := p.checkParents(path); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return failure.Wrap(err, p.name+" cannot be made", p.try)
	}
	return nil
}

// checkParents refuses a path on whose way others could exchange a directory
// for one of theirs, as sshd does with its StrictModes.
func (p place) checkParents(path string) error {
	// The volumes of a pod are 0777 (emptyDir) or group-writable (fsGroup),
	// and there is nobody else in the pod.
	if host.InPod() {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return failure.Wrap(err, "looking above "+p.name, p.try)
	}
	// Both ways: the one with the links decides where the other begins.
	for _, way := range []string{filepath.Dir(path), resolved} {
		for dir := way; ; dir = filepath.Dir(dir) {
			if err := p.checkParent(dir); err != nil {
				return err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

func (p place) checkParent(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return failure.Wrap(err, "looking above "+p.name, p.try)
	}
	sys := st.Sys().(*syscall.Stat_t)
	// Root often works for the owner of a directory: by sudo, or in a
	// container on a mounted checkout.
	if us := os.Geteuid(); us != 0 && sys.Uid != 0 && int(sys.Uid) != us {
		return failure.New(fmt.Sprintf("%s, above %s, belongs to user %d, who could exchange it", dir, p.name, sys.Uid), p.try)
	}
	mode := st.Mode()
	if mode&os.ModeSymlink != 0 || mode&os.ModeSticky != 0 {
		return nil // a link has no mode; in a sticky directory only owners rename
	}
	if mode&0o002 != 0 || mode&0o020 != 0 && !privateGroup(sys.Uid, sys.Gid) {
		return failure.New(fmt.Sprintf("others may write to %s (%s), above %s, and could exchange it", dir, mode, p.name), "chmod go-w, or "+p.try)
	}
	return nil
}

// privateGroup says whether the group is the user's own, of the same name, as
// Debian and others make for every user, with a umask of 002 to go with it.
func privateGroup(uid, gid uint32) bool {
	u, err := user.LookupId(strconv.Itoa(int(uid)))
	if err != nil {
		return false
	}
	g, err := user.LookupGroupId(strconv.Itoa(int(gid)))
	return err == nil && g.Name == u.Username
}
