package base

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	debversion "github.com/knqyf263/go-deb-version"
	"github.com/xi2/xz"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Release is a distribution's release, as os-release(5) has its ID and VERSION_ID:
// debian 12, for an architecture (arch.Default where that is empty).
type Release struct{ System, Version, Architecture string }

// Versions are the newest versions that a release has of a package, or empty.
type Versions struct {
	Security string // in its security archive
	Other    string // in the rest of it
}

// ErrNoArchive is the cause of the error of a release whose archive is not known.
var ErrNoArchive = errors.New("the archive of the release is not known")

// archive is where a release's packages come from.
type archive struct {
	suite, components string
	mirror, security  string // the ways to them
}

// archiveOf is the archive of a release. APT_MIRROR is one of Debian, or of Ubuntu
// where it ends so; the default for Debian is HTTPS, since nothing here checks the
// signatures of lists.
func archiveOf(r Release, aptMirror string) (archive, bool) {
	suite := map[[2]string]string{
		{"debian", "11"}: "bullseye", {"debian", "12"}: "bookworm", {"debian", "13"}: "trixie",
		{"ubuntu", "20.04"}: "focal", {"ubuntu", "22.04"}: "jammy", {"ubuntu", "24.04"}: "noble", {"ubuntu", "26.04"}: "resolute",
	}[[2]string{r.System, r.Version}]
	aptMirror = strings.TrimRight(aptMirror, "/")
	others := strings.HasSuffix(aptMirror, "/ubuntu") != (r.System == "ubuntu")
	if others {
		aptMirror = ""
	}
	if r.System == "ubuntu" {
		mirror := cmp.Or(aptMirror, arch.Of(r.Architecture).UbuntuArchive)
		return archive{suite, "main restricted universe multiverse", mirror, mirror}, suite != ""
	}
	mirror := cmp.Or(aptMirror, strings.Replace(defaultMirror, "http:", "https:", 1))
	return archive{suite, "main", mirror, securityMirror(mirror)}, suite != ""
}

// securityMirror is where Debian's security updates are beside a mirror.
func securityMirror(mirror string) string {
	return strings.TrimSuffix(mirror, "/debian") + "/debian-security"
}

const (
	maxUnpacked = 512 << 20 // bytes of a list; Debian's longest, sid's, has 70 MiB
	maxListLine = 1 << 20   // bytes; the longest have 100 KiB
	// maxDictionary is the memory that an xz stream may ask for, in bytes: xz -9's. The
	// library is XZ Embedded; ulikunitz/xz has no such bound, and takes 4 GiB a block.
	maxDictionary = 64 << 20
	listsBackoff  = 200 * time.Millisecond
)

// Newest asks the archives of a release what versions they have of the packages
// whose names are given. The lists, 60 MB, are read as they come, and nothing is kept
// but that; their signatures are not checked.
func Newest(ctx context.Context, r Release, names map[string]bool, aptMirror, caFile string) (map[string]Versions, error) {
	of, known := archiveOf(r, aptMirror)
	if !known {
		return nil, fmt.Errorf("%w: %s %s", ErrNoArchive, r.System, r.Version)
	}
	c, err := newClient(DownloadOptions{CAFile: caFile, Backoff: listsBackoff}, progress.Discard)
	if err != nil {
		return nil, err
	}
	all := map[string]Versions{}
	for _, pocket := range []string{"", "-updates", "-security"} {
		mirror := of.mirror
		if pocket == "-security" {
			mirror = of.security
		}
		for _, component := range strings.Fields(of.components) {
			list := fmt.Sprintf("%s/dists/%s%s/%s/binary-%s/Packages.xz", mirror, of.suite, pocket, component, arch.Of(r.Architecture).Name)
			err := c.retry(ctx, "the mirror does not serve "+text.URL(list), func() (int64, error) {
				return c.readList(ctx, list, func(name, version string) {
					if v := all[name]; names[name] && pocket == "-security" {
						v.Security = later(v.Security, version)
						all[name] = v
					} else if names[name] {
						v.Other = later(v.Other, version)
						all[name] = v
					}
				})
			})
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(all) == 0 {
		return nil, failure.New(fmt.Sprintf("the lists of %s at %s have none of the packages", of.suite, text.URL(of.mirror)), "check APT_MIRROR")
	}
	return all, nil
}

// readList reads a list, and returns how many bytes it had. What was handed on before an
// error does no harm when it comes again.
func (c *client) readList(ctx context.Context, list string, each func(name, version string)) (int64, error) {
	resp, err := get(ctx, c.http, list, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return readPackages(resp.Body, each)
}

// readPackages hands on the packages of a list (deb822, in xz), and returns how many
// bytes it had.
func readPackages(packed io.Reader, each func(name, version string)) (int64, error) {
	unpacked, err := xz.NewReader(bufio.NewReader(packed), maxDictionary)
	if err != nil {
		return 0, failure.Wrap(err, "it is no list of packages", "check APT_MIRROR")
	}
	bounded := &io.LimitedReader{R: unpacked, N: maxUnpacked}
	lines := bufio.NewScanner(bounded)
	lines.Buffer(nil, maxListLine)
	name, version := "", ""
	end := func() {
		if name != "" && version != "" {
			each(name, version)
		}
		name, version = "", ""
	}
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			end()
		} else if value, ok := strings.CutPrefix(line, "Package: "); ok {
			name = value
		} else if value, ok := strings.CutPrefix(line, "Version: "); ok {
			version = value
		}
	}
	end()
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong) || bounded.N == 0:
		return 0, failure.New("what it sends is longer than a list of packages", "check APT_MIRROR")
	case err != nil:
		return maxUnpacked - bounded.N, err
	}
	return maxUnpacked - bounded.N, nil
}

// later is the newer of two versions, of which the first may be empty.
func later(a, b string) string {
	if a == "" && debversion.Valid(b) || Newer(b, a) {
		return b
	}
	return a
}

// Newer says whether a version is newer than another by dpkg's order (deb-version(7)).
// A text that is no version is not compared.
func Newer(a, b string) bool {
	left, errLeft := debversion.NewVersion(a)
	right, errRight := debversion.NewVersion(b)
	return errLeft == nil && errRight == nil && left.GreaterThan(right)
}
