package base

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	defaultBackoff = time.Second
	maxPause       = 30 * time.Second
	maxRetryAfter  = 2 * time.Minute
	maxTries       = 6       // in a row, without minGain more bytes
	minGain        = 1 << 20 // bytes

	tryLater = "try again later"
)

// downloader asks servers for files, again where that may help.
type downloader struct {
	DownloadOptions
	http *http.Client
	to   progress.Reporter
}

// newDownloader makes one that takes its proxy from the environment and
// trusts CAFile besides the host's authorities.
func newDownloader(o DownloadOptions, to progress.Reporter) (*downloader, error) {
	t, err := httpclient.New(httpclient.Options{CAFile: o.CAFile, Idle: o.Stall})
	if err != nil {
		return nil, err
	}
	// The transport counts redirects.
	follow := func(*http.Request, []*http.Request) error { return nil }
	return &downloader{o, &http.Client{Transport: t, CheckRedirect: follow}, to}, nil
}

// permanentError is an error that another attempt would not repair.
type permanentError struct{ error }

func (p permanentError) Unwrap() error { return p.error }

// busyError is the answer of a server that wants to be asked later.
type busyError struct {
	status string
	after  time.Duration // Retry-After, or zero
}

func (b busyError) Error() string { return "the server answers " + b.status }

// get asks for u and returns a successful answer (200 or 206), whose body the
// caller closes.
func get(ctx context.Context, client *http.Client, u *url.URL, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, permanentError{errors.New("the URL cannot be asked for")}
	}
	req.Header = header
	req.Header.Set("User-Agent", "diskforge")
	resp, err := client.Do(req)
	if err != nil {
		return nil, classify(ctx, err)
	}
	if err := checkStatus(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// classify finds out whether a failed request is worth repeating. It drops
// the URL that net/http puts into its errors: it may hold a secret.
func classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var proxy *httpclient.ProxyError
	switch {
	case errors.As(err, &proxy):
		return permanentError{&failure.Error{What: proxy.Error(), Try: proxy.Advice(), Err: err}}
	case errors.As(err, &cert):
		return permanentError{failure.Wrap(err, "its certificate is not trusted", "set CA_FILE to the authority's certificate")}
	case errors.As(err, &dns) && dns.IsNotFound, errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, httpclient.ErrRedirects):
		return permanentError{err}
	}
	return err
}

func checkStatus(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK || code == http.StatusPartialContent:
		return nil
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return busyError{resp.Status, min(time.Duration(max(seconds, 0))*time.Second, maxRetryAfter)}
	case code == http.StatusRequestedRangeNotSatisfiable:
		return errChanged
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return permanentError{failure.New("the server answers "+resp.Status, "check the URL and its credentials")}
	default:
		return permanentError{failure.New("the server answers "+resp.Status, "check the URL")}
	}
}

// retry repeats try, with growing pauses, until it succeeds or failed for
// good. try returns how far it came; getting on starts the count anew.
func (d *downloader) retry(ctx context.Context, name string, try func() (int64, error)) error {
	var done, best int64
	failed := 0
	return host.Retry(ctx, func() (err error) {
		done, err = try()
		return err
	}, func(_ int, err error) (time.Duration, error) {
		if final := (permanentError{}); errors.As(err, &final) {
			return 0, named(name, final.error)
		}
		if done >= best+minGain {
			best, failed = done, 0
		}
		if failed++; failed == maxTries {
			return 0, failure.Wrap(err, fmt.Sprintf("%s: gave up after %d attempts", name, maxTries), tryLater)
		}
		var busy busyError
		errors.As(err, &busy)
		pause := max(host.Backoff(cmp.Or(d.Backoff, defaultBackoff), maxPause, failed), busy.after)
		d.to.Warn(fmt.Sprintf("%s: %v; trying again in %s", name, err, pause))
		return pause, nil
	})
}

// named puts the URL before a final error.
func named(name string, err error) error {
	if f, ok := failure.In(err); ok {
		return &failure.Error{What: name + ": " + f.What, Try: f.Try, Err: err}
	}
	return failure.Wrap(err, name, "check the URL and the network")
}
