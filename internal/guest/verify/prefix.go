package verify

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"
)

// prefix is a path as consumers serve a desktop under: CrownLabs'
// /instance/<uid>/<env>/ (forge/httproutes.go there).
const prefix = "/instance/6d1f2a50-5a0b-4c9d-8f4e-0d2a6b7c8d9e/env/"

// prefixed is a proxy that serves a desktop under a path prefix, which it
// strips, as a consumer's does. Nothing else is found there.
type prefixed struct {
	url    *url.URL // of the desktop's page
	client *http.Client
	server *http.Server
}

// serveUnderPrefix serves what is at an address until close. An answer may take
// as long as that to begin.
func serveUnderPrefix(address string, answer time.Duration) (*prefixed, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("a proxy for the desktop: %w", err)
	}
	silent := log.New(io.Discard, "", 0)
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: address}) },
		Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: answer},
		ErrorLog:  silent,
	}
	mux := http.NewServeMux()
	mux.Handle(prefix, http.StripPrefix(strings.TrimSuffix(prefix, "/"), proxy))
	s := &prefixed{
		url:    &url.URL{Scheme: "http", Host: listener.Addr().String(), Path: prefix},
		server: &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ErrorLog: silent},
	}
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: s.redirect}
	go func() { _ = s.server.Serve(listener) }() // until close
	return s, nil
}

// redirect follows a redirect within the prefix only: the guest must not send
// us to another address.
func (s *prefixed) redirect(to *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return errors.New("too many redirects")
	}
	if to.URL.Scheme != "http" || to.URL.Host != s.url.Host || !strings.HasPrefix(to.URL.Path, s.url.Path) {
		return fmt.Errorf("a redirect leads out of the path prefix, to %q: it has to be relative", to.URL.String())
	}
	return nil
}

func (s *prefixed) close() { _ = s.server.Close() }
