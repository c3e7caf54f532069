package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/disk"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/hygiene"
	"github.com/netgroup-polito/diskforge/internal/inspect"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/workdir"
)

// examine looks into the finished disk at rest and in the guest that boots
// from it, side by side. Neither stops the other: one run tells everything
// that has to be mended.
func (b *Build) examine(ctx context.Context, dir *workdir.Dir, r ready, path string, verify func(context.Context) error) error {
	scratch, err := dir.Temp(stageHygiene)
	if err != nil {
		return err
	}
	var atRest error
	var scan sync.WaitGroup
	scan.Go(func() { atRest = b.hygiene(ctx, r, path, scratch) })
	running := verify(ctx)
	scan.Wait()
	return together(atRest, running)
}

// together is two errors as one, with the evidence of both.
func together(one, two error) error {
	a, okOne := failure.In(one)
	b, okTwo := failure.In(two)
	if !okOne || !okTwo {
		return errors.Join(one, two)
	}
	both := failure.New(one.Error()+"; "+two.Error(), "")
	both.Lines, both.Log, both.Err = append(slices.Clone(a.Lines), b.Lines...), first(a.Log, b.Log), errors.Join(one, two)
	return both
}

// hygiene looks at the disk at rest for what the build left in it.
func (b *Build) hygiene(ctx context.Context, r ready, path, scratch string) error {
	return b.stage(ctx, stageHygiene, func(ctx context.Context, p progress.Reporter) (string, error) {
		info, err := disk.Inspect(ctx, path)
		if err != nil {
			return "", err
		}
		secrets, err := b.secrets()
		if err != nil {
			return "", err
		}
		found, err := hygiene.Scan(ctx, hygiene.Options{
			Disk: path, Format: info.Format, Dir: scratch, BuildUser: b.builder(), BakedUser: b.Config.BakeUser,
			Secrets: secrets, Allow: r.allow, LibguestfsEnv: r.accel.LibguestfsEnv(),
		}, p)
		b.cleanDisk(found)
		return fmt.Sprintf("%d rules, %d files", len(found.Rules), found.Files), err
	})
}

// builder is the account that playbooks run as.
func (b *Build) builder() string {
	if b.Config.BakeUser {
		return b.Config.VMUser
	}
	return b.Config.BuildUser
}

// secretNames are found in the names of variables that hold a secret.
var secretNames = []string{"pass", "secret", "token", "key", "credential"}

// secrets are what this build knows and the disk must not: of what may be a
// secret, all is.
func (b *Build) secrets() ([]hygiene.Secret, error) {
	c := b.Config
	credentials, err := b.RegistryOptions()
	if err != nil {
		return nil, err
	}
	found := map[string]string{"the registry's password": credentials.Password}
	for name, address := range map[string]string{
		"ISO_URL": c.ISOURL, "GIT_ANSIBLE_URL": c.GitURL, "HTTP_PROXY": c.HTTPProxy, "HTTPS_PROXY": c.HTTPSProxy,
	} {
		if u, err := url.Parse(address); err == nil && u.User != nil {
			found["the password in "+name], _ = u.User.Password()
		}
	}
	for name, value := range c.ExtraVars {
		text, isText := value.(string)
		secret := slices.ContainsFunc(secretNames, func(part string) bool { return strings.Contains(strings.ToLower(name), part) })
		if isText && secret {
			found["the extra variable "+name] = text
		}
	}
	var all []hygiene.Secret
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name] != "" {
			all = append(all, hygiene.Secret{Name: name, Value: found[name]})
		}
	}
	return all, nil
}

// inspect checks the packed image against the contract of containerdisks; what
// others' images may lack, ours must have.
func (b *Build) inspect(ctx context.Context, layout string) error {
	return b.stage(ctx, stageInspect, func(ctx context.Context, p progress.Reporter) (string, error) {
		image, err := inspect.Layout(ctx, layout, p)
		if err != nil {
			return "", err
		}
		b.inspectedImage(image)
		return fmt.Sprintf("%d checks", len(image.Checks)), image.Err(inspect.Warning)
	})
}
