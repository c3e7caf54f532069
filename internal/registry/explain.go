package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// query is the query of a URL inside a text.
var query = regexp.MustCompile(`\?[^\s"]*`)

// transient says whether the same request may succeed a little later.
func transient(err error) bool {
	if refused(err) != nil || untrusted(err) {
		return false
	}
	if answer := answered(err); answer != nil {
		return transientAnswer(answer)
	}
	var broken *url.Error
	if !errors.As(err, &broken) {
		return false
	}
	var dns *net.DNSError
	var alert tls.AlertError
	var proxy *httpclient.ProxyError
	switch {
	case errors.As(broken, &dns) && dns.IsNotFound,
		errors.As(broken, &proxy),
		errors.Is(broken, httpclient.ErrRedirects),
		errors.Is(broken, httpclient.ErrPrivate),
		errors.As(broken, &alert),
		errors.Is(broken, http.ErrSchemeMismatch),
		errors.Is(broken, oci.ErrDamaged):
		return false
	}
	return true
}

// contested is what registries say where two send the same blob at a time:
// docker-registry of the manifest whose blob is not known for a moment, Nexus
// of the blob.
var contested = []transport.ErrorCode{transport.DigestInvalidErrorCode, transport.BlobUploadInvalidErrorCode, transport.ManifestBlobUnknownErrorCode}

func transientAnswer(answer *transport.Error) bool {
	switch code := answer.StatusCode; {
	case quota(answer):
		return false
	case code == http.StatusBadRequest:
		// What we sent was checked while it was read: the registry is writing
		// the same blob for somebody else.
		return slices.ContainsFunc(answer.Errors, func(d transport.Diagnostic) bool { return slices.Contains(contested, d.Code) })
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests:
		return true
	case code == http.StatusNotFound:
		// The registry lost the upload, not the repository.
		return len(answer.Errors) == 1 && answer.Errors[0].Code == transport.BlobUploadUnknownErrorCode
	default:
		return code >= 500 && code != http.StatusNotImplemented
	}
}

func answered(err error) *transport.Error {
	var answer *transport.Error
	errors.As(err, &answer)
	return answer
}

// refused returns the guard's refusal in err, or nil. That of a mere fallback
// does not count.
func refused(err error) error {
	var plain *plainHTTPError
	if errors.As(err, &plain) && !plain.fallback {
		return plain
	}
	var handOver *handOverError
	if errors.As(err, &handOver) {
		return handOver
	}
	return nil
}

func untrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// nobody says whether the connection failed because nobody listens at the
// registry's own address.
func (c *client) nobody(err error) bool {
	var broken *url.Error
	if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &broken) {
		return false
	}
	asked, err := url.Parse(broken.URL)
	return err == nil && asked.Host == c.repo.RegistryStr()
}

// explain makes a line for people of what go-containerregistry says. The
// original stands in the lines of evidence, cleaned: it is not wrapped, as
// nobody can tell what a registry's words repeat.
func (c *client) explain(err error, tries int) error {
	if _, ok := failure.In(err); ok {
		return err
	}
	e := c.diagnose(err)
	if tries > 1 {
		e.What += fmt.Sprintf(", %d times in a row", tries)
	}
	if !c.nobody(err) { // of which e says all
		e.Lines = []string{c.guard.clean(err.Error())}
	}
	return e
}

func (c *client) diagnose(err error) *failure.Error {
	registry := c.repo.RegistryStr()
	var handOver *handOverError
	if errors.As(err, &handOver) {
		return failure.New(handOver.Error(), "nothing was sent: name the registry by the name that it has for itself, or say by docker login "+handOver.to+" that this host may know it")
	}
	if plain := refused(err); plain != nil {
		return failure.New(fmt.Sprintf("%s %s: %v", c.purpose.doing, registry, plain),
			"everybody on the way could read it; use https, or allow it with REGISTRY_INSECURE=true")
	}
	if untrusted(err) {
		return c.distrust(err)
	}
	if answer := answered(err); answer != nil {
		return c.diagnoseAnswer(answer)
	}
	var broken *url.Error
	var proxy *httpclient.ProxyError
	errors.As(err, &broken)
	switch {
	case errors.Is(err, oci.ErrDamaged):
		return failure.New(c.guard.clean(oci.ErrDamaged.Error()+", so nothing was published"), "pack it again")
	case broken == nil:
		return failure.New(fmt.Sprintf("cannot %s %s: %s", c.purpose.do, c.repo, c.guard.clean(err.Error())), "")
	case errors.Is(broken, httpclient.ErrPrivate):
		return failure.New(fmt.Sprintf("registry %s sends us to %s: %v", registry, hostOf(broken.URL), httpclient.ErrPrivate), "")
	case errors.As(broken, &proxy):
		return failure.New(fmt.Sprintf("registry %s cannot be reached: %v", registry, proxy), proxy.Advice())
	case errors.Is(broken, http.ErrSchemeMismatch):
		return failure.New("registry "+registry+" speaks plain HTTP, not https", "switch its TLS on, or allow that with REGISTRY_INSECURE=true")
	}
	cause := c.guard.clean(broken.Err.Error())
	var connection *net.OpError
	if errors.As(broken, &connection) && connection.Op == "dial" {
		return failure.New(fmt.Sprintf("registry %s cannot be reached: %s", registry, cause), c.purpose.where+" and the network")
	}
	if !transient(err) {
		return failure.New(fmt.Sprintf("cannot %s %s: %s", c.purpose.do, c.repo, cause), c.purpose.where)
	}
	return failure.New(fmt.Sprintf("the connection to registry %s broke: %s", registry, cause), c.later)
}

// hostOf is a URL's host, as its path and query may hold secrets.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "another host"
	}
	return u.Host
}

func (c *client) distrust(err error) *failure.Error {
	registry := c.repo.RegistryStr()
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return failure.New("the certificate of registry "+registry+" was signed by an unknown authority",
			"name the authority's certificate with CA_FILE")
	}
	var certificate *tls.CertificateVerificationError
	errors.As(err, &certificate)
	return failure.New(fmt.Sprintf("the certificate of registry %s is not valid: %s", registry, c.guard.clean(certificate.Err.Error())), "")
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

// quota says whether there is no room for an image.
func quota(answer *transport.Error) bool {
	return answer.StatusCode == http.StatusInsufficientStorage || answer.StatusCode < 500 && answer.StatusCode != http.StatusTooManyRequests && says(answer, quotaWords)
}

// diagnoseAnswer explains an answer of the registry or of its token service: by
// its words where they say more than the status.
func (c *client) diagnoseAnswer(answer *transport.Error) *failure.Error {
	registry, repository := c.repo.RegistryStr(), c.repo.RepositoryStr()
	status := fmt.Sprintf(" (%d%s)", answer.StatusCode, c.words(answer))
	tag, manifest := wanted(answer)
	switch sent := manifest && answer.Request.Method == http.MethodPut; {
	case quota(answer):
		return failure.New(fmt.Sprintf("the quota for %s/%s is full%s", registry, repository, status), "delete images there or ask for more")
	case sent && says(answer, immutableWords):
		return failure.New(fmt.Sprintf("tag %s of %s/%s is there and may not be changed%s", tag, registry, repository, status), "use a new IMAGE_TAG")
	case sent && (answer.StatusCode == http.StatusUnsupportedMediaType || code(answer) == transport.ManifestInvalidErrorCode):
		return failure.New(fmt.Sprintf("registry %s refuses the manifest of an OCI image for %s%s", registry, repository, status), "it needs a release that takes OCI images")
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized:
		return c.unauthorized(status)
	case http.StatusForbidden:
		return failure.New(fmt.Sprintf("registry %s does not let %s %s %s%s", registry, c.who(), c.purpose.do, repository, status), c.purpose.right)
	case http.StatusNotFound:
		if answer.Request != nil && answer.Request.URL.Path == "/v2/" {
			return failure.New(registry+" is no registry"+status, c.purpose.where)
		}
		return failure.New(fmt.Sprintf("registry %s has no %s%s", registry, sought(answer, repository), status), c.purpose.missing)
	case http.StatusRequestEntityTooLarge:
		return failure.New(fmt.Sprintf("registry %s does not take a layer of this size for %s%s", registry, repository, status),
			"raise the body size that the proxy in front of it takes")
	}
	failed := failure.New(fmt.Sprintf("registry %s failed for %s: %s%s", registry, repository, http.StatusText(answer.StatusCode), status), c.later)
	if !transientAnswer(answer) {
		failed.Try = "its log says more"
	}
	return failed
}

func (c *client) unauthorized(status string) *failure.Error {
	registry, repository := c.repo.RegistryStr(), c.repo.RepositoryStr()
	if c.user != "" {
		return failure.New(fmt.Sprintf("registry %s refuses user %q for %s%s", registry, c.user, repository, status), "check REGISTRY_USER and REGISTRY_PASS")
	}
	what := fmt.Sprintf("registry %s wants a login for %s%s", registry, repository, status)
	if c.noLogin != nil {
		return failure.New(what+", and "+c.noLogin.problem.What, c.noLogin.problem.Try)
	}
	return failure.New(what, "set REGISTRY_USER and REGISTRY_PASS, or run docker login "+registry)
}

func code(answer *transport.Error) transport.ErrorCode {
	if len(answer.Errors) == 0 {
		return ""
	}
	return answer.Errors[0].Code
}

// wanted is the tag or digest whose manifest a request was for.
func wanted(answer *transport.Error) (ref string, manifest bool) {
	if answer.Request == nil {
		return "", false
	}
	_, ref, manifest = strings.Cut(answer.Request.URL.Path, "/manifests/")
	return ref, manifest
}

// sought names what a registry answers that it has not. Some say so of what is
// private, too.
func sought(answer *transport.Error, repository string) string {
	ref, manifest := wanted(answer)
	switch {
	case !manifest:
		return repository
	case digestPattern.MatchString(ref):
		return fmt.Sprintf("image %s of %s, or it is private", ref, repository)
	}
	return fmt.Sprintf("tag %s of %s, or it is private", ref, repository)
}

func (c *client) who() string {
	if c.user == "" {
		return "somebody without a login"
	}
	return fmt.Sprintf("user %q", c.user)
}

// words are the registry's own, or nothing.
func (c *client) words(answer *transport.Error) string {
	if len(answer.Errors) == 0 {
		return ""
	}
	d := answer.Errors[0]
	return ", " + c.guard.clean(string(d.Code)+" "+d.Message)
}
