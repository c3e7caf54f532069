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
func (o Options) Hasty() Options { o.idle = 300 * time.Millisecond; return o }

// Through connects by dial, so that names need not exist.
func (o Options) Through(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Options {
	o.dial = dial
	return o
}

// Parse checks a whole reference.
func Parse(ref string) (string, error) {
	tag, err := parse(ref, false)
	if err != nil {
		return "", err
	}
	return tag.String(), nil
}

// ParseStored checks a reference to an image in a registry and returns its
// repository and what it says of the image: the digest where there is one.
func ParseStored(ref string) (repository, identifier string, err error) {
	parsed, err := parseStored(ref, false)
	if err != nil {
		return "", "", err
	}
	return parsed.Context().String(), parsed.Identifier(), nil
}

// Next follows a Link header of a page.
func Next(page, header string) (*url.URL, error) {
	at, err := url.Parse(page)
	if err != nil {
		return nil, err
	}
	return follow(at, at, nextLink([]string{header}))
}

// MayKnow says whether a registry's token service may be given the login.
func MayKnow(registry, realm string) bool { return (&guard{registry: registry}).mayKnow(realm) }
