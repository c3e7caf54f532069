package registry

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// What a registry takes (OCI distribution specification, "Pulling manifests").
// go-containerregistry accepts more, and the registry then answers 404.
const (
	component = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	label     = `[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?`
	// maxRepository is the length that registries accept for a repository, in
	// bytes.
	maxRepository = 255
)

var (
	pathPattern = regexp.MustCompile(`^` + component + `(?:/` + component + `)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostPort    = regexp.MustCompile(`^(` + label + `(?:\.` + label + `)*|\[[0-9a-fA-F:.]+\])(?::([0-9]+))?$`)
	// Registries without a referrers API keep their lists of referrers in such
	// tags; one of ours would be taken for a list.
	referrersTag = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64}`)
)

// ErrReference is the cause of the errors of references that no registry takes:
// none was asked.
var ErrReference = errors.New("not a reference")

func badReference(what, try string) error {
	return &failure.Error{What: what, Try: try, Err: ErrReference}
}

// CheckStored says whether ref can name an image in a registry:
// REGISTRY/REPOSITORY with :TAG, @DIGEST or both. Nobody is asked.
func CheckStored(ref string) error {
	_, err := parseStored(ref)
	return err
}

// CheckTag says whether an image can have the tag.
func CheckTag(tag string) error { return checkTag(tag) }

// CheckTarget says whether an image can be pushed to ref:
// REGISTRY/REPOSITORY:TAG. Nobody is asked.
func CheckTarget(ref string) error {
	_, err := parse(ref)
	return err
}

// ParseReference puts the settings TARGET_REGISTRY, REGISTRY_PREFIX, IMAGE_NAME
// and IMAGE_TAG together to REGISTRY/PREFIX/NAME:TAG. An empty registry means
// that nothing is pushed: the others are checked and the reference is empty.
// The error joins one *failure.Error for each setting that no registry takes.
func ParseReference(registry, prefix, image, tag string) (string, error) {
	prefix = strings.Trim(prefix, "/")
	var bad []error
	refuse := func(setting, value string, err error) {
		bad = append(bad, &failure.Error{What: fmt.Sprintf("%s cannot be %q", setting, value), Try: err.Error(), Err: err})
	}
	for _, s := range []struct {
		name, value string
		needed      bool
		check       func(string) error
	}{
		{"TARGET_REGISTRY", registry, false, checkHost},
		{"REGISTRY_PREFIX", prefix, false, checkPath},
		{"IMAGE_NAME", image, true, checkPath},
		{"IMAGE_TAG", tag, true, checkTag},
	} {
		if s.value == "" {
			if s.needed {
				bad = append(bad, failure.New(s.name+" is not set", ""))
			}
		} else if err := s.check(s.value); err != nil {
			refuse(s.name, s.value, err)
		}
	}
	repository := strings.TrimPrefix(prefix+"/"+image, "/")
	if len(bad) == 0 && len(repository) > maxRepository {
		refuse("IMAGE_NAME", image, fmt.Errorf("with REGISTRY_PREFIX it is longer than %d characters", maxRepository))
	}
	if len(bad) > 0 || registry == "" {
		return "", errors.Join(bad...)
	}
	return registry + "/" + repository + ":" + tag, nil
}

// parse takes a reference to push to apart, which must name registry and tag: a
// default would publish somewhere else than the reader thinks.
func parse(ref string) (name.Tag, error) {
	what := fmt.Sprintf("no image can be pushed to %q", ref)
	if strings.Contains(ref, "@") && !strings.Contains(ref, "://") {
		return name.Tag{}, badReference(what, "leave out the digest, it comes with the image")
	}
	parsed, err := parseAny(ref, what, checkTag)
	if err != nil {
		return name.Tag{}, err
	}
	return parsed.(name.Tag), nil // as there is no digest
}

// parseStored takes a reference to an image in a registry apart:
// REGISTRY/REPOSITORY with :TAG, @DIGEST or both, of which the digest counts.
func parseStored(ref string) (name.Reference, error) {
	return parseAny(ref, fmt.Sprintf("%q names no image in a registry", ref), checkTagForm)
}

// parseAny takes a reference apart; what begins its errors. The registry and a
// tag or digest must be named.
func parseAny(ref, what string, checkTag func(string) error) (name.Reference, error) {
	registry, rest, _ := strings.Cut(ref, "/")
	rest, digest, pinned := strings.Cut(rest, "@")
	repository, tag, tagged := strings.Cut(rest, ":")
	err := checkHost(registry)
	switch {
	case err != nil:
	case pinned && !host.ValidDigest(digest):
		err = errors.New("behind @ there must be a digest, as in @sha256: and 64 hexadecimal digits")
	case !pinned && !tagged:
		err = errors.New("it has no tag, as in REGISTRY/REPOSITORY:TAG")
	case len(repository) > maxRepository:
		err = fmt.Errorf("the repository is longer than %d characters", maxRepository)
	case tagged:
		err = cmp.Or(checkPath(repository), checkTag(tag))
	default:
		err = checkPath(repository)
	}
	var parsed name.Reference
	if err == nil {
		parsed, err = name.ParseReference(ref)
	}
	if err != nil {
		return nil, badReference(what, err.Error())
	}
	return parsed, nil
}

// checkHost accepts HOST, HOST:PORT, IPv4 and [IPv6] with or without a port.
// A lone name without a dot or a port is refused: every client takes it for a
// folder of Docker Hub.
func checkHost(s string) error {
	parts := hostPort.FindStringSubmatch(s)
	if parts == nil {
		switch {
		case s == "":
			return errors.New("name a registry, as in registry.example.org or localhost:5000")
		case strings.HasPrefix(s, "http:"), strings.HasPrefix(s, "https:"):
			return errors.New("leave out http:// or https://")
		case strings.Contains(s, "@"):
			return errors.New("leave out the user: that is REGISTRY_USER")
		case strings.Contains(s, "/"):
			return errors.New("leave out the path: that is REGISTRY_PREFIX")
		}
		return errors.New("it must be a host name or address, with :PORT where that is not 443")
	}
	domain, port := parts[1], parts[2]
	n, err := strconv.ParseUint(port, 10, 16)
	addr, notIP := netip.ParseAddr(strings.Trim(domain, "[]"))
	switch bracketed := strings.HasPrefix(domain, "["); {
	case port != "" && (err != nil || n == 0):
		return errors.New("the port must be a number from 1 to 65535")
	case bracketed && (notIP != nil || !addr.Is6()):
		return errors.New("between [ and ] there must be an IPv6 address")
	case !bracketed && port == "" && domain != "localhost" && !strings.Contains(domain, "."):
		return fmt.Errorf("clients would look for it on Docker Hub: write its whole name, or %s:443", domain)
	}
	return nil
}

func checkPath(s string) error {
	switch {
	case s == "":
		return errors.New("it is empty")
	case !pathPattern.MatchString(s):
		return errors.New("registries take lower-case letters and digits, with single '.', '_' or '-' between them and '/' between parts")
	}
	return nil
}

// checkTag accepts the tags that an image of ours may get.
func checkTag(s string) error {
	if referrersTag.MatchString(s) {
		return errors.New("such tags are lists of referrers")
	}
	return checkTagForm(s)
}

// checkTagForm accepts the tags that a registry may have.
func checkTagForm(s string) error {
	switch {
	case s == "":
		return errors.New("the tag is empty: name one, such as a date or a version")
	case !tagPattern.MatchString(s):
		return errors.New("a tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of the last two")
	}
	return nil
}
