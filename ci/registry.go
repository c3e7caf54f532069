package main

import (
	"context"
	"errors"
	"time"

	"dagger/diskforge/address"
	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// registry is where images go, and how to get there.
type registry struct {
	host     string
	user     string
	pass     *dagger.Secret
	insecure bool
	ca       *dagger.File
	service  *dagger.Service // it is reached under the host's name
}

const passPath = "/run/diskforge/registry-password"

// registryAt is the registry of an address.
func registryAt(at, user string, pass *dagger.Secret, insecure bool, ca *dagger.File, service *dagger.Service) (registry, error) {
	if user != "" && pass == nil {
		return registry{}, errors.New("--registry-pass is not given, but --registry-user is: give e.g. --registry-pass env://REGISTRY_PASS")
	}
	return registry{host: address.Host(at), user: user, pass: pass, insecure: insecure, ca: ca, service: service}, nil
}

// reach gives a container the way to the registry and the password, and
// returns the arguments that go with them. What the registry has changes with
// the time: an exec in the container is never taken from the cache.
func (r registry) reach(c *dagger.Container) (*dagger.Container, []string) {
	c = c.WithEnvVariable("ASKED", time.Now().UTC().Format(time.RFC3339Nano))
	if r.service != nil {
		c = c.WithServiceBinding(r.host, r.service)
	}
	if r.ca != nil {
		c = withFile(c, caPath, r.ca)
	}
	if r.pass != nil {
		c = c.WithMountedSecret(passPath, r.pass, dagger.ContainerWithMountedSecretOpts{Owner: user, Mode: 0o400})
	}
	return c, flags.Of("registry-user", r.user, "registry-pass-file", flags.File(r.pass != nil, passPath),
		"registry-insecure", flags.Bool(r.insecure), "ca-file", flags.File(r.ca != nil, caPath))
}

// push pushes the layout that a container has, and returns its reference.
func push(ctx context.Context, packed *dagger.Container, to registry, address ...string) (string, error) {
	c, login := to.reach(packed)
	pushed, err := stage(ctx, c, append(append([]string{"push", layoutPath}, address...), login...)...)
	if err != nil {
		return "", err
	}
	stdout, err := pushed.Stdout(ctx)
	return flags.LastLine(stdout), err
}
