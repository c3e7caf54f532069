package pipeline

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// aGrype is a program in the PATH that says what a real one, 0.104.1, said of a Debian 12.
// It leaves its environment in the folder that is returned.
func aGrype(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	said, err := filepath.Abs("testdata/grype.json")
	require.NoError(t, err)
	script := `#!/bin/sh -eu
env >` + dir + `/environment
case $1 in
db) echo '{"schemaVersion": "v6.1.3", "path": "/db", "built": "2026-11-30T06:00:00Z", "valid": true}' ;;
sbom:*) test -s "${1#sbom:}" && cp ` + said + ` "${3#json=}"; exit $GRYPE_EXIT ;;
esac
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "grype"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestAnImageWithKnownVulnerabilitiesOfTheLimitIsNotPacked(t *testing.T) {
	grype := aGrype(t)
	t.Setenv("REGISTRY_PASS", "registry-word")
	t.Setenv("SIGNING_PASSWORD", "signing-word")
	t.Setenv("GRYPE_DB_CACHE_DIR", "/db")
	excuse := func(id, until string) string {
		return "- {vulnerability: " + id + ", package: bash, reason: nobody else logs in, until: " + until + "}\n"
	}
	for name, test := range map[string]struct{ limit, excuses, exit, wrong, line string }{
		"nothing is that bad": {limit: "critical"},
		"one is": { // of which there is nothing newer
			limit: "high", wrong: "known vulnerabilities of high severity or worse: 1, the worst CVE-2026-0002: high, in bash",
			line: "CVE-2026-0002: high, in bash 5.2.15-2+b13",
		},
		"the worst come first":         {limit: "low", wrong: "2, the worst CVE-2026-0002", line: "CVE-2026-0002: high, in bash 5.2.15-2+b13"},
		"grype has a limit of its own": {limit: "critical", exit: "2"},
		"it is excused":                {limit: "high", excuses: excuse("CVE-2026-0002", "9999-12-31")},
		"another is excused":           {limit: "high", excuses: excuse("CVE-2026-0003", "9999-12-31"), wrong: "CVE-2026-0002", line: "CVE-2026-0002: high, in bash 5.2.15-2+b13"},
		"its excuse ended": {
			limit: "high", excuses: excuse("CVE-2026-0002", "2026-11-30"), wrong: "CVE-2026-0002",
			line: "CVE-2026-0002: high, in bash 5.2.15-2+b13, whose excuse ended on 2026-11-30",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GRYPE_EXIT", cmp.Or(test.exit, "0"))
			dir := t.TempDir()
			settings := everything(dir)
			settings["FAIL_ON_VULNERABILITIES"] = test.limit
			if test.excuses != "" {
				settings["VULNERABILITY_EXCUSES"] = filepath.Join(dir, "excuses.yaml")
				require.NoError(t, os.WriteFile(settings["VULNERABILITY_EXCUSES"], []byte(test.excuses), 0o600))
			}
			b, g, _ := wired(t, settings)
			g.inventory = aDebian()
			_, err := b.Run(t.Context())
			assert.Equal(t, test.wrong == "", slices.Contains(g.runs, "pack"))
			told := saved(t, b).Checks
			i := slices.IndexFunc(told, func(c report.Check) bool { return c.Name == "scan" })
			require.GreaterOrEqual(t, i, 0)
			assert.Equal(t, test.wrong == "", told[i].OK)
			assert.Contains(t, told[i].Detail, "grype 0.104.1 with the database of 20")
			if test.wrong == "" {
				require.NoError(t, err)
				excused := slices.ContainsFunc(told, func(c report.Check) bool { return c.Excused == "nobody else logs in (until 9999-12-31)" })
				assert.Equal(t, test.excuses != "", excused)
				return
			}
			f, _ := failure.In(err)
			require.NotNil(t, f)
			assert.Contains(t, f.What, test.wrong)
			assert.Equal(t, test.line, f.Lines[0])
		})
	}
	environment, err := os.ReadFile(filepath.Join(grype, "environment"))
	require.NoError(t, err)
	assert.NotContains(t, string(environment), "-word")
	for _, variable := range []string{"GRYPE_DB_AUTO_UPDATE=false", "GRYPE_CHECK_FOR_APP_UPDATE=false", "GRYPE_DB_CACHE_DIR=/db"} {
		assert.Contains(t, strings.Split(string(environment), "\n"), variable)
	}
}

func TestWithoutAScannerOrADatabaseNothingIsBuilt(t *testing.T) {
	for said, script := range map[string]string{
		"needs grype, which is not installed":                          "",
		"grype has no database that it takes: grype: exit status 1: x": "#!/bin/sh\necho x >&2\nexit 1\n",
	} {
		dir := t.TempDir()
		if script != "" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "grype"), []byte(script), 0o755))
		}
		t.Setenv("PATH", dir)
		settings := everything(t.TempDir())
		settings["FAIL_ON_VULNERABILITIES"] = "high"
		b, g, _ := wired(t, settings)
		_, err := b.Run(t.Context())
		require.ErrorContains(t, err, said)
		assert.Empty(t, g.runs)
	}
}

func TestADiskWithoutKnownPackagesCannotBeScanned(t *testing.T) {
	aGrype(t)
	settings := everything(t.TempDir())
	settings["FAIL_ON_VULNERABILITIES"] = "high"
	b, g, _ := wired(t, settings)
	g.inventory = sbom.Inventory{None: "it is no Debian"}
	_, err := b.Run(t.Context())
	require.ErrorContains(t, err, "nobody knows which vulnerabilities it has: it is no Debian")
}

func TestExcusesOfVulnerabilitiesSayWhyAndUntilWhen(t *testing.T) {
	for text, said := range map[string]string{
		"- {vulnerability: CVE-1, until: 2027-01-31}":                              "lacks its vulnerability, its reason or its end",
		"- {reason: why, until: 2027-01-31}":                                       "lacks its vulnerability, its reason or its end",
		"- {vulnerability: CVE-1, reason: why}":                                    `its end (until: "")`,
		"- {vulnerability: CVE-1, reason: why, until: soon}":                       `its end (until: "soon")`,
		"- {vulnerability: CVE-1, reason: why, until: 2027-01-31, paket: openssl}": "field paket not found",
		"vulnerability: CVE-1":                                                     "give a YAML list of vulnerability, package, reason and until",
	} {
		settings := everything(t.TempDir())
		file := filepath.Join(t.TempDir(), "excuses.yaml")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		settings["VULNERABILITY_EXCUSES"] = file
		_, err := Parse(settings)
		require.ErrorContains(t, err, "VULNERABILITY_EXCUSES: "+file)
		require.ErrorContains(t, err, said)
	}
	file := filepath.Join(t.TempDir(), "empty.yaml")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	none, err := sbom.ReadExcuses(file)
	require.NoError(t, err)
	assert.Empty(t, none)
}
