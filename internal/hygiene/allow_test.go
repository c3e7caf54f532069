package hygiene_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/hygiene"
)

func allowList(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hygiene.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestAnAllowListIsRead(t *testing.T) {
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
	}, list)
	for _, text := range []string{"", "# nothing\n", "[]", "null"} {
		list, err := hygiene.ReadAllowList(allowList(t, text))
		require.NoError(t, err)
		assert.Empty(t, list)
	}
}

func TestWhatIsWrongWithAnAllowListIsNamedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"rule: logs":                     "line 1: this is no list",
		"- logs":                         "line 1: an excuse has the keys rule, path and reason",
		"- rule: [a]\n":                  "line 1: rule needs a text",
		"- rule: logs\n  path: /a\n":     "line 1: the excuse has no reason",
		"\n- rule: logs\n  reason: so\n": "line 2: the excuse has no path",
		"- rule: logs\n  path: /a\n  reason: ' '\n":                                   "line 3: reason needs a text",
		"- rule: logs\n  path: /a\n  reason:\n":                                       "line 3: reason needs a text",
		"- rule: logs\n  path: /a\n  because: so\n":                                   `line 3: the key "because" is unknown`,
		"- rule: logs\n  path: /a\n  path: /b\n  reason: so\n":                        `line 3: the key "path" is unknown or given twice`,
		"- rule: logs\n  path: /a\n  reason: so\n- rule: log\n  path: /\n  reason: x": `line 4: no rule is called "log": there are build-user, password-hash, `,
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
	require.ErrorContains(t, err, "longer than 1024 KiB")
}
