package pipeline

import (
	"cmp"
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// origin is the base image.
type origin struct {
	Path, Format string
	Name         string // as the image says it: no password, no path of this host
	Digest       string // of the file, "sha256:…"
	Manifest     string // digest of the image that the file came out of, or empty
	Inputs       string // what is known of it before it is there: its checksum, its recipe, its parent's inputs
	Created      time.Time
	// SignedBy and Release are what was known with its checksum, and nothing that the
	// image is made from: they are in the report alone, or an image would be another
	// one where its base's digest was given instead of the list that has it.
	SignedBy, Release string
	Guest             playbook.Guest
	Known             bool // whether Guest is
}

// String is the base in a line.
func (o origin) String() string {
	line := o.Name
	if o.Release != "" {
		line += ", release " + o.Release
	}
	if o.SignedBy != "" {
		line += ", signed by " + o.SignedBy
	}
	return line
}

// distribution is that of the base, in lower case, or empty.
func (o origin) distribution() string {
	if !o.Known {
		return ""
	}
	family, _, _ := strings.Cut(o.Guest.Name, " ")
	return strings.ToLower(family)
}

// getBase makes or fetches the base image, and returns its name.
func (w *way) getBase(ctx context.Context, p progress.Reporter) (_ string, err error) {
	if err := CheckCache(w.Config.CacheDir); err != nil {
		return "", err
	}
	var o origin
	var names []string // by which its guest is known
	switch {
	case w.Config.BaseFromPackages:
		o, names, err = w.fromPackages(ctx, p)
	case w.Config.BaseImage.IsSet():
		o, names, err = w.fromImage(ctx, p)
	default:
		o, names, err = w.fromURL(ctx, p)
	}
	if err != nil {
		return "", err
	}
	o.Guest, o.Known = playbook.GuessGuest(names...)
	o.Path, err = filepath.Abs(o.Path)
	w.base = o
	return o.String(), err
}

func (w *way) fromPackages(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	options := baseOptions(w.Config, w.controller)
	image, err := w.rooms.makeBase(ctx, options, p)
	if err != nil {
		return origin{}, nil, err
	}
	recipe, err := options.Recipe()
	return origin{
		Path: image.Path, Format: image.Format, Name: "debian-" + image.Suite + " from packages",
		Digest: image.Digest, Inputs: recipe, Created: image.Created,
	}, []string{image.Suite}, err
}

// fromImage takes the base out of a containerdisk, in a registry or a layout.
func (w *way) fromImage(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	image := w.Config.BaseImage
	taken, name, err := w.takeOut(ctx, image, w.Config.BaseTimeout, p)
	if err != nil {
		return origin{}, nil, err
	}
	return origin{
		Path: taken.Path, Format: taken.Format, Name: name, Digest: taken.Digest, Manifest: taken.Manifest,
		Inputs: cmp.Or(image.Inputs, image.Digest), Created: taken.Created,
	}, append(taken.Hints, name), nil
}

// takeOut takes the disk out of a containerdisk, and returns it with the image's
// name. A tag that is not there is waited for.
func (w *way) takeOut(ctx context.Context, image settings.BaseImage, wait time.Duration, p progress.Reporter) (oci.Extracted, string, error) {
	want := oci.Want{Digest: image.Digest, Inputs: image.Inputs, Architecture: w.Config.Architecture}
	cache := cmp.Or(w.BaseDir, filepath.Join(w.Config.CacheDir, "images"))
	if image.Layout != "" {
		taken, err := oci.Extract(ctx, image.Layout, want, cache, p)
		return taken, filepath.Base(image.Layout) + "@" + taken.Manifest, err
	}
	login, err := w.login()
	if err == nil && image.Digest != "" { // known before it is fetched
		err = w.checkSigned(ctx, image.Reference, image.Digest)
	}
	if err != nil {
		return oci.Extracted{}, "", err
	}
	fetched, err := w.rooms.fetch(ctx, image.Reference, registry.FetchOptions{Options: login, Want: want, Wait: wait, CacheDir: cache}, p)
	if err == nil && image.Digest == "" {
		err = w.checkSigned(ctx, image.Reference, fetched.Manifest)
	}
	return fetched.Extracted, fetched.Reference, err
}

// checkSigned is BASE_KEY: the base must be signed with it.
func (w *way) checkSigned(ctx context.Context, reference, digest string) error {
	if w.Config.BaseKey == "" {
		return nil
	}
	name, _, _ := strings.Cut(reference, "@")
	_, err := w.VerifySignature(ctx, name+"@"+digest, w.Config.BaseKey, nil)
	return err
}

func (w *way) fromURL(ctx context.Context, p progress.Reporter) (origin, []string, error) {
	url := w.Config.ISOURL
	stated, err := w.rooms.checksum(ctx, url, w.Config.Checksum, downloads(w.Config), p)
	if err != nil {
		return origin{}, nil, err
	}
	file, err := w.rooms.download(ctx, url, stated.Sum, downloads(w.Config), p)
	if err != nil {
		return origin{}, nil, err
	}
	info, err := w.rooms.disk(ctx, file.Path)
	return origin{
		Path: file.Path, Format: info.Format, Name: publicName(url), Digest: file.Digest, Inputs: stated.Sum, Created: file.Modified,
		SignedBy: cmp.Or(stated.SignedBy, w.Config.SignedBy), Release: cmp.Or(stated.Release, w.Config.Release),
	}, []string{url}, err
}

// BaseFile is the base by its URL, which has its checksum.
func BaseFile(ctx context.Context, c settings.Config) (base.File, error) {
	return base.Fetch(ctx, c.ISOURL, c.Checksum, downloads(c), progress.Discard)
}

// BaseChecksum is the digest that the checksum of that base states.
func BaseChecksum(ctx context.Context, c settings.Config) (string, error) {
	stated, err := base.ResolveChecksum(ctx, c.ISOURL, c.Checksum, downloads(c), progress.Discard)
	return stated.Sum, err
}

// downloads says where base images are kept and who is trusted to send them.
func downloads(c settings.Config) base.DownloadOptions {
	return base.DownloadOptions{CacheDir: filepath.Join(c.CacheDir, "images"), CAFile: c.CAFile, Keyring: c.BaseKeyring}
}

// baseOptions ask for the newest release that this host's Ansible can manage
// where the settings name none.
func baseOptions(c settings.Config, controller string) base.Options {
	return base.Options{
		Architecture: c.Architecture, Suite: cmp.Or(c.Suite, newestSuite(controller)), Mirror: c.AptMirror,
		CacheDir: filepath.Join(c.CacheDir, "base"),
	}
}

// newestSuite is the newest release that there are packages of and that Ansible
// can manage; the oldest, where nobody knows.
func newestSuite(controller string) string {
	for _, suite := range slices.Backward(base.Suites) {
		if guest, _ := playbook.GuessGuest(suite); playbook.CheckVersions(controller, guest) == nil {
			return suite
		}
	}
	return base.Suites[0]
}

// publicName is what an image may say of where its base came from: a URL
// without user, password and query, of a local file only its name.
func publicName(raw string) string {
	if strings.HasPrefix(raw, "http://") || strings.HasPrefix(raw, "https://") {
		return publicURL(raw)
	}
	return path.Base(raw)
}
