package registry

import (
	"context"
	"net"
	"net/url"
	"time"
)

// Quick makes the pauses between tries short.
func (o Options) Quick() Options { o.backoff = time.Millisecond; return o }

// Hasty gives a request that gets nowhere up soon.
func (o Options) Hasty() Options { o.idle = 500 * time.Millisecond; return o }

// Through connects by dial, so that names need not exist.
func (o Options) Through(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Options {
	o.dial = dial
	return o
}

// Parse checks a whole reference.
func Parse(ref string) (string, error) {
	tag, err := parse(ref)
	if err != nil {
		return "", err
	}
	return tag.String(), nil
}

// ParseStored checks a reference to an image in a registry and returns its
// repository and what it says of the image: the digest where there is one.
func ParseStored(ref string) (repository, identifier string, err error) {
	parsed, err := parseStored(ref)
	if err != nil {
		return "", "", err
	}
	return parsed.Context().String(), parsed.Identifier(), nil
}

// Next follows a Link header of a page of registry.example.
func Next(page, header string) (*url.URL, error) {
	next, err := follow(page, []string{header})
	if err != nil || next == "" {
		return nil, err
	}
	return url.Parse("https://registry.example" + next)
}

// MayKnow says whether a registry's token service may be given the login.
func MayKnow(ctx context.Context, registry, realm string) bool {
	return (&guard{registry: registry}).mayKnow(ctx, realm)
}
