package base

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// ErrNoPackage is the cause of errors about packages that a release does not have.
var ErrNoPackage = errors.New("the release does not have the package")

// CheckPackages says which of the packages the suite does not have, and which of the
// other Suites has them. It asks apt with the mirror's lists, which it fetches at most
// once a day and whose signatures it checks; where there is no apt or no answer, nothing
// is known: then it warns.
func CheckPackages(ctx context.Context, o Options, names []string, p progress.Reporter) error {
	o, err := o.complete()
	if err != nil {
		return err
	}
	missing, err := o.missing(ctx, names, p)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		p.Warn("whether " + o.Suite + " has the packages is not known: " + text.Line(err.Error()))
		return nil
	}
	if len(missing) == 0 {
		return nil
	}
	hint := "look for their names at https://packages.debian.org"
	for _, suite := range Suites {
		if suite == o.Suite {
			continue
		}
		other := o
		other.Suite = suite
		lacks, err := other.missing(ctx, missing, p)
		if has := slices.DeleteFunc(slices.Clone(missing), func(n string) bool { return slices.Contains(lacks, n) }); err == nil && len(has) > 0 {
			hint = fmt.Sprintf("%s has %s", suite, strings.Join(has, ", "))
		}
	}
	what := fmt.Sprintf("Debian's %s (main) has no package %s", o.Suite, strings.Join(missing, ", "))
	return &failure.Error{What: what, Try: hint, Err: ErrNoPackage}
}

// noPackage is what apt says of each name that it does not know (apt-pkg/cacheset.cc).
var noPackage = regexp.MustCompile(`^[NE]: Unable to locate package (\S+)`)

// listsAge is how old the lists of a suite may be: a stable release gets a new package
// a few times a year.
const listsAge = 24 * time.Hour

// missing are the names that apt does not know. Whether a package that others only
// provide can be installed is left to the build, as are conflicts.
func (o Options) missing(ctx context.Context, names []string, p progress.Reporter) (missing []string, err error) {
	dir := filepath.Join(o.CacheDir, fmt.Sprintf("lists-%s-%.6x", o.Suite, sha256.Sum256([]byte(o.arch().Name+" "+o.Mirror))))
	lock, err := host.LockDir(ctx, dir, "waiting for the lists of packages", p)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := o.aptFolder(dir, fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, o.Mirror, o.Suite)); err != nil {
		return nil, err
	}
	env := append(build{Options: o, epoch: time.Now()}.env(), "LC_ALL=C", "APT_CONFIG="+filepath.Join(dir, "apt.conf"))
	apt := func(onLine func(string), program string, args ...string) error {
		return host.Run(ctx, host.Cmd{Program: program, Args: args, Env: env, OnLine: onLine})
	}
	p.Activity("asking apt which packages " + o.Suite + " has")
	fetched := filepath.Join(dir, "fetched")
	if info, err := os.Stat(fetched); err != nil || time.Since(info.ModTime()) > listsAge {
		p.Activity("fetching the list of " + o.Suite + "'s packages")
		if err := apt(nil, "apt-get", "update", "--quiet", "--error-on=any"); err != nil {
			return nil, err
		}
		if err := os.WriteFile(fetched, nil, 0o600); err != nil {
			return nil, err
		}
	}
	err = apt(func(line string) {
		if m := noPackage.FindStringSubmatch(line); m != nil && !slices.Contains(missing, m[1]) {
			missing = append(missing, m[1])
		}
	}, "apt-cache", append([]string{"--quiet=0", "policy"}, names...)...)
	return missing, err
}

// aptFolder makes what apt needs for a system of its own, which has no package: of the
// host's settings it reads nothing.
func (o Options) aptFolder(dir, source string) error {
	for _, folder := range []string{
		"etc/apt/preferences.d", "etc/apt/trusted.gpg.d", "var/lib/apt/lists/partial", "var/lib/dpkg", "var/cache/apt/archives/partial",
	} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/apt/sources.list": source, "var/lib/dpkg/status": "",
		"apt.conf": fmt.Sprintf(`Dir %q; Dir::Etc::Parts "/nonexistent"; Dir::Etc::SourceParts "/nonexistent"; APT::Sandbox::User "root";
APT::Architecture %q; APT::Architectures { %[2]q; };
Acquire::Languages "none"; Acquire::GzipIndexes "true"; Dir::Cache::srcpkgcache ""; Acquire::Retries "2"; Acquire::http::Timeout "30";
`, dir, o.arch().Name),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
