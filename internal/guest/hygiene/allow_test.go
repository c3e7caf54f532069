package hygiene_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func allowList(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hygiene.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestAnAllowListIsRead(t *testing.T) {
	t.Parallel()
	list, err := hygiene.ReadAllowList(allowList(t, `# our image
- rule: private-keys
  path: /etc/ssl/private/*.key
  reason: replaced at first boot by make-ssl-cert
- {path: "/var/log/**", rule: logs, reason: "  read by the course  "}
`))
	require.NoError(t, err)
	assert.Equal(t, []hygiene.Excuse{
		{Rule: "private-keys", Path: "/etc/ssl/private/*.key", Reason: "replaced at first boot by make-ssl-cert"},
		{Rule: "logs", Path: "/var/log/**", Reason: "read by the course"},
	}, list.Excuses)
	for _, text := range []string{"", "# nothing\n", "[]", "null"} {
		list, err := hygiene.ReadAllowList(allowList(t, text))
		require.NoError(t, err)
		assert.Empty(t, list.Excuses)
	}
}

const siteRules = `
- rule: course-keys
  demands: no licence of ours is left
  find:
    - {what: a licence, paths: ["/opt/**/licence.dat"], holds: "(?m)^SERVER "}
    - {what: a state of the licence daemon, paths: ["/var/lib/licd/*"], content: true}
    - {what: its marker, paths: [/etc/licd.active]}
- {rule: course-keys, path: /opt/demo/licence.dat, reason: everybody may have it}
`

func TestASiteAddsItsOwnRules(t *testing.T) {
	t.Parallel()
	policy, err := hygiene.ReadAllowList(allowList(t, siteRules))
	require.NoError(t, err)
	o := options(t, rawDisk(t, with(map[string]file{
		"/opt/a/licence.dat": {"SERVER host\n", 0}, "/opt/demo/licence.dat": {"SERVER host\n", 0}, "/opt/b/licence.dat": {"# SERVER host\n", 0},
		"/var/lib/licd/state": {"1", 0}, "/var/lib/licd/empty": {"", 0}, "/etc/licd.active": {"", 0},
	})))
	o.Policy = policy
	r, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, "3 leftovers")
	assert.Equal(t, []string{
		"course-keys /etc/licd.active", "course-keys /opt/a/licence.dat", "course-keys /opt/demo/licence.dat", "course-keys /var/lib/licd/state",
	}, found(r))
	assert.Contains(t, r.Rules, hygiene.Rule{Name: "course-keys", Demands: "no licence of ours is left"})
	assert.Equal(t, "everybody may have it", policy.Reason("course-keys", "/opt/demo/licence.dat"))
	assert.Empty(t, policy.Reason("logs", "/opt/demo/licence.dat"))
}

func TestWhatIsWrongWithAnAllowListIsNamedWithItsLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"rule: logs":                     "line 1: this is no list",
		"- logs":                         "line 1: an excuse has the keys rule, path and reason",
		"- rule: [a]\n":                  "line 1: rule needs a text",
		"- rule: logs\n  path: /a\n":     "line 1: an excuse has no reason",
		"\n- rule: logs\n  reason: so\n": "line 2: an excuse has no path",
		"- rule: logs\n  path: /a\n  reason: ' '\n":                                   "line 3: reason needs a text",
		"- rule: logs\n  path: /a\n  reason:\n":                                       "line 3: reason needs a text",
		"- rule: logs\n  path: /a\n  because: so\n":                                   `line 3: the key "because" is unknown`,
		"- rule: logs\n  path: /a\n  path: /b\n  reason: so\n":                        `line 3: the key "path" is unknown or given twice`,
		"- rule: logs\n  path: /a\n  reason: so\n- rule: log\n  path: /\n  reason: x": `line 4: no rule is called "log": there are build-user, password-hash, `,
		"- {rule: logs, demands: x, find: [{what: x, paths: [/a]}]}":                  `line 1: there is a rule called "logs" already`,
		"- {rule: Ours, demands: x, find: [{what: x, paths: [/a]}]}":                  `line 1: a rule cannot be called "Ours"`,
		"- {rule: ours, find: [{what: x, paths: [/a]}]}":                              "line 1: a rule has no demands",
		"- {rule: ours, demands: x, find: []}":                                        "line 1: find needs a list of looks",
		"- rule: ours\n  demands: x\n  find:\n  - {what: x, paths: [a]}":              `line 4: the path "a" does not begin with /`,
		"- rule: ours\n  demands: x\n  find:\n  - {what: x, path: [/a]}":              `line 4: the key "path" is unknown`,
		"- rule: ours\n  demands: x\n  find:\n  - {what: x, paths: /a}":               "line 4: a look has what (a text), paths (a list)",
		"- rule: ours\n  demands: x\n  find:\n  - {what: x, paths: [/a], holds: '('}": "line 4: holds: error parsing regexp",
		"- rule: logs\n\tpath: /a\n":                                                  "line 2",
	} {
		path := allowList(t, text)
		_, err := hygiene.ReadAllowList(path)
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, path)
		_, ok := failure.In(err)
		assert.True(t, ok)
	}
	_, err := hygiene.ReadAllowList(filepath.Join(t.TempDir(), "missing"))
	require.ErrorContains(t, err, "no such file or directory")
	_, err = hygiene.ReadAllowList(allowList(t, strings.Repeat("#", 1<<20+1)))
	require.ErrorContains(t, err, "longer than 1 MiB")
}
