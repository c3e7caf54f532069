package registry

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// cause is the error behind a line for people. It shows no more than that: what
// a registry says may repeat secrets.
type cause struct {
	shown string
	err   error
}

func (c *cause) Error() string { return c.shown }

// Unwrap returns the library's error.
func (c *cause) Unwrap() error { return c.err }

func answered(err error) *transport.Error {
	answer, _ := errors.AsType[*transport.Error](err)
	return answer
}

func stalled(err error) bool {
	_, ok := errors.AsType[*httpclient.IdleError](err)
	return ok
}

// nobody says whether the connection failed because nobody listens at the
// registry's own address.
func (a *access) nobody(err error) bool {
	broken, ok := errors.AsType[*url.Error](err)
	return ok && errors.Is(err, syscall.ECONNREFUSED) && hostOf(broken.URL) == a.repo.RegistryStr()
}

// hostOf is a URL's host, as its path and query may hold secrets.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "another host"
	}
	return u.Host
}

// explain makes a line for people of what go-containerregistry says. The
// original stands in the lines of evidence, cleaned.
func (a *access) explain(err error, tries int) error {
	if _, ok := failure.In(err); ok {
		return err
	}
	f, _ := a.diagnose(err)
	if tries > 1 {
		f.What += fmt.Sprintf(", %d times in a row", tries)
	}
	if !a.nobody(err) { // of which f says all
		f.Lines = []string{a.guard.clean(err.Error())}
	}
	return f
}

// diagnose says what an error means, and whether the same request may succeed a
// little later.
func (a *access) diagnose(err error) (f *failure.Error, again bool) {
	if f, ok := failure.In(err); ok {
		return f, false
	}
	what, try, again := a.meaning(err)
	return &failure.Error{What: what, Try: try, Err: &cause{a.guard.clean(err.Error()), err}}, again
}

func (a *access) meaning(err error) (what, try string, again bool) {
	registry, cannot := a.repo.RegistryStr(), "cannot "+a.purpose.do+" "+a.repo.String()+": "
	if refused, ok := errors.AsType[*refusal](err); ok && !refused.fallback {
		return cannot + refused.what, refused.try, false
	}
	if what, try, ok := httpclient.Certificate(err); ok {
		return "the certificate of registry " + registry + " " + a.guard.clean(what), try, false
	}
	if answer := answered(err); answer != nil {
		what, try = a.answerMeans(answer)
		return what, try, passes(answer)
	}
	if errors.Is(err, oci.ErrDamaged) {
		return oci.ErrDamaged.Error() + ", so nothing was published", "pack it again", false
	}
	broken, ok := errors.AsType[*url.Error](err)
	switch {
	case ok:
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // a body ends before its time
		broken = &url.Error{Err: io.ErrUnexpectedEOF}
	default:
		return cannot + a.guard.clean(err.Error()), "", false
	}
	said := a.guard.clean(broken.Err.Error())
	proxy, proxied := errors.AsType[*httpclient.ProxyError](broken)
	dial, _ := errors.AsType[*net.OpError](broken)
	again = !httpclient.Lasting(broken)
	switch {
	case errors.Is(broken, httpclient.ErrPrivate):
		return fmt.Sprintf("registry %s sends us to %s: %v", registry, hostOf(broken.URL), httpclient.ErrPrivate), "", again
	case proxied:
		return fmt.Sprintf("registry %s cannot be reached: %v", registry, proxy), proxy.Advice(), again
	case errors.Is(broken, http.ErrSchemeMismatch):
		return "registry " + registry + " speaks plain HTTP, not https",
			"switch its TLS on, or allow that with REGISTRY_INSECURE=true", again
	case dial != nil && dial.Op == "dial":
		return "registry " + registry + " cannot be reached: " + said, a.purpose.where + " and the network", again
	case !again:
		return cannot + said, a.purpose.where, false
	}
	return "the connection to registry " + registry + " broke: " + said, a.later, true
}

// What registries say, each with a code of its own: Harbor's and Quay's quota is
// a 403, Google's immutable tag a MANIFEST_INVALID.
var (
	quotaWords     = regexp.MustCompile(`(?i)quota|storage limit|exceed`)
	immutableWords = regexp.MustCompile(`(?i)immutable|cannot be overwritten|is locked`)
)

// says whether one of the registry's words matches.
func says(answer *transport.Error, words *regexp.Regexp) bool {
	return slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool { return words.MatchString(d.Message) })
}

// has says whether one of the answer's codes is among these.
func has(answer *transport.Error, codes ...transport.ErrorCode) bool {
	return slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool { return slices.Contains(codes, d.Code) })
}

// full says whether there is no room for an image.
func full(answer *transport.Error) bool {
	return answer.StatusCode == http.StatusInsufficientStorage ||
		answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests && says(answer, quotaWords)
}

// passes says whether the same request may be answered otherwise a little later.
func passes(answer *transport.Error) bool {
	switch code := answer.StatusCode; {
	case full(answer):
		return false
	case code == http.StatusBadRequest:
		// What we sent was checked while it was read: the registry is writing
		// the same blob for somebody else. docker-registry says so of the
		// manifest whose blob is not known for a moment, Nexus of the blob.
		return has(answer, transport.DigestInvalidErrorCode, transport.BlobUploadInvalidErrorCode,
			transport.ManifestBlobUnknownErrorCode)
	case code == http.StatusNotFound:
		// The registry lost the upload, not the repository.
		return len(answer.Errors) == 1 && has(answer, transport.BlobUploadUnknownErrorCode)
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests:
		return true
	default:
		return code >= 500 && code != http.StatusNotImplemented
	}
}

func isPing(answer *transport.Error) bool {
	return answer.Request != nil && answer.Request.URL.Path == "/v2/"
}

// answerMeans explains an answer of the registry or of its token service: by its
// words where they say more than the status.
func (a *access) answerMeans(answer *transport.Error) (what, try string) {
	registry, repository := "registry "+a.repo.RegistryStr(), a.repo.RepositoryStr()
	method, ref, sought := "", "", repository
	if answer.Request != nil {
		method = answer.Request.Method
		_, ref, _ = strings.Cut(answer.Request.URL.Path, "/manifests/")
	}
	switch { // some say that they have not what is private, too
	case host.ValidDigest(ref):
		sought = fmt.Sprintf("image %s of %s, or it is private", ref, repository)
	case ref != "":
		sought = fmt.Sprintf("tag %s of %s, or it is private", ref, repository)
	}
	sent := ref != "" && method == http.MethodPut
	code := answer.StatusCode
	switch {
	case full(answer):
		what, try = "the quota for "+a.repo.String()+" is full", "delete images there or ask for more"
	case sent && says(answer, immutableWords):
		what, try = fmt.Sprintf("tag %s of %s is there and may not be changed", ref, a.repo), "use a new IMAGE_TAG"
	case sent && (code == http.StatusUnsupportedMediaType || has(answer, transport.ManifestInvalidErrorCode)):
		what, try = registry+" refuses the manifest of an OCI image for "+repository, "it needs a release that takes OCI images"
	case method == http.MethodDelete && code == http.StatusPreconditionFailed:
		what = registry + " protects " + repository
		try = "change the project's rule of tag immutability (Harbor: project, Policy), or keep the image"
	case code == http.StatusUnauthorized && a.user != "":
		what, try = fmt.Sprintf("%s refuses %s for %s", registry, a.who(), repository), "check REGISTRY_USER and REGISTRY_PASS"
	case code == http.StatusUnauthorized && a.noLogin != nil:
		what, try = registry+" wants a login for "+repository+", and "+a.noLogin.What, a.noLogin.Try
	case code == http.StatusUnauthorized:
		what = registry + " wants a login for " + repository
		try = "set REGISTRY_USER and REGISTRY_PASS, or run docker login " + a.repo.RegistryStr()
	case code == http.StatusForbidden:
		what, try = fmt.Sprintf("%s does not let %s %s %s", registry, a.who(), a.purpose.do, repository), a.purpose.right
	case code == http.StatusNotFound && isPing(answer):
		what, try = a.repo.RegistryStr()+" is no registry", a.purpose.where
	case code == http.StatusNotFound:
		what, try = registry+" has no "+sought, a.purpose.missing
	case code == http.StatusRequestEntityTooLarge:
		what = registry + " does not take a layer of this size for " + repository
		try = "raise the body size that the proxy in front of it takes"
	case passes(answer):
		what, try = fmt.Sprintf("%s failed for %s: %s", registry, repository, http.StatusText(code)), a.later
	default:
		what, try = fmt.Sprintf("%s failed for %s: %s", registry, repository, http.StatusText(code)), "its log says more"
	}
	return what + fmt.Sprintf(" (%d%s)", code, a.words(answer)), try
}

func (a *access) who() string {
	if a.user == "" {
		return "somebody without a login"
	}
	return fmt.Sprintf("user %q", a.user)
}

// words are the registry's own, or nothing.
func (a *access) words(answer *transport.Error) string {
	if len(answer.Errors) == 0 {
		return ""
	}
	d := answer.Errors[0]
	return ", " + a.guard.clean(string(d.Code)+" "+d.Message)
}
