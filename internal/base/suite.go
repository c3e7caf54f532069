package base

import (
	"regexp"
	"strconv"
)

// suites are the Debian releases that the recipe makes, oldest first.
var suites = []string{"bookworm", "trixie"}

var coreVersion = regexp.MustCompile(`\b(\d+)\.(\d+)(?:\.\d+)?`)

// NewestManageable returns the newest suite that a host's Ansible can manage.
// ansibleVersion is ansible-core's version ("2.14.18") or the first line of
// `ansible --version`. Versions before 2.16 fail on a guest whose Python is
// 3.12 or newer (its modules import six.moves), which rules out Debian 13; so
// does a version that cannot be read.
func NewestManageable(ansibleVersion string) string {
	m := coreVersion.FindStringSubmatch(ansibleVersion)
	if m == nil {
		return suites[0]
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 2 || major == 2 && minor < 16 {
		return suites[0]
	}
	return suites[len(suites)-1]
}
