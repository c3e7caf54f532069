// Package lists fetches lists of checksums by the way that a build's settings
// say.
package lists

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// Way is how a server is reached: by which proxies, and whose certificates are
// good (PEM) besides the usual.
type Way struct{ HTTPProxy, HTTPSProxy, NoProxy, CA string }

// A list of checksums is a few kilobytes and comes at once.
const (
	maxSize = 4 << 20
	timeout = time.Minute
)

// Fetch returns what the address has.
func Fetch(ctx context.Context, address string, way Way) (string, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if way.CA != "" && !pool.AppendCertsFromPEM([]byte(way.CA)) {
		return "", errors.New("--ca-file has no certificate in it: give certificates in PEM")
	}
	proxies := (&httpproxy.Config{HTTPProxy: way.HTTPProxy, HTTPSProxy: way.HTTPSProxy, NoProxy: way.NoProxy}).ProxyFunc()
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{
		Proxy:           func(r *http.Request) (*url.URL, error) { return proxies(r.URL) },
		TLSClientConfig: &tls.Config{RootCAs: pool},
	}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the server says %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = fmt.Errorf("it is larger than %d MiB: it is no list of checksums", maxSize>>20)
	}
	return string(text), err
}
