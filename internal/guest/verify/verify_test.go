package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
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
		"nothing":    {out: "sh: cloud-init: not found", err: "cloud-init printed no status"},
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
 {"successful":true,"skipped":false,"resource-type":"Package","resource-id":"chrony","property":"installed","title":"","duration":1500,"summary-line-compact":"Package: chrony: installed: matches expectation: true"},
 {"successful":false,"skipped":false,"resource-type":"File","resource-id":"/etc/no such","property":"exists","title":"needed","summary-line-compact":"File: /etc/no such: exists:\n  Expected false to equal true"},
 {"successful":true,"skipped":true,"resource-type":"File","resource-id":"/etc/no such","property":"mode","title":"","summary-line-compact":"File: skipped"}],
 "summary":{"failed-count":1,"skipped-count":1,"test-count":3}}`

func TestEachGossCheckBecomesALine(t *testing.T) {
	checks, err := parseGoss([]byte(gossReport))
	require.NoError(t, err)
	assert.Equal(t, []Check{
		{Group: GroupPlaybook, Name: "package chrony installed", OK: true, Detail: "Package: chrony: installed: matches expectation: true"},
		{Group: GroupPlaybook, Name: "file /etc/no such exists", OK: false, Detail: "needed: File: /etc/no such: exists: Expected false to equal true"},
		{Group: GroupPlaybook, Name: "file /etc/no such mode", OK: true, Detail: "skipped"},
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
	m := &machine{}
	m.result.Checks = append(m.result.Checks, m.check("ssh", "answered after 30s", nil))
	require.NoError(t, m.verdict())
	m.result.Checks = append(m.result.Checks, m.check("machine-id", "", assert.AnError))
	f, ok := failure.In(m.verdict())
	require.True(t, ok)
	assert.Equal(t, "the disk boots, but 1 of 2 checks failed", f.What)
	assert.Equal(t, []string{"machine-id: " + text.Line(assert.AnError.Error())}, f.Lines)
}

func TestTheMachinesDiskIsLargerByATenthAtLeast(t *testing.T) {
	for _, size := range []int64{1 << 30, 10 << 30, 100<<30 + 512} {
		got := (&machine{Options: Options{VirtualSize: size}}).machineSize()
		assert.GreaterOrEqual(t, got, size+size/10-1<<20)
		assert.GreaterOrEqual(t, got, size+1<<30-1<<20)
		assert.Zero(t, got%(1<<20))
	}
}

func TestWhichChecksApplyFollowsFromTheOptions(t *testing.T) {
	names := func(o Options, k kind) (all []string) {
		for _, l := range (&machine{Options: o, kind: k}).looks() {
			if l.name != "" {
				all = append(all, l.name)
			}
		}
		return all
	}
	always := []string{"login user", "hostname", "virtiofs", "machine-id", "ssh host keys", "authorized keys", "passwords", "sudo", "writable by all", "environment", "apt's sources"}
	assert.Equal(t, append(always, "units"), names(Options{VMUser: "crownlabs", Desktop: true}, kind{}))
	assert.Contains(t, names(Options{VMUser: "crownlabs", BuildUser: "builder"}, kind{}), "build user")
	assert.NotContains(t, names(Options{VMUser: "crownlabs", BuildUser: "crownlabs", BakedUser: true}, kind{}), "build user")
	assert.Contains(t, names(Options{VMUser: "crownlabs", BuildUser: "builder", BakedUser: true}, kind{}), "build user")
	assert.Contains(t, names(Options{VirtualSize: 1 << 30}, kind{}), "root file system")
	assert.Contains(t, names(Options{}, kind{}), "port 6080")
	assert.Contains(t, names(Options{}, kind{crownLabs: true}), "cloud-init's schema")
	assert.Equal(t, "login_user; login_user_is_new", (&machine{}).looks()[0].command)
	assert.Equal(t, "login_user", (&machine{Options: Options{BakedUser: true}}).looks()[0].command)
}

// here runs a look's command on this host, as if it had been started at boot
// (seconds since 1970), and returns what it printed.
func here(t *testing.T, boot int64, command string, args ...string) string {
	t.Helper()
	return run(t, insideScript, boot, command, args...)
}

func run(t *testing.T, functions string, boot int64, command string, args ...string) string {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", fmt.Sprintf("%s\nboot=%d\n(%s\n) 2>&1\nexit 0", functions, boot, command), "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

func TestTheTracesOfAUserAreFoundAndAnUnknownUserHasNone(t *testing.T) {
	assert.Contains(t, here(t, 0, "build_user_traces", "root"), "it is in /etc/passwd")
	assert.Empty(t, here(t, 0, "build_user_traces", "no-such-user-here"))
}

func TestAUserWhoIsOlderThanTheMachineIsFound(t *testing.T) {
	assert.Contains(t, here(t, 0, "login_user", "", "no-such-user-here"), "got the uid none")
	assert.Contains(t, here(t, 0, "login_user_is_new", "", "no-such-user-here"), "has no home")
	const made = "stat() { echo 1000; }\n" // not every file system knows it
	assert.Contains(t, here(t, 1001, made+"login_user_is_new", "", "root"), "/root was in the image already")
	assert.Empty(t, here(t, 999, made+"login_user_is_new", "", "root"))
	assert.Empty(t, here(t, 1001, "stat() { echo -; }\nlogin_user_is_new", "", "root"))
}

func TestASudoRuleWithoutPasswordIsFoundHoweverItIsWritten(t *testing.T) {
	etc := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(etc, "sudoers.d"), 0o700))
	functions := strings.ReplaceAll(insideScript, "/etc/", etc+"/")
	for file, rules := range map[string]string{
		"sudoers":                        "Defaults env_reset\n# Defaults !authenticate\n%sudo ALL=(ALL:ALL) ALL\n",
		"sudoers.d/90-cloud-init-users":  "# User rules\nlab ALL=(ALL) NOPASSWD:ALL\n",
		"sudoers.d/no-AUTHENTICATE-here": "lab ALL=(ALL) PASSWD:/bin/authenticate\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(etc, file), []byte(rules), 0o600))
	}
	assert.Empty(t, run(t, functions, 0, "sudo_rules", "", "lab"))
	for _, line := range []string{
		"Defaults !authenticate", "Defaults:lab env_reset, ! authenticate", "Defaults\texempt_group = sudo", "other ALL=NOPASSWD: ALL", "#1000 ALL=NOPASSWD: ALL",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(etc, "sudoers.d/mine"), []byte(line+"\n"), 0o600))
		assert.Equal(t, etc+"/sudoers.d/mine:1: "+line+"\n", run(t, functions, 0, "sudo_rules", "", "lab"))
	}
}

// The sources that CrownLabs' cloud.cfg left a Debian guest with were Ubuntu's,
// and nothing noticed. apt-get itself says here what it would fetch from.
func TestSourcesOfAnotherReleaseAreFound(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "apt.conf")
	list, parts := filepath.Join(dir, "sources.list"), filepath.Join(dir, "parts")
	require.NoError(t, os.Mkdir(parts, 0o755))
	require.NoError(t, os.WriteFile(conf, []byte(`Dir::Etc::sourcelist "`+list+`"; Dir::Etc::sourceparts "`+parts+`";`), 0o600))
	t.Setenv("APT_CONFIG", conf)
	release := filepath.Join(dir, "os-release")
	t.Setenv("OS_RELEASE", release)
	const bookworm, mint = "ID=debian\nVERSION_CODENAME=bookworm\n", "ID=linuxmint\nID_LIKE='ubuntu debian'\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n"
	for _, c := range []struct{ os, source, says string }{
		{bookworm, "deb http://deb.debian.org/debian bookworm main\ndeb http://deb.debian.org/debian bookworm-updates main\ndeb http://security.debian.org/debian-security bookworm-security main", ""},
		{bookworm, "deb https://mirror.example.org/pub/debian stable main", ""},
		{bookworm, "deb https://download.docker.com/linux/debian/x noble stable", ""},
		{bookworm, "deb http://archive.ubuntu.com/ubuntu bookworm main", "http://archive.ubuntu.com/ubuntu/, which is ubuntu's, on debian"},
		{bookworm, "deb http://deb.debian.org/debian trixie main", "apt fetches trixie from http://deb.debian.org/debian/, on bookworm"},
		{bookworm, "", ""},
		{mint, "deb http://archive.ubuntu.com/ubuntu noble main", ""},
		{mint, "deb http://archive.ubuntu.com/ubuntu jammy main", "apt fetches jammy"},
	} {
		require.NoError(t, os.WriteFile(release, []byte(c.os), 0o600))
		require.NoError(t, os.WriteFile(list, []byte(c.source+"\n"), 0o600))
		out := here(t, 0, "apt_sources")
		if c.says == "" {
			assert.Empty(t, out, c.source)
		} else {
			assert.Contains(t, out, c.says)
		}
	}
}

func TestAnExcuseOfTheHygieneGateCountsInTheGuest(t *testing.T) {
	m := &machine{Options: Options{Excused: func(rule, path string) string {
		if rule == "nopasswd" && path == "/etc/sudoers" || rule == "password-hash" && path == "/etc/shadow" {
			return "the course's way"
		}
		return ""
	}}}
	sudo := m.excusable("nopasswd", "", "none")
	detail, err := sudo("/etc/sudoers:27: %sudo ALL=(ALL:ALL) NOPASSWD:ALL\n")
	require.NoError(t, err)
	assert.Equal(t, "none; /etc/sudoers is excused: the course's way", detail)
	_, err = sudo("/etc/sudoers:27: %sudo ALL=(ALL) NOPASSWD:ALL\n/etc/sudoers.d/x:1: x ALL=NOPASSWD: ALL\n")
	require.EqualError(t, err, "/etc/sudoers.d/x:1: x ALL=NOPASSWD: ALL")
	_, err = m.excusable("password-hash", "/etc/shadow", "none")("root has a password\n")
	require.NoError(t, err)
	_, err = (&machine{}).excusable("nopasswd", "", "none")("/etc/sudoers:27: x\n")
	require.Error(t, err)
}

func TestSecretsInAnEnvironmentAreNamedAndNotShown(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	sleep.Env = []string{"REGISTRY_PASS=hunter2", "https_proxy=http://me:hunter3@proxy:3128", "SSH_ASKPASS=/usr/bin/x", "EMPTY_TOKEN=", "HOME=/root", "URL=http://host:80/a@b"}
	require.NoError(t, sleep.Start())
	t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	out := run(t, strings.ReplaceAll(insideScript, "/proc/[0-9]*/environ", fmt.Sprintf("/proc/%d/environ /dev/null", sleep.Process.Pid)), 0, "environment")
	assert.Equal(t, "sleep has REGISTRY_PASS in its environment\nsleep has https_proxy in its environment\n", out)
}

func TestTheScriptsOutputIsTakenApart(t *testing.T) {
	looks := []look{{"a", "echo one; echo two", nil}, {"b", "cat; exit 3", nil}, {"c", `echo "$1 $((boot > 0))"; echo oops >&2`, nil}}
	out, err := exec.Command("sh", "-c", script(looks), "sh", "arg").CombinedOutput()
	require.NoError(t, err)
	parts, err := sections(string(out), len(looks))
	require.NoError(t, err)
	assert.Equal(t, "one\ntwo", parts[0])
	assert.Empty(t, parts[1])
	assert.Equal(t, "arg 1\noops", parts[2])
}

func TestAScriptThatBrokeOffPassesNothing(t *testing.T) {
	for _, out := range []string{"", "noise", "@@ 0\na", "@@ 0\na\n@@ 1\n", "@@ 0\n@@ 1 x\n@@ 2"} {
		_, err := sections(out, 2)
		require.Error(t, err, out)
	}
}

func TestAMachineIdOfTheDiskIsFound(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	_, err := machineIDOfThisBoot(id + "\n1000 1001")
	require.NoError(t, err)
	for out, want := range map[string]string{
		id + "\n1000 999":            "the disk carries the machine-id " + id,
		"\n1000 1001":                "not set at boot",
		"uninitialized\n1000 1001":   "not set at boot",
		"cat: /etc/machine-id\n1000": "not set at boot",
	} {
		_, err := machineIDOfThisBoot(out)
		require.ErrorContains(t, err, want, out)
	}
}

func TestUnitsAreJudgedByWhatSystemdSays(t *testing.T) {
	_, err := allUnitsRun("running")
	require.NoError(t, err)
	for out, want := range map[string]string{
		"degraded\na.service loaded failed failed A\nb.mount loaded failed failed B": "failed: a.service, b.mount;",
		"starting\n12 novnc.service start running":                                   "still waiting: 12 novnc.service start running",
		"degraded":                 `systemd says "degraded"`,
		"":                         `systemd says ""`,
		"sh: systemctl: not found": "systemd says",
	} {
		_, err := allUnitsRun(out)
		require.ErrorContains(t, err, want, out)
	}
}

func TestPackagesAreThoseThatAreInstalled(t *testing.T) {
	assert.Equal(t, []Package{{Name: "bash", Version: "5.2"}, {Name: "zstd", Version: "1:1.5~rc1"}},
		parsePackages("ii \tzstd\t1:1.5~rc1\nrc \tgone\t1\nii \tbash\t5.2\nii \tbash\t5.2\nnoise\nii \t\t1\nii \t"+strings.Repeat("x", 201)+"\t1"))
	assert.Empty(t, parsePackages(""))
}

func TestOfCrownLabsSeedOnlyTheTwoKnownErrorsPass(t *testing.T) {
	for _, said := range []string{
		"Error: Cloud config schema errors: mounts: [] is too short, network: Additional properties are not allowed ('network' was unexpected)\n\nError: Invalid schema: user-data\n\nFound cloud-config data types: user-data, network-config",
		"Error:\nCloud config schema errors: mounts: [] is too short\nCloud config schema deprecations: \n",
		"  Error: Cloud config schema errors: : Additional properties are not allowed ('network' was unexpected), mounts: [] should be non-empty",
		"Valid schema user-data",
	} {
		_, err := crownLabsSchema(said)
		require.NoError(t, err, said)
	}
	for said, want := range map[string]string{
		"Error: Cloud config schema errors: mounts: [] is too short, users.0: nonsense":                             "users.0: nonsense",
		"Error: Cloud config schema errors: Additional properties are not allowed ('network', 'x' were unexpected)": "it knows more",
		"sh: cloud-init: not found": "cannot be asked",
		"":                          "cannot be asked",
	} {
		_, err := crownLabsSchema(said)
		require.ErrorContains(t, err, want, said)
	}
}

func TestWarningsOfAnOldReleaseComeFromItsLog(t *testing.T) {
	m := &machine{}
	_, _ = m.keepWarnings("2026-11-23 10:45:29,978 - schema.py[WARNING]: Invalid cloud-config provided: Please\nnoise")
	f := m.cloudInit(answer{out: `{"status":"done","errors":[]}`})
	assert.False(t, f.checks[0].OK)
	assert.Equal(t, "it ended with warnings: WARNING: Invalid cloud-config provided: Please", f.checks[0].Detail)
	m.kind.crownLabs = true
	assert.True(t, m.cloudInit(answer{out: `{"status":"done","errors":[]}`}).checks[0].OK)
	assert.True(t, m.cloudInit(answer{out: `{"status":"done","extended_status":"done","errors":[]}`}).checks[0].OK)
	ignored := answer{out: `{"status":"done","extended_status":"degraded done","errors":[],` +
		`"recoverable_errors":{"WARNING":["'passwd' in user-data is ignored for existing user crownlabs"]}}`}
	m.VMUser = "crownlabs"
	assert.False(t, m.cloudInit(ignored).checks[0].OK, "nobody asked for the user to be there")
	m.BakedUser = true
	assert.True(t, m.cloudInit(ignored).checks[0].OK)
	m.kind.crownLabs = false
	assert.False(t, m.cloudInit(ignored).checks[0].OK)
	assert.True(t, m.cloudInit(answer{out: `{"status":"done","extended_status":"done","errors":[]}`}).checks[0].OK, "today's releases say it themselves")
	assert.False(t, m.cloudInit(answer{err: assert.AnError}).checks[0].OK)
}

// endless is a guest in which nothing that is waited for comes to an end.
func endless(ctx context.Context, _ string, _ io.Reader) (string, error) {
	<-ctx.Done()
	return "half an ans", context.Cause(ctx)
}

func TestAGuestThatNeverComesToAnEndFailsByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{Options: Options{Timeout: 5 * time.Minute, Checks: "checks.yaml", Goss: "goss"}, p: progress.Discard, shell: endless}
		status, ended := m.awaitCloudInit(t.Context())
		assert.False(t, ended)
		assert.Equal(t, []Check{{Group: GroupBoot, Name: "cloud-init", Detail: "cloud-init did not end within 20m0s"}}, m.cloudInit(<-status).checks)

		_, err := m.answers(t.Context(), m.looks())
		require.EqualError(t, err, "the looks into the guest did not end within 20m0s")
		_, err = m.runGoss(t.Context())
		require.EqualError(t, err, "the playbook's checks did not end within 20m0s")
		f := m.goss(t.Context(), closed())
		assert.Equal(t, []Check{{Group: GroupPlaybook, Name: "goss", Detail: "goss was not taken into the guest within 20m0s"}}, f.checks)
	})
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestCloudInitThatEndsIsNotWaitedForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{Options: Options{Timeout: 15 * time.Minute}, p: progress.Discard, shell: func(ctx context.Context, cmd string, _ io.Reader) (string, error) {
			if strings.HasPrefix(cmd, "until") {
				time.Sleep(29 * time.Minute)
				return "", nil
			}
			time.Sleep(29*time.Minute + 30*time.Second)
			return `{"status":"done","extended_status":"done"}`, context.Cause(ctx)
		}}
		status, ended := m.awaitCloudInit(t.Context())
		assert.True(t, ended)
		assert.True(t, m.cloudInit(<-status).checks[0].OK)
	})
}

func TestAConnectionThatBrokeIsNotTakenForCloudInitsWord(t *testing.T) {
	f := (&machine{}).cloudInit(answer{err: &vm.RunError{Command: "cloud-init status", Status: -1, Err: errors.New("the guest is frozen")}})
	assert.Equal(t, "in the guest: cloud-init status: the guest is frozen", f.checks[0].Detail)
	f = (&machine{}).cloudInit(answer{out: `{"status":"error"}`, err: &vm.RunError{Status: 1}})
	assert.Contains(t, f.checks[0].Detail, "it ended with status error")
}

func TestTwoMachinesMayShareNothing(t *testing.T) {
	first := &machine{}
	_, _ = first.keepIdentity("0123\nssh-ed25519 AAAA\n")
	assert.Empty(t, first.differences())
	second := first.another(withUEFI)
	second.compare = first.identity
	_, _ = second.keepIdentity("4567\nssh-ed25519 BBBB\n")
	checks := second.differences()
	assert.True(t, checks[0].OK)
	assert.Equal(t, "UEFI: machine-id and ssh host keys", checks[0].Name)
	assert.False(t, checks[1].OK, "it was not started by UEFI")
	_, _ = second.keepIdentity("uefi\nssh-ed25519 AAAA\n")
	checks = second.differences()
	assert.False(t, checks[0].OK)
	assert.Contains(t, checks[0].Detail, "ssh-ed25519 AAAA")
	assert.NotContains(t, checks[0].Detail, "BBBB")
	assert.True(t, checks[1].OK)
	second.kind = withSecureBoot
	assert.Contains(t, second.differences()[1].Detail, "nothing checked its boot loader's signature")
	_, _ = second.keepIdentity("secure\n")
	assert.True(t, second.differences()[1].OK)
	second.identity = nil
	assert.False(t, second.differences()[0].OK, "nothing was compared")
}

func TestFurtherMachinesDifferInTheirSeedsAndFirmware(t *testing.T) {
	first := &machine{Options: Options{Dir: "d", Full: true, Desktop: true, VMUser: "lab", Checks: "c", Goss: "g"}}
	assert.Equal(t, []int{DesktopPort}, first.boot().Forward)
	assert.True(t, first.boot().OwnHostKeys)
	second := first.another(kind{name: "CrownLabs seed", crownLabs: true})
	o := second.boot()
	assert.Equal(t, filepath.Join("d", "CrownLabs-seed"), o.Dir)
	assert.True(t, o.CrownLabs)
	assert.Empty(t, o.Forward)
	assert.Empty(t, second.Checks)
	assert.True(t, first.another(withUEFI).boot().UEFI)
	assert.False(t, first.another(withUEFI).boot().SecureBoot)
	assert.True(t, first.another(withSecureBoot).boot().UEFI)
	assert.True(t, first.another(withSecureBoot).boot().SecureBoot)
}

func TestAKernelWithoutADriverForSATAIsANoteNotABoot(t *testing.T) {
	m := &machine{Options: Options{Full: true}}
	require.NoError(t, m.further(t.Context(), m.candidates()[1:]))
	require.Len(t, m.result.Checks, 2)
	assert.True(t, m.result.Checks[0].OK)
	assert.Contains(t, m.result.Checks[0].Detail, "not supported: the kernel has no driver for it")
	assert.Contains(t, m.result.Checks[0].Detail, "bus: virtio")
	assert.True(t, m.result.Checks[1].OK)
	assert.Equal(t, "not supported: the disk has no EFI system partition with a boot loader", m.result.Checks[1].Detail)
	_, _ = m.keepIdentity("ahci\n0123")
	assert.True(t, m.ahci)
	m.UEFI = true
	assert.Equal(t, []string{"0123"}, m.identity)
	assert.Equal(t, []kind{crownLabsSeed, overSATA, withUEFI}, m.candidates())
	m.Accel.Architecture = "arm64"
	assert.Equal(t, []kind{crownLabsSeed}, m.candidates(), "it has no BIOS, nor SATA")
	m.Accel.Architecture = ""
	m.SecureBoot = true
	assert.Equal(t, withSecureBoot, m.candidates()[2])
	assert.True(t, m.another(overSATA).boot().SATA)
	m.Full, m.Persistent, m.Desktop = false, true, true
	assert.Equal(t, []kind{secondLife}, m.candidates())
	second := m.another(secondLife).boot()
	assert.True(t, second.Online && second.Reboots && second.OwnHostKeys)
	assert.Equal(t, []int{DesktopPort}, second.Forward)
}

func FuzzWhatTheGuestSays(f *testing.F) {
	f.Add("@@ 0\n0123456789abcdef0123456789abcdef\n1000 1001\n@@ 1\nii \ta\t1\n@@ 2\n")
	f.Add("degraded\na.service loaded failed failed A")
	f.Add("2026 - x.py[WARNING]: Cloud config schema errors: mounts: [] is too short")
	f.Fuzz(func(t *testing.T, out string) {
		if parts, err := sections(out, 2); err == nil {
			require.Len(t, parts, 2)
		}
		m := &machine{}
		for _, l := range []func(string) (string, error){
			machineIDOfThisBoot, allUnitsRun, hostnameInForce, crownLabsSchema, m.rootGrew, clean("ok"), m.keepPackages, m.keepIdentity, m.keepWarnings,
		} {
			detail, err := l(out)
			require.NotContains(t, m.check("x", detail, err).Detail, "\n")
		}
		for _, p := range m.result.Packages {
			require.LessOrEqual(t, len(p.Name)+len(p.Version), 2*maxField)
		}
	})
}

func TestADiskThatNeverAnswersFailsWithTheConsolesLog(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 8<<20))
	o := Options{
		Disk: disk, Format: "raw", Dir: filepath.Join(t.TempDir(), "verify"), MemoryMiB: 64, CPUs: 1, VMUser: "crownlabs",
		Accel: vm.Verdict{Accelerator: vm.TCG}, Timeout: 300 * time.Millisecond, KeepOnError: true,
	}
	_, err := Run(t.Context(), o, progress.Discard)
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.FileExists(t, f.Log)
}

func TestAResultIsReadableByMachines(t *testing.T) {
	b, err := json.Marshal(Result{Checks: []Check{{Group: GroupBoot, Name: "ssh", OK: true}}})
	require.NoError(t, err)
	assert.Contains(t, string(b), `"checks":[{"group":"boot","name":"ssh","ok":true}]`)
}
