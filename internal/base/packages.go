// Package base brings the base image here that a build starts from.
//
// Fetch downloads one by its checksum, which is what makes it trustworthy, not
// where it came from; so a mirror may speak plain HTTP, and what is in the
// cache is hashed again each time. A download that was stopped leaves its
// beginning in the cache, on purpose: the next one goes on from there if the
// server still has the same file.
//
// Make makes a cloud image of Debian from Debian's packages alone: nothing is
// downloaded but from a package mirror, nothing is mounted. The image boots by
// UEFI, with Secure Boot, and where its architecture has one by BIOS, takes a NoCloud seed, grows its root file system and keeps booting
// after its own update-grub and kernel upgrades.
//
// Of a base that is a containerdisk, registry and oci know.
package base

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	defaultMirror = "http://deb.debian.org/debian"
	size          = 2 << 30 // of the disk, in bytes
)

// Suites are the Debian releases that the recipe makes, oldest first.
var Suites = []string{"bookworm", "trixie"}

// Options say which image to make.
type Options struct {
	Architecture string // one of arch.Names; empty: arch.Default
	Suite        string // one of Suites
	Mirror       string // Debian mirror; empty means http://deb.debian.org/debian
	CacheDir     string // where images are kept under their recipe's digest
}

// Image is a finished base image.
type Image struct {
	Path    string    `json:"path"`
	Format  string    `json:"format"`  // always qcow2: a quarter of raw's bytes to hash and copy
	Digest  string    `json:"digest"`  // sha256:… of the file
	Created time.Time `json:"created"` // date of the newest package index it was made from
	Suite   string    `json:"suite"`
	Cached  bool      `json:"cached"` // it was there already
}

// Make returns the base image that o describes, from the cache where it is
// there and sound. Making one needs root or unprivileged user namespaces,
// and Debian's packages mmdebstrap, e2fsprogs, fdisk, tar and qemu-utils.
// Two callers with one CacheDir wait for each other.
func Make(ctx context.Context, o Options, p progress.Reporter) (Image, error) {
	o, err := o.complete()
	if err != nil {
		return Image{}, err
	}
	lock, err := host.LockDir(ctx, o.CacheDir, "waiting for another base image to be made", p)
	if ctx.Err() != nil {
		return Image{}, context.Cause(ctx)
	}
	if err != nil {
		return Image{}, failure.Wrap(err, "cannot use the cache for base images", "choose another directory")
	}
	defer lock.Close()
	if image, ok := o.cached(ctx, p); ok {
		return image, nil
	}
	if err := o.checkHost(ctx); err != nil {
		return Image{}, err
	}
	return o.make(ctx, p)
}

// complete checks o and fills in the defaults.
func (o Options) complete() (Options, error) {
	if !slices.Contains(Suites, o.Suite) {
		return o, failure.New(fmt.Sprintf("no recipe for a base image of suite %q", o.Suite), "choose one of "+strings.Join(Suites, ", "))
	}
	o.Mirror = strings.TrimRight(cmp.Or(o.Mirror, defaultMirror), "/")
	u, isRemote := remote(o.Mirror)
	if !isRemote || strings.ContainsAny(o.Mirror, " \t\n[]") {
		return o, failure.New("APT_MIRROR is no http or https address of a Debian mirror", "for example "+defaultMirror)
	}
	if u.User != nil {
		return o, failure.New("APT_MIRROR holds a user name or password, which would end in the image", "use a mirror that asks for none")
	}
	var err error
	o.CacheDir, err = filepath.Abs(o.CacheDir)
	return o, err
}

// kept is one of the files of a finished image: the image, its record, without
// which there is none, and its kernel.
func (o Options) kept(extension string) string {
	return filepath.Join(o.CacheDir, fmt.Sprintf("base-%s-%s-%.12s%s", o.Suite, o.arch().Name, o.digest(), extension))
}

func (o Options) path() string   { return o.kept(".qcow2") }
func (o Options) record() string { return o.kept(".json") }

// cached returns the image of the cache, if its bytes are those that were
// recorded when it was made.
func (o Options) cached(ctx context.Context, p progress.Reporter) (image Image, ok bool) {
	if host.ReadJSON(o.record(), &image) != nil {
		return Image{}, false
	}
	got, err := host.DigestFile(ctx, o.path(), p)
	if err != nil || got != image.Digest {
		return Image{}, false
	}
	image.Path, image.Cached = o.path(), true
	return image, true
}

// publish moves a finished image into the cache, its record last.
func (o Options) publish(ctx context.Context, file string, created time.Time) (Image, error) {
	sum, err := host.DigestFile(ctx, file, progress.Discard)
	if err != nil {
		return Image{}, err
	}
	image := Image{Path: o.path(), Format: "qcow2", Digest: sum, Created: created, Suite: o.Suite}
	if err := host.Move(file, o.path()); err != nil {
		return Image{}, err
	}
	return image, host.WriteJSON(o.record(), 0o644, image)
}
