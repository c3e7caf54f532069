package verify

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/accel"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestCloudInitsStatusIsJudged(t *testing.T) {
	tests := map[string]struct {
		out     string
		allowed []string
		detail  string
		err     string
	}{
		"an old release that waited": {
			out:    "...\n{\"datasource\":\"nocloud\",\"detail\":\"DataSourceNoCloud [seed=/dev/vdb]\",\"errors\":[],\"status\":\"done\"}",
			detail: "done, DataSourceNoCloud [seed=/dev/vdb]",
		},
		"an error": {
			out: `{"status":"error","errors":["('apt_configure',\n ProcessExecutionError())"],"detail":"DataSourceNoCloud"}`,
			err: "it ended with status error: ('apt_configure', ProcessExecutionError()); DataSourceNoCloud",
		},
		"degraded": {
			out: `{"status":"done","extended_status":"degraded done","errors":[],"recoverable_errors":{"WARNING":["Invalid cloud-config"],"DEPRECATED":["chpasswd.list"]}}`,
			err: "it ended with warnings: DEPRECATED: chpasswd.list; WARNING: Invalid cloud-config",
		},
		"degraded by what is allowed": {
			out:     `{"status":"done","extended_status":"degraded done","detail":"x","errors":[],"recoverable_errors":{"WARNING":["Invalid cloud-config provided: mounts"]}}`,
			allowed: []string{"mounts"}, detail: "degraded done, x",
		},
		"disabled":   {out: `{"status":"disabled","detail":"no datasource"}`, err: "it ended with status disabled: no datasource"},
		"nothing":    {out: "sh: cloud-init: not found", err: "cloud-init told no status"},
		"no status":  {out: "{}", err: "cloud-init's status says nothing"},
		"broken off": {out: `{"status":`, err: "cloud-init's status cannot be read"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := parseCloudInit(tt.out)
			var detail string
			if err == nil {
				detail, err = s.verdict(tt.allowed)
			}
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.detail, detail)
		})
	}
}

const gossReport = `{"results":[
 {"successful":true,"skipped":false,"resource-type":"Package","resource-id":"chrony","property":"installed","title":"","summary-line-compact":"Package: chrony: installed: matches expectation: true"},
 {"successful":false,"skipped":false,"resource-type":"File","resource-id":"/etc/no such","property":"exists","title":"needed","summary-line-compact":"File: /etc/no such: exists:\n  Expected false to equal true"},
 {"successful":true,"skipped":true,"resource-type":"File","resource-id":"/etc/no such","property":"mode","title":"","summary-line-compact":"File: skipped"}],
 "summary":{"failed-count":1,"skipped-count":1,"test-count":3}}`

func TestEachGossCheckBecomesALine(t *testing.T) {
	checks, err := parseGoss([]byte(gossReport))
	require.NoError(t, err)
	assert.Equal(t, []Check{
		{"package chrony installed", true, "Package: chrony: installed: matches expectation: true"},
		{"file /etc/no such exists", false, "needed: File: /etc/no such: exists: Expected false to equal true"},
		{"file /etc/no such mode", true, "skipped"},
	}, checks)
}

func TestGossThatBrokeOffPassesNothing(t *testing.T) {
	for _, out := range []string{
		"", "Error: gossfile: yaml: line 3", "{}", `{"results":[]}`,
		gossReport[:200], strings.Replace(gossReport, `"test-count":3`, `"test-count":4`, 1), strings.Replace(gossReport, `"failed-count":1`, `"failed-count":2`, 1),
	} {
		_, err := parseGoss([]byte(out))
		require.Error(t, err, out)
	}
}

func FuzzGossOutput(f *testing.F) {
	f.Add([]byte(gossReport))
	f.Add([]byte(`{"results":null,"summary":{"test-count":0}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		checks, err := parseGoss(b)
		if err != nil {
			return
		}
		for _, c := range checks {
			require.NotContains(t, c.Name+c.Detail, "\n")
		}
	})
}

func FuzzCloudInitStatus(f *testing.F) {
	f.Add("..{\"status\":\"done\"}")
	f.Add(`{"status":"done","errors":["a"],"recoverable_errors":{"W":["x\ny"]}}`)
	f.Fuzz(func(t *testing.T, out string) {
		s, err := parseCloudInit(out)
		if err != nil {
			return
		}
		detail, err := s.verdict(nil)
		if err == nil {
			require.Equal(t, "done", s.Status)
			require.Empty(t, s.Errors)
			require.NotContains(t, detail, "\n")
		}
	})
}

func TestFailedChecksAreNamedWithTheirDetails(t *testing.T) {
	v := &verification{}
	v.add("ssh", nil, "answered after 30s")
	require.NoError(t, v.verdict())
	v.add("machine-id", assert.AnError, "")
	f, ok := failure.In(v.verdict())
	require.True(t, ok)
	assert.Equal(t, "the disk boots, but 1 of 2 checks failed", f.What)
	assert.Equal(t, []string{"machine-id: " + oneLine(assert.AnError.Error())}, f.Lines)
}

func TestTheMachinesDiskIsLargerByATenthAtLeast(t *testing.T) {
	for _, size := range []int64{1 << 30, 10 << 30, 100<<30 + 512} {
		got := (&verification{Options: Options{VirtualSize: size}}).machineSize()
		assert.GreaterOrEqual(t, got, size+size/10-1<<20)
		assert.GreaterOrEqual(t, got, size+1<<30-1<<20)
		assert.Zero(t, got%(1<<20))
	}
}

func TestWhichChecksApplyFollowsFromTheOptions(t *testing.T) {
	names := func(o Options) (all []string) {
		for _, c := range (&verification{Options: o}).checks() {
			all = append(all, c.name)
		}
		return all
	}
	assert.Equal(t, []string{"cloud-init", "login user", "hostname", "machine-id"}, names(Options{VMUser: "crownlabs"}))
	assert.Contains(t, names(Options{VMUser: "crownlabs", BuildUser: "builder"}), "build user")
	assert.Contains(t, names(Options{VirtualSize: 1 << 30}), "root file system")
	baked := names(Options{VMUser: "crownlabs", BuildUser: "crownlabs", BakedUser: true})
	assert.Contains(t, baked, "baked user")
	assert.NotContains(t, baked, "build user")
	assert.Subset(t, names(Options{VMUser: "crownlabs", BuildUser: "builder", BakedUser: true}), []string{"baked user", "build user"})
}

// traces runs the script that looks for a user's traces on this host.
func traces(t *testing.T, user string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", buildUserTraces, "sh", user, "nobody-else").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

func TestTheTracesOfAUserAreFoundAndAnUnknownUserHasNone(t *testing.T) {
	assert.Contains(t, traces(t, "root"), "it is in /etc/passwd")
	assert.NotContains(t, traces(t, "no-such-user-here"), "no-such-user-here is")
	assert.NotContains(t, traces(t, "no-such-user-here"), "it is")
}

func TestChecksWithoutGossAreRefusedBeforeAnyBoot(t *testing.T) {
	_, err := Run(t.Context(), Options{Checks: "checks.yaml"}, progress.Discard)
	require.ErrorContains(t, err, "without goss")
}

func TestADiskThatNeverAnswersFailsWithTheConsolesLog(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 8<<20))
	o := Options{
		Disk: disk, Format: "raw", Dir: filepath.Join(t.TempDir(), "verify"), MemoryMiB: 64, CPUs: 1, VMUser: "crownlabs",
		Accel: accel.Verdict{Accelerator: accel.TCG}, Timeout: 300 * time.Millisecond, KeepOnError: true,
	}
	_, err := Run(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.FileExists(t, f.Log)
}

func TestAResultIsReadableByMachines(t *testing.T) {
	b, err := json.Marshal(Result{Checks: []Check{{Name: "ssh", OK: true}}, CloudInit: "done"})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"checks":[{"name":"ssh","ok":true}]`)
}
