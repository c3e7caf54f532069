// Tests of the module diskforge against a real registry that asks for a login:
// what a pipeline that composes the module sees.
//
//	dagger -m ci/tests call all
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	"dagger/diskforge-tests/internal/dagger"
)

// DiskforgeTests tests the module diskforge.
type DiskforgeTests struct {
	// +private
	BaseImage string
	// +private
	GoImage string
	// +private
	AptMirror string
}

// New takes the images and the mirror of the module under test, or none for its own.
func New(
	// The Debian 13 image of the toolbox; the registry is made of it, too.
	// +default="debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f"
	baseImage string,
	// The Go image of the toolbox.
	// +optional
	goImage string,
	// The Debian mirror of the toolbox's packages.
	// +optional
	aptMirror string,
) *DiskforgeTests {
	return &DiskforgeTests{BaseImage: baseImage, GoImage: goImage, AptMirror: aptMirror}
}

const (
	host = "registry:5000"
	user = "me"
)

// diskforge is the module under test.
func (t *DiskforgeTests) diskforge() *dagger.Diskforge {
	return dag.Diskforge(dagger.DiskforgeOpts{BaseImage: t.BaseImage, GoImage: t.GoImage, AptMirror: t.AptMirror})
}

// registry is Debian's docker-registry, which lets one user in.
func (t *DiskforgeTests) registry(password *dagger.Secret) *dagger.Service {
	const config = `version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"}
auth: {htpasswd: {realm: test, path: /run/htpasswd}}
`
	return dag.Container().From(t.BaseImage).
		WithExec([]string{"sh", "-euc", "apt-get -q update && apt-get -qy install --no-install-recommends docker-registry apache2-utils"}).
		WithNewFile("/etc/test.yml", config).
		WithMountedSecret("/run/password", password).
		WithEnvVariable("ONCE", rand.Text()). // the password is another each time
		WithExec([]string{"sh", "-euc", `htpasswd -Bic /run/htpasswd "$1" </run/password`, "sh", user}).
		WithExposedPort(5000).
		AsService(dagger.ContainerAsServiceOpts{Args: []string{"docker-registry", "serve", "/etc/test.yml"}})
}

// All runs every test, side by side.
// +check
func (t *DiskforgeTests) All(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.Refusals(ctx) })
	g.Go(func() error { return t.Publish(ctx) })
	return g.Wait()
}

// Refusals gives the module what it must refuse before it makes anything.
// +check
func (t *DiskforgeTests) Refusals(ctx context.Context) error {
	for says, opts := range map[string]dagger.DiskforgeBuildOpts{
		"ISO_URL: is not set":           {},
		`MEMORY: "lots"`:                {BaseFromPackages: true, Set: []string{"MEMORY=lots"}},
		"MEMORI is no setting of build": {BaseFromPackages: true, Set: []string{"MEMORI=4096"}},
	} {
		_, err := t.diskforge().Build("debian-base", opts).Digest(ctx)
		if err == nil || !strings.Contains(err.Error(), says) {
			return fmt.Errorf("%q was expected, not %w", says, err)
		}
	}
	return nil
}

// Publish builds an image, publishes it to a registry that asks for a login, and looks at what is there. It takes minutes: a guest boots twice.
// +check
func (t *DiskforgeTests) Publish(ctx context.Context) error {
	password, wrong := dag.SetSecret("registry-password", rand.Text()), dag.SetSecret("wrong-password", rand.Text())
	service := t.registry(password)
	at := func(password *dagger.Secret) *dagger.Diskforge {
		return t.diskforge().WithRegistry(host, dagger.DiskforgeWithRegistryOpts{User: user, Pass: password, Insecure: true, Service: service})
	}
	image := func(password *dagger.Secret) *dagger.DiskforgeImage {
		return at(password).Build("debian-base", dagger.DiskforgeBuildOpts{BaseFromPackages: true, Set: []string{"IMAGE_NAME=debian", "IMAGE_TAG=1"}})
	}
	if reference, err := image(wrong).Publish(ctx); err == nil {
		return fmt.Errorf("%s was published with a wrong password", reference)
	}
	digest, err := image(password).Digest(ctx)
	if err != nil {
		return err
	}
	reference, err := image(password).Publish(ctx)
	if err != nil {
		return err
	}
	if want := host + "/debian:1@" + digest; reference != want {
		return fmt.Errorf("%s was published, not %s", reference, want)
	}
	found, err := at(password).Inspect(ctx, reference)
	if err == nil && !strings.Contains(found, digest) {
		err = fmt.Errorf("the registry has another image than %s:\n%s", digest, found)
	}
	return err
}
