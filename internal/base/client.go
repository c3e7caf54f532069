package base

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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

// client asks servers for files, again where that may help.
type client struct {
	DownloadOptions
	http *http.Client
	to   progress.Reporter
}

// newClient makes one that takes its proxy from the environment and trusts
// CAFile besides the host's authorities.
func newClient(o DownloadOptions, to progress.Reporter) (*client, error) {
	t, err := httpclient.New(httpclient.Options{CAFile: o.CAFile, Idle: o.Stall, Dial: o.dial})
	if err != nil {
		return nil, err
	}
	// The transport counts redirects.
	follow := func(*http.Request, []*http.Request) error { return nil }
	return &client{o, &http.Client{Transport: t, CheckRedirect: follow}, to}, nil
}

// answerError is an answer without what was asked for.
type answerError struct {
	code   int
	status string
	after  time.Duration // Retry-After, or zero
}

func (a *answerError) Error() string { return "the server answers " + a.status }

// answered says whether the server gave this answer.
func answered(err error, code int) bool {
	answer, ok := errors.AsType[*answerError](err)
	return ok && answer.code == code
}

// get asks for a URL and returns a successful answer (200 or 206), whose body
// the caller closes. Errors do not repeat the URL: it may hold a secret.
func get(ctx context.Context, c *http.Client, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, failure.New("the URL cannot be asked for", "check the URL")
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", "diskforge")
	resp, err := c.Do(req)
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, &answerError{resp.StatusCode, resp.Status, min(httpclient.RetryAfter(resp), maxRetryAfter)}
	}
	return resp, nil
}

// lasting says whether another attempt would fail likewise, and then what is
// wrong and what to do about it. What has been made ready for a person is final.
func lasting(err error) (what, try string, lasts bool) {
	if f, final := failure.In(err); final {
		return f.What, f.Try, true
	}
	if answer, ok := errors.AsType[*answerError](err); ok {
		code := answer.code
		if code == http.StatusUnauthorized || code == http.StatusForbidden {
			return answer.Error(), "check the URL and its credentials", true
		}
		passes := code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500
		return answer.Error(), "check the URL", !passes
	}
	if proxy, ok := errors.AsType[*httpclient.ProxyError](err); ok {
		return proxy.Error(), proxy.Advice(), true
	}
	if what, try, is := httpclient.Certificate(err); is {
		return "its certificate " + what, try, true
	}
	return err.Error(), "check the URL and the network", httpclient.Lasting(err)
}

// retry repeats try, with growing pauses, until it succeeds or failed for
// good. try returns how far it came; getting on starts the count anew.
func (c *client) retry(ctx context.Context, name string, try func() (int64, error)) error {
	var done, best int64
	failed := 0
	return host.Retry(ctx, func() (err error) {
		done, err = try()
		return err
	}, func(_ int, err error) (time.Duration, error) {
		if what, try, lasts := lasting(err); lasts {
			return 0, &failure.Error{What: name + ": " + what, Try: try, Err: err}
		}
		if done >= best+minGain {
			best, failed = done, 0
		}
		if failed++; failed == maxTries {
			return 0, failure.Wrap(err, fmt.Sprintf("%s: gave up after %d attempts", name, maxTries), tryLater)
		}
		pause := host.Backoff(cmp.Or(c.Backoff, defaultBackoff), maxPause, failed)
		if answer, ok := errors.AsType[*answerError](err); ok {
			pause = max(pause, answer.after)
		}
		c.to.Warn(fmt.Sprintf("%s: %v; trying again in %s", name, err, pause))
		return pause, nil
	})
}
