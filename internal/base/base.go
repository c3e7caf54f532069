// Package base makes a cloud image of Debian from Debian's packages alone:
// nothing is downloaded but from a package mirror, nothing is mounted.
// The image boots by BIOS, takes a NoCloud seed, grows its root file system
// and keeps booting after its own update-grub and kernel upgrades.
package base

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
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
	defaultSize   = 2 << 30
	minSize       = 1 << 30
	// neededSpace is what making an image takes at its peak: the packages as
	// an archive, the tree, the raw disk and the image (about 500 MB each).
	neededSpace = 5 << 29
)

// Options say which image to make.
type Options struct {
	Suite        string // bookworm or trixie
	Architecture string // amd64; empty means amd64
	Mirror       string // Debian mirror; empty means http://deb.debian.org/debian
	CacheDir     string // where images are kept under their recipe's digest
	Size         int64  // virtual size in bytes; 0 means 2 GiB
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
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return Image{}, failure.Wrap(err, "cannot use the cache for base images", "choose another directory")
	}
	unlock, err := host.LockFile(ctx, filepath.Join(o.CacheDir, ".base-"+o.Suite+".lock"), "waiting for another build of this base image", p)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
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
	if !slices.Contains(suites, o.Suite) {
		return o, failure.New(fmt.Sprintf("no recipe for a base image of suite %q", o.Suite), "choose one of "+strings.Join(suites, ", "))
	}
	if o.Architecture == "" {
		o.Architecture = "amd64"
	}
	if o.Architecture != "amd64" {
		return o, failure.New(fmt.Sprintf("no recipe for a base image of architecture %q: its boot loader is GRUB for PC BIOS, which only amd64 has", o.Architecture), "give ISO_URL with a cloud image for that architecture")
	}
	if o.Mirror == "" {
		o.Mirror = defaultMirror
	}
	o.Mirror = strings.TrimRight(o.Mirror, "/")
	u, err := url.Parse(o.Mirror)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.ContainsAny(o.Mirror, " \t\n[]") {
		return o, failure.New("APT_MIRROR is no http or https address of a Debian mirror", "for example "+defaultMirror)
	}
	if u.User != nil {
		return o, failure.New("APT_MIRROR holds a user name or password, which would end in the image", "use a mirror that asks for none")
	}
	if o.Size == 0 {
		o.Size = defaultSize
	}
	if o.Size < minSize || o.Size%(1<<20) != 0 {
		return o, failure.New(fmt.Sprintf("a base image of %d bytes", o.Size), "the size is whole MiB, at least 1 GiB")
	}
	if o.CacheDir == "" {
		return o, errors.New("base: no cache directory")
	}
	if o.CacheDir, err = filepath.Abs(o.CacheDir); err != nil {
		return o, err
	}
	return o, nil
}

// path is where the finished image is kept.
func (o Options) path() string {
	return filepath.Join(o.CacheDir, fmt.Sprintf("base-%s-%s-%.12s.qcow2", o.Suite, o.Architecture, o.digest()))
}

// record is the file beside the image that describes it. It is written last:
// without it there is no image.
func (o Options) record() string { return strings.TrimSuffix(o.path(), ".qcow2") + ".json" }

// kernel is the file beside the image that holds its kernel.
func (o Options) kernel() string { return strings.TrimSuffix(o.path(), ".qcow2") + ".vmlinuz" }

// cached returns the image of the cache, if its bytes are those that were
// recorded when it was made.
func (o Options) cached(ctx context.Context, p progress.Reporter) (Image, bool) {
	b, err := os.ReadFile(o.record())
	if err != nil {
		return Image{}, false
	}
	var image Image
	if json.Unmarshal(b, &image) != nil {
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
	b, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return Image{}, err
	}
	record := file + ".json"
	if err := os.WriteFile(record, b, 0o644); err != nil {
		return Image{}, err
	}
	for _, move := range [][2]string{{file, o.path()}, {record, o.record()}} {
		if err := moveIntoPlace(move[0], move[1]); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

func moveIntoPlace(from, to string) error {
	if err := host.Sync(from); err != nil {
		return fmt.Errorf("writing %s to disk: %w", from, err)
	}
	return os.Rename(from, to)
}
