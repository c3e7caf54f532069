package base

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

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
	for _, step := range []func(context.Context) error{b.bootstrap, b.unpack, b.assemble, b.convert} {
		if err := step(ctx); err != nil {
			return Image{}, err
		}
	}
	if err := b.keepKernel(); err != nil {
		return Image{}, err
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
	env := host.Env("SOURCE_DATE_EPOCH="+seconds, "E2FSPROGS_FAKE_TIME="+seconds, "DEBIAN_FRONTEND=noninteractive",
		"PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
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
	if err := writeOverlay(overlay, b.epoch); err != nil {
		return fmt.Errorf("writing the recipe's files: %w", err)
	}
	mode := "root"
	if os.Geteuid() != 0 {
		mode = "unshare"
	}
	args := []string{
		"--mode=" + mode, "--variant=minbase", "--format=tar", "--architectures=" + b.Architecture,
		"--keyring=" + keyring, `--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Retries "3"`,
		// Nobody keeps a half-made tree: dpkg need not wait for the disk.
		"--dpkgopt=force-unsafe-io",
		"--include=" + strings.Join(packages(), ","),
		"--customize-hook=tar-in " + b.file("overlay.tar") + " /",
		"--customize-hook=" + recipeFile("recipe/setup.sh"),
		// These options are for the making, not for those who use the image.
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`,
		b.Suite, b.file("root.tar"),
	}
	err = host.Run(ctx, host.Cmd{Program: "mmdebstrap", Args: append(args, b.archives...), Env: b.env(), OnLine: b.tell})
	if err != nil && ctx.Err() == nil {
		return &failure.Error{What: "Debian's packages could not be installed: " + err.Error(), Try: "look whether " + b.Mirror + " answers and this user may make namespaces", Lines: host.Tail(err), Err: err}
	}
	return err
}

// tell reports mmdebstrap's steps ("I: downloading packages with apt...").
func (b build) tell(line string) {
	if step, ok := strings.CutPrefix(line, "I: "); ok {
		b.p.Activity(strings.TrimRight(step, "."))
	}
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

// keepKernel leaves the guest's kernel beside the image: where the host has
// none that can be read, it proves whether KVM works.
func (b build) keepKernel() error {
	kernels, err := filepath.Glob(b.file("root/boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		return errors.Join(err, errors.New("the base image has no kernel in /boot"))
	}
	content, err := os.ReadFile(kernels[0])
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.file("vmlinuz"), content, 0o644); err != nil {
		return err
	}
	return moveIntoPlace(b.file("vmlinuz"), b.kernel())
}

// convert makes the qcow2 image. It is not compressed: it is read at every
// build, and kept once.
func (b build) convert(ctx context.Context) error {
	b.p.Activity("writing the image")
	return b.run(ctx, host.Cmd{Program: "qemu-img", Args: []string{"convert", "-f", "raw", "-O", "qcow2", b.file("disk.raw"), b.file("disk.qcow2")}})
}

func (b build) run(ctx context.Context, c host.Cmd) error {
	c.Env = b.env()
	err := host.Run(ctx, c)
	if err != nil && ctx.Err() == nil {
		return &failure.Error{What: "making the base image failed: " + err.Error(), Lines: host.Tail(err), Err: err}
	}
	return err
}
