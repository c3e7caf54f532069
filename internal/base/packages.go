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
// BIOS, takes a NoCloud seed, grows its root file system and keeps booting
// after its own update-grub and kernel upgrades.
//
// Of a base that is a containerdisk, registry and oci know.
package base

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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

// suites are the Debian releases that the recipe makes, oldest first.
var suites = []string{"bookworm", "trixie"}

var coreVersion = regexp.MustCompile(`\b(\d+)\.(\d+)(?:\.\d+)?`)

// NewestManageable returns the newest suite that a host's Ansible can manage.
// ansibleVersion is ansible-core's version ("2.14.18") or the first line of
// `ansible --version`. Versions before 2.16 fail on a guest whose Python is
// 3.12 or newer (its modules import six.moves), which rules out Debian 13; so
// does a version that cannot be read.
func NewestManageable(ansibleVersion string) string {
	m := coreVersion.FindStringSubmatch(ansibleVersion)
	if m == nil {
		return suites[0]
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 2 || major == 2 && minor < 16 {
		return suites[0]
	}
	return suites[len(suites)-1]
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
		return o, failure.New(fmt.Sprintf("no recipe for a base image of architecture %q: "+
			"its boot loader is GRUB for PC BIOS, which only amd64 has", o.Architecture),
			"give ISO_URL with a cloud image for that architecture")
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
	o.CacheDir, err = filepath.Abs(o.CacheDir)
	return o, err
}

// kept is one of the files of a finished image: the image, its record, without
// which there is none, and its kernel.
func (o Options) kept(extension string) string {
	return filepath.Join(o.CacheDir, fmt.Sprintf("base-%s-%s-%.12s%s", o.Suite, o.Architecture, o.digest(), extension))
}

func (o Options) path() string   { return o.kept(".qcow2") }
func (o Options) record() string { return o.kept(".json") }

// cached returns the image of the cache, if its bytes are those that were
// recorded when it was made.
func (o Options) cached(ctx context.Context, p progress.Reporter) (image Image, ok bool) {
	b, err := os.ReadFile(o.record())
	if err != nil || json.Unmarshal(b, &image) != nil {
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
	return image, host.WriteFile(o.record(), 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(image)
	})
}
