// Package apt writes apt's sources for another mirror than Debian's own.
package apt

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.pgp"

// Sources are apt's sources (deb822) for a suite from a mirror's Debian
// archive (…/debian). Its security archive stands beside it as Debian has it
// (…/debian-security), and as snapshot.debian.org has it
// (…/debian-security/DATE); a mirror without "debian" in its path has none.
// The archives of a dated snapshot have expired, so their date is not checked.
func Sources(mirror, suite string) (string, error) {
	u, err := url.Parse(mirror)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || strings.ContainsAny(mirror, " \t\r\n") {
		return "", fmt.Errorf("--apt-mirror is no http or https address of a Debian mirror: give e.g. http://deb.debian.org/debian")
	}
	text := source(u, suite, suite+"-updates")
	path := strings.Split(strings.TrimRight(u.Path, "/"), "/")
	if i := slices.Index(path, "debian"); i >= 0 {
		path[i] = "debian-security"
		security := *u
		security.Path = strings.Join(path, "/")
		text += "\n" + source(&security, suite+"-security")
	}
	return text, nil
}

func source(u *url.URL, suites ...string) string {
	return fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\nCheck-Valid-Until: no\n", u, strings.Join(suites, " "), keyring)
}
