package workdir

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// checkParents refuses a path on whose way others could exchange a directory
// for one of theirs, as sshd does with its StrictModes.
func checkParents(path string) error {
	// The volumes of a pod are 0777 (emptyDir) or group-writable (fsGroup),
	// and there is nobody else in the pod.
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return failure.New(err.Error(), tryOther)
	}
	// Both ways: the one with the links decides where the other begins.
	for _, way := range []string{filepath.Dir(path), resolved} {
		for dir := way; ; dir = filepath.Dir(dir) {
			if err := checkParent(dir); err != nil {
				return err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

func checkParent(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return failure.New(err.Error(), tryOther)
	}
	sys := st.Sys().(*syscall.Stat_t)
	// Root often works for the owner of a directory: by sudo, or in a
	// container on a mounted checkout.
	if us := os.Geteuid(); us != 0 && sys.Uid != 0 && int(sys.Uid) != us {
		return failure.New(fmt.Sprintf("%s, above the work directory, belongs to user %d, who could exchange it", dir, sys.Uid), tryOther)
	}
	mode := st.Mode()
	if mode&os.ModeSymlink != 0 || mode&os.ModeSticky != 0 {
		return nil // a link has no mode; in a sticky directory only owners rename
	}
	if mode&0o002 != 0 || mode&0o020 != 0 && !privateGroup(sys.Uid, sys.Gid) {
		return failure.New(fmt.Sprintf("others may write to %s (%s), above the work directory, and could exchange it", dir, mode), "chmod go-w, or "+tryOther)
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
