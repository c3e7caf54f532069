package base

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// tools are the external programs, each with the Debian package that has it.
var tools = [][2]string{
	{"mmdebstrap", "mmdebstrap"},
	{"mke2fs", "e2fsprogs"},
	{"sfdisk", "fdisk"},
	{"qemu-img", "qemu-utils"},
	{"tar", "tar"},
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// checkHost names everything that this host lacks for making an image.
func (o Options) checkHost(ctx context.Context) error {
	var missing []string
	for _, t := range tools {
		if _, err := host.Look(t[0]); err != nil {
			missing = append(missing, t[1])
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		missing = append(missing, "debian-archive-keyring")
	}
	if len(missing) > 0 {
		return failure.New("making a base image needs programs that this host lacks", "apt-get install "+strings.Join(missing, " "))
	}
	if err := checkSpace(o.CacheDir, neededSpace); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if err := host.Run(ctx, asRoot("true")); err != nil {
		return failure.Wrap(err, "making a base image needs root or unprivileged user namespaces, which do not work here",
			"run it as root, or install uidmap and give this user subordinate ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535)")
	}
	return nil
}

func checkSpace(dir string, need uint64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("asking for the space left in %s: %w", dir, err)
	}
	if free := s.Bavail * uint64(s.Bsize); free < need {
		return failure.New(fmt.Sprintf("making a base image needs %d MiB in %s, which has %d MiB left", need>>20, dir, free>>20), "free some space or choose another directory")
	}
	return nil
}

// asRoot returns a command that sees itself as root and may own files as any
// user: as it is for root, in a user namespace for others.
func asRoot(name string, args ...string) host.Cmd {
	program := name
	if path, err := host.Look(name); err == nil {
		program = path
	}
	if os.Geteuid() == 0 {
		return host.Cmd{Program: program, Args: args}
	}
	return host.Cmd{Program: "unshare", Args: append([]string{"--user", "--map-root-user", "--map-auto", "--", program}, args...)}
}
