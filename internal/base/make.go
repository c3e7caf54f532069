package base

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// tools are the external programs.
var tools = []string{"mmdebstrap", "mke2fs", "mkfs.fat", "mmd", "mcopy", "sfdisk", "qemu-img", "tar"}

const (
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// neededSpace is what making an image takes at its peak: the packages as
	// an archive, the tree, the raw disk and the image (about 500 MB each).
	neededSpace = 5 << 29
)

// checkHost names everything that this host lacks for making an image.
func (o Options) checkHost(ctx context.Context) error {
	var missing []string
	for _, t := range tools {
		if _, err := host.Look(t); err != nil {
			missing = append(missing, host.Package(t))
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		missing = append(missing, "debian-archive-keyring")
	}
	if len(missing) > 0 {
		return failure.New("making a base image needs programs that this host lacks", "apt-get install "+strings.Join(missing, " "))
	}
	if o.arch().Name != runtime.GOARCH {
		if err := host.Run(ctx, host.Cmd{Program: "arch-test", Args: []string{o.arch().Name}}); err != nil {
			return failure.Wrap(err, "packages of "+o.arch().Name+" run their own programs when they are installed, which this host does not",
				"apt-get install arch-test qemu-user-static binfmt-support, or make it on a host of "+o.arch().Name)
		}
	}
	if err := host.CheckSpace(o.CacheDir, "CACHE_DIR", host.Need{Bytes: neededSpace, What: "making a base image"}); err != nil {
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

// asRoot returns a command that sees itself as root and may own files as any
// user: as it is for root, in a user namespace for others.
func asRoot(name string, args ...string) host.Cmd {
	if os.Geteuid() == 0 {
		return host.Cmd{Program: name, Args: args}
	}
	program := name
	if path, err := host.Look(name); err == nil { // unshare knows the PATH alone
		program = path
	}
	return host.Cmd{Program: "unshare", Args: append([]string{"--user", "--map-root-user", "--map-auto", "--", program}, args...)}
}

// make makes the image in a directory of its own inside the cache, which it
// removes whatever happens.
func (o Options) make(ctx context.Context, p progress.Reporter) (image Image, err error) {
	prefix := ".base-" + o.Suite + "-"
	// The lock is ours: what carries this name is of a build that was killed.
	stale, _ := filepath.Glob(filepath.Join(o.CacheDir, prefix+"*.tmp"))
	for _, dir := range stale {
		if err := remove(dir); err != nil {
			return Image{}, err
		}
	}
	dir, err := os.MkdirTemp(o.CacheDir, prefix+"*.tmp")
	if err != nil {
		return Image{}, failure.Wrap(err, "cannot write to the cache for base images", "choose another directory")
	}
	defer func() {
		if e := remove(dir); err == nil {
			err = e
		}
	}()
	archives, created, err := o.archives(ctx, p)
	if err != nil {
		return Image{}, err
	}
	b := build{Options: o, dir: dir, archives: archives, epoch: created, p: p}
	for _, step := range []func(context.Context) error{b.bootstrap, b.unpack, b.assemble, b.convert, b.keepKernel} {
		if err := step(ctx); err != nil {
			return Image{}, err
		}
	}
	return o.publish(ctx, b.file("disk.qcow2"), created)
}

// remove removes a work directory with its tree, whose files may belong to
// other users of the namespace.
func remove(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	// Cleaning up must not depend on the context of what was interrupted.
	return host.Run(context.Background(), asRoot("rm", "-rf", dir))
}

// build is one making of an image.
type build struct {
	Options
	dir      string
	archives []string  // apt's source lines
	epoch    time.Time // date that files and file system carry
	p        progress.Reporter
}

func (b build) file(name string) string { return filepath.Join(b.dir, name) }

// env pins the clock for tools that write dates, lets apt use the host's
// proxy, and names the directories that chroot and dpkg need in PATH.
func (b build) env() []string {
	seconds := fmt.Sprint(b.epoch.Unix())
	return append(host.Env(host.Variables("http_proxy", "https_proxy", "no_proxy")...),
		"SOURCE_DATE_EPOCH="+seconds, "E2FSPROGS_FAKE_TIME="+seconds, "TZ=UTC", "DEBIAN_FRONTEND=noninteractive",
		"PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
}

func (b build) run(ctx context.Context, c host.Cmd) error {
	c.Env = b.env()
	err := host.Run(ctx, c)
	if err != nil && ctx.Err() == nil {
		return &failure.Error{What: "making the base image failed: " + err.Error(), Lines: host.Tail(err), Err: err}
	}
	return err
}

// bootstrap installs the packages into a new tree, kept as an archive: that
// way it is the same for root and in a user namespace, and its files carry no
// date later than the epoch.
func (b build) bootstrap(ctx context.Context) error {
	overlay, err := os.Create(b.file("overlay.tar"))
	if err != nil {
		return err
	}
	defer overlay.Close()
	if err := b.writeOverlay(overlay, b.epoch); err != nil {
		return fmt.Errorf("writing the recipe's files: %w", err)
	}
	mode := "root"
	if os.Geteuid() != 0 {
		mode = "unshare"
	}
	args := []string{
		"--mode=" + mode, "--variant=minbase", "--format=tar", "--architectures=" + b.arch().Name,
		"--keyring=" + keyring, `--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Retries "3"`,
		// Nobody keeps a half-made tree: dpkg need not wait for the disk.
		"--dpkgopt=force-unsafe-io",
		"--include=" + strings.Join(b.packages(), ","),
		"--customize-hook=tar-in " + b.file("overlay.tar") + " /",
		"--customize-hook=" + b.recipeFile("recipe/setup.sh"),
		// These options are for the making, not for those who use the image.
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`,
		b.Suite, b.file("root.tar"),
	}
	err = host.Run(ctx, host.Cmd{
		Program: "mmdebstrap", Args: append(args, b.archives...), Env: b.env(),
		// As root it mounts /proc, /sys and /dev/shm in its tree: where it is killed, these
		// must go with it, or whoever deletes the tree deletes in the host's.
		Confined: mode == "root",
		OnLine: func(line string) {
			if step, ok := strings.CutPrefix(line, "I: "); ok { // "I: downloading packages with apt..."
				b.p.Activity(strings.TrimRight(step, "."))
			}
		},
	})
	if err != nil && ctx.Err() == nil {
		return &failure.Error{
			What:  "Debian's packages could not be installed: " + err.Error(),
			Try:   "look whether " + b.Mirror + " answers and this user may make namespaces",
			Lines: host.Tail(err), Err: err,
		}
	}
	return err
}

// unpack turns the archive into the tree that mke2fs reads.
func (b build) unpack(ctx context.Context) error {
	b.p.Activity("unpacking the tree")
	if err := os.Mkdir(b.file("root"), 0o755); err != nil {
		return err
	}
	if err := b.run(ctx, asRoot("tar", "-C", b.file("root"), "--numeric-owner", "-xpf", b.file("root.tar"))); err != nil {
		return err
	}
	return os.Remove(b.file("root.tar"))
}

// features are those of the root file system: what Debian 12's mke2fs makes ext4 of. A newer
// one adds orphan_file, which Debian 12's e2fsck takes for an error once the guest has grown
// the file system, and reboots.
const features = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

const (
	sector = 512
	// systemStart is where the EFI system partition begins, as first partitions do by
	// custom. What lies before is the BIOS boot loader's.
	systemStart = 1 << 20
	// systemSize has room for the loaders twice, as when they are renewed.
	systemSize = 64 << 20
	// rootStart is behind it, so that the root file system can grow.
	rootStart = systemStart + systemSize
	// bootCode is how much of the first sector belongs to boot.img; behind it
	// stand the disk's signature and the partition table.
	bootCode = 440
)

// assemble makes a raw disk of the tree, without mounting anything: the first
// partition, Linux', which growpart enlarges on a larger disk, with an ext4 file
// system that holds the tree; before it the second, from which UEFI starts it; and
// the boot loader for a BIOS, where there is one. A table of DOS's kind has room for that loader, and
// UEFI takes it, too (UEFI specification, 5.2.2).
func (b build) assemble(ctx context.Context) error {
	b.p.Activity("making the file system")
	disk := b.file("disk.raw")
	f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	table := fmt.Sprintf("label: dos\nlabel-id: 0x%s\nstart=%d, type=83, bootable\nstart=%d, size=%d, type=ef\n",
		fsUUID[:8], rootStart/sector, systemStart/sector, systemSize/sector)
	if err := b.run(ctx, host.Cmd{Program: "sfdisk", Args: []string{"--quiet", disk}, Stdin: strings.NewReader(table)}); err != nil {
		return err
	}
	if err := b.systemPartition(ctx, disk); err != nil {
		return err
	}
	if err := b.run(ctx, asRoot("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", fsUUID, "-O", "none,"+features,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0", rootStart, fsUUID),
		"-d", b.file("root"), disk, fmt.Sprintf("%dk", (size-rootStart)>>10))); err != nil {
		return err
	}
	if !b.arch().BIOS {
		return nil
	}
	if err := writeBootLoader(disk, b.file("root/boot/grub/i386-pc")); err != nil {
		return fmt.Errorf("writing the boot loader: %w", err)
	}
	return nil
}

// systemPartition makes the EFI system partition of what the recipe put into
// boot/efi, which is left empty: that is where it is mounted.
func (b build) systemPartition(ctx context.Context, disk string) error {
	from, at := fmt.Sprint(systemStart/sector), fmt.Sprintf("%s@@%d", disk, systemStart)
	steps := []host.Cmd{
		{Program: "mkfs.fat", Args: []string{"-F", "16", "--invariant", "-i", fsUUID[:8], "-n", "EFI", "-h", from,
			"--offset", from, disk, fmt.Sprint(systemSize >> 10)}},
		{Program: "mmd", Args: []string{"-i", at, "::EFI"}},
	}
	efi := b.file("root/boot/efi/EFI")
	for _, dir := range []string{"BOOT", "debian"} {
		files, err := filepath.Glob(filepath.Join(efi, dir, "*")) // sorted, so that the same files make the same bytes
		if err != nil || len(files) == 0 {
			return errors.Join(err, fmt.Errorf("the tree has no boot/efi/EFI/%s", dir))
		}
		steps = append(steps, host.Cmd{Program: "mmd", Args: []string{"-i", at, "::EFI/" + dir}},
			host.Cmd{Program: "mcopy", Args: append(append([]string{"-m", "-i", at}, files...), "::EFI/"+dir)})
	}
	for _, step := range append(steps, asRoot("rm", "-r", efi)) {
		if err := b.run(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// writeBootLoader writes GRUB's two stages where the BIOS and each other look
// for them: boot.img in the first sector, core.img from the second on, which
// is where an unpatched boot.img loads it from.
func writeBootLoader(disk, grub string) error {
	boot, err := os.ReadFile(filepath.Join(grub, "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(filepath.Join(grub, "core.img"))
	if err != nil {
		return err
	}
	if len(boot) != sector || len(core) > systemStart-sector {
		return fmt.Errorf("it does not fit before the partitions: boot.img has %d bytes, core.img %d", len(boot), len(core))
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, errBoot := f.WriteAt(boot[:bootCode], 0)
	_, errCore := f.WriteAt(core, sector)
	return errors.Join(errBoot, errCore, f.Sync(), f.Close())
}

// convert makes the qcow2 image. It is not compressed: it is read at every
// build, and kept once.
func (b build) convert(ctx context.Context) error {
	b.p.Activity("writing the image")
	return b.run(ctx, host.Cmd{Program: "qemu-img", Args: []string{"convert", "-f", "raw", "-O", "qcow2", b.file("disk.raw"), b.file("disk.qcow2")}})
}

// keepKernel leaves the guest's kernel beside the image: where the host has
// none that can be read, it proves whether KVM works.
func (b build) keepKernel(context.Context) error {
	kernels, err := filepath.Glob(b.file("root/boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		return errors.Join(err, errors.New("the base image has no kernel in /boot"))
	}
	return host.Move(kernels[0], b.kept(".vmlinuz"))
}
