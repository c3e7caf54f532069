package provision

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// recorded feeds recorded output of Packer, a second a line, to a build.
func recorded(t *testing.T, name string) *build {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	require.NoError(t, err)
	defer f.Close()
	b := quiet(t)
	// In pieces that end anywhere, as a pipe delivers them.
	_, err = io.CopyBuffer(struct{ io.Writer }{&b.events}, struct{ io.Reader }{f}, make([]byte, 7))
	require.NoError(t, err)
	return b
}

// quiet is a build whose logs are in a temporary directory.
func quiet(t testing.TB) *build {
	t.Helper()
	dir := t.TempDir()
	b := &build{opts: Options{WorkDir: dir, Output: filepath.Join(dir, "disk.qcow2"), SSHTimeout: time.Minute}, run: dir}
	require.NoError(t, b.events.open(b.log("packer.log"), b.log("ansible.log")))
	t.Cleanup(b.events.close)
	now := time.Unix(0, 0)
	b.events.now = func() time.Time { now = now.Add(time.Second); return now }
	b.events.start(progress.Discard, nil)
	return b
}

func TestAGoodBuildIsRead(t *testing.T) {
	b := recorded(t, "good.txt")
	r := b.events.result()
	assert.True(t, r.Trimmed)
	assert.True(t, b.events.clean)
	var names []string
	for _, task := range r.Tasks {
		names = append(names, task.Name)
		assert.Positive(t, task.Took, task.Name)
		assert.NotEqual(t, report.Failed, task.Status, task.Name)
	}
	assert.Equal(t, []string{"Gathering Facts", "crownlabs : Write a file", "Never", "Fails, ignored", "restart it"}, names)
	assert.Equal(t, report.Changed, r.Tasks[1].Status)
	assert.Equal(t, report.Skipped, r.Tasks[2].Status)
	for _, d := range []time.Duration{r.Timings.Boot, r.Timings.Ansible, r.Timings.Clean, r.Timings.PowerOff} {
		assert.Positive(t, d)
	}
	ansible, err := os.ReadFile(b.log("ansible.log"))
	require.NoError(t, err)
	assert.Contains(t, string(ansible), "PLAY RECAP")
	assert.NotContains(t, string(ansible), "qemu.image")
}

// hostile are tasks as nobody means well with them.
const hostile = `- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: "<script>alert('xss-task')</script> | @everyone"
      ansible.builtin.debug: {msg: "the secret is {{ password }}"}
    - name: "esc \e]0;pwned\a\e[2J\u009b31m\u202e end"
      ansible.builtin.debug:
    - name: "newline\n::error::injected"
      ansible.builtin.debug:
    - name: "{{ password }}"
      ansible.builtin.fail: {msg: "with {{ password }}\n::error::told"}
`

func TestTasksOfAHostilePlaybookAreAllThereAndHarmless(t *testing.T) {
	b := quiet(t)
	b.events.secrets = strings.NewReplacer("hunter2222", "***")
	b.events.begin(configuring, "")
	site := filepath.Join(t.TempDir(), "site.yml")
	require.NoError(t, os.WriteFile(site, []byte(hostile), 0o644))
	err := host.Run(t.Context(), host.Cmd{
		Program: "ansible-playbook", Args: []string{"-i", "localhost,", "-e", "password=hunter2222", site},
		Env: host.Env("ANSIBLE_NOCOLOR=1", "ANSIBLE_CALLBACK_RESULT_FORMAT=json", "ANSIBLE_DISPLAY_FAILED_STDERR=0", "LC_ALL=C.UTF-8"), Stdout: &b.events,
	})
	require.Error(t, err)
	var names []string
	for _, task := range b.events.result().Tasks {
		names = append(names, task.Name)
	}
	assert.Equal(t, []string{"<script>alert('xss-task')</script> | @everyone", "esc \ufffd31m\ufffd end", "newline ::error::injected", "***"}, names)
	require.Equal(t, report.Failed, b.events.result().Tasks[3].Status)
	assert.Equal(t, "with ***", b.events.result().Tasks[3].Detail)
	for _, log := range []string{"packer.log", "ansible.log"} {
		written, err := os.ReadFile(b.log(log))
		require.NoError(t, err)
		assert.NotContains(t, string(written), "hunter2222")
		for line := range strings.Lines(string(written)) {
			assert.Equal(t, text.Lines(line), strings.TrimSuffix(line, "\n"), "%q", line)
		}
	}
}

func TestPackersDebugLogHoldsNoSecretAndNoEscapeSequence(t *testing.T) {
	b := quiet(t)
	b.opts.Mask = strings.NewReplacer("hunter2222", "***")
	log := filepath.Join(t.TempDir(), "debug.log")
	require.NoError(t, b.maskLog(log), "there is none where Packer did not start")
	require.NoError(t, os.WriteFile(log, []byte("ui: hunter2222\n\x1b[2Jlast"), 0o600))
	require.NoError(t, b.maskLog(log))
	written, err := os.ReadFile(log)
	require.NoError(t, err)
	assert.Equal(t, "ui: ***\nlast\n", string(written))
}

func TestAFailedTaskIsReadWithItsMessageAndItsCommandsLastLines(t *testing.T) {
	b := recorded(t, "failed.txt")
	err := b.explain(io.EOF)
	f, ok := failure.In(err)
	require.True(t, ok)
	assert.Equal(t, `the playbook's task "Install a package" failed: E: Unable to locate package no-such-package`, f.What)
	assert.Equal(t, []string{"TASK [Install a package]", "E: Unable to locate package no-such-package", "second to last", "last"}, f.Lines)
	assert.Equal(t, b.log("ansible.log"), f.Log)
}

func TestTheItemThatFailedIsTheCauseNotTheSum(t *testing.T) {
	b := quiet(t)
	_, err := io.WriteString(&b.events, `==> qemu.image: Connected to SSH!
==> qemu.image: TASK [With items] ****
==> qemu.image: ok: [default] => (item=one)
==> qemu.image: failed: [default] (item=two (2)) => {"ansible_loop_var": "item", "msg": "two is wrong"}
==> qemu.image: fatal: [default]: FAILED! => {"msg": "One or more items failed"}
`)
	require.NoError(t, err)
	task := b.events.failedTask()
	require.NotNil(t, task)
	assert.Equal(t, "two is wrong", task.Detail)
}

func TestResultsOfAllKindsAreExplained(t *testing.T) {
	for result, want := range map[string]string{
		`{"msg": "plain"}`:                              "plain",
		`{"msg": "first\nsecond"}`:                      "first",
		`{"msg": ["a", "b"]}`:                           `["a","b"]`,
		`{"censored": "hidden", "changed": false}`:      "hidden",
		`not JSON at all`:                               "not JSON at all",
		`{"msg": "cut off`:                              `{"msg": "cut off`,
		`{"changed": false, "rc": 3, "msg": "rc was "}`: "rc was",
		``:                            "Ansible gave no reason",
		`{"failed": true, "rc": 3}`:   `Ansible gave no reason: {"failed": true, "rc": 3}`,
		`{"msg": "", "message": "m"}`: "m",
		// include_vars and include_tasks of a file that is not there, and what was raised.
		`{"ansible_facts": {}, "changed": false, "message": "Could not find or access 'Debian-12.yml'"}`: "Could not find or access 'Debian-12.yml'",
		`{"reason": "Could not find or access '/x/no.yml' on the Ansible Controller."}`:                  "Could not find or access '/x/no.yml' on the Ansible Controller.",
		`{"exception": "Traceback (most recent call last):\n  File x\nKeyError: 'y'\n"}`:                 "KeyError: 'y'",
		`{"results": [{"msg": "fine"}, {"failed": true, "msg": "the second"}]}`:                          "the second",
	} {
		message, _ := explainResult(result)
		assert.Equal(t, want, message, result)
	}
	_, details := explainResult(`{"msg": "m", "stderr": "` + strings.Repeat(`x\n`, 50) + `end"}`)
	assert.Len(t, details, 10)
	assert.Equal(t, "end", details[9])
}

func TestAPackageThatCannotBeConfiguredIsNamedWithItsLastWords(t *testing.T) {
	message, details := explainResult(`{"msg": "'/usr/bin/apt-get install 'a' 'b'' failed: debconf: delaying package configuration\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n",
		"stderr": "debconf: delaying package configuration\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n",
		"stdout": "Setting up a (1) ...\r\n# A fatal error\r\nAborted\r\ndpkg: error processing package a (--configure):\r\n installed a package post-installation script subprocess returned error exit status 134\r\nSetting up b (1) ...\r\nErrors were encountered while processing:\r\n a\r\n"}`)
	assert.Equal(t, "dpkg: error processing package a (--configure): installed a package post-installation script subprocess returned error exit status 134", message)
	assert.Equal(t, []string{"Setting up a (1) ...", "# A fatal error", "Aborted"}, details)

	message, _ = explainResult(`{"msg": "m", "stdout": "dpkg: error processing archive /tmp/x.deb (--unpack):"}`)
	assert.Equal(t, "dpkg: error processing archive /tmp/x.deb (--unpack):", message)
}

func TestAGuestThatIsLostIsNotThePlaybooksFault(t *testing.T) {
	b := quiet(t)
	_, err := io.WriteString(&b.events, `==> qemu.image: Connected to SSH!
==> qemu.image: TASK [Upgrade] ****
==> qemu.image: fatal: [default]: UNREACHABLE! => {"changed": false, "msg": "Connection timed out", "unreachable": true}
`)
	require.NoError(t, err)
	f, ok := failure.In(b.explain(io.EOF))
	require.True(t, ok)
	assert.Equal(t, `the guest was lost during the task "Upgrade": Connection timed out`, f.What)
	assert.Contains(t, f.Log, "console.log")
	assert.False(t, f.Guest, "there is none to look into")
}

func TestAdviceFitsTheCause(t *testing.T) {
	for message, advice := range map[string]string{
		"No module named 'ansible.module_utils.six.moves'": "too old",
		"write failed: No space left on device":            "DISK_SIZE",
		"Cannot allocate memory":                           "MEMORY",
	} {
		b := quiet(t)
		f, _ := failure.In(b.taskFailed(&task{Task: report.Task{Name: "x", Detail: message}}, io.EOF))
		assert.Contains(t, f.Try, advice)
	}
}

func TestAGuestThatNeverAnsweredIsExplainedByItsConsole(t *testing.T) {
	b := quiet(t)
	require.NoError(t, os.WriteFile(b.log("console.log"), []byte("\x1b[2J\x1b[0mBooting\r\n[    1.0] \x1b[0;32mOK\x1b[0m start\r\n\r\nemergency mode\r\n"), 0o600))
	_, err := io.WriteString(&b.events, "==> qemu.image: Starting VM, booting disk image\n==> qemu.image: Waiting for SSH to become available...\n==> qemu.image: Timeout waiting for SSH.\n")
	require.NoError(t, err)
	f, ok := failure.In(b.explain(io.EOF))
	require.True(t, ok)
	assert.Equal(t, "the guest did not answer ssh within 1m0s", f.What)
	assert.Equal(t, []string{"Booting", "[    1.0] OK start", "emergency mode"}, f.Lines)
	assert.Equal(t, b.log("console.log"), f.Log)

	require.NoError(t, os.Remove(b.log("console.log")))
	f, _ = failure.In(b.explain(io.EOF))
	assert.Contains(t, f.Lines[0], "stayed silent")
}

func TestWhatQEMUSaysReachesTheUser(t *testing.T) {
	b := quiet(t)
	require.NoError(t, os.WriteFile(b.log("packer-debug.log"), []byte("2026/01/01 plugin: Qemu stderr: qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\nother\n"), 0o600))
	_, err := io.WriteString(&b.events, "==> qemu.image: Starting VM, booting disk image\n==> qemu.image: Error launching VM: Qemu failed to start.\nBuild 'qemu.image' errored after 1 second: x\n")
	require.NoError(t, err)
	f, ok := failure.In(b.explain(io.EOF))
	require.True(t, ok)
	assert.Contains(t, f.What, "cannot set up guest memory")
}

func TestACleaningThatFailsIsNamed(t *testing.T) {
	b := quiet(t)
	_, err := io.WriteString(&b.events, "==> qemu.image: Connected to SSH!\n==> qemu.image: Provisioning with shell script: /x/clean.sh\n==> qemu.image: diskforge: clean failed\n")
	require.NoError(t, err)
	f, ok := failure.In(b.explain(io.EOF))
	require.True(t, ok)
	assert.Equal(t, "cleaning the guest failed: clean failed", f.What)
}

func TestAGuestThatIsKeptUpTellsItsPortAndTheFailureOutlivesTheInterrupt(t *testing.T) {
	b := quiet(t)
	b.opts.KeepOnError = true
	var port string
	b.events.start(progress.Discard, func(p string) { port = p })
	_, err := io.WriteString(&b.events, `==> qemu.image: Found port for communicator (SSH, WinRM, etc): 3037.
==> qemu.image: Connected to SSH!
==> qemu.image: Provisioning with shell script: x
==> qemu.image: diskforge: clean failed
==> qemu.image: Provisioning step had errors: Running the cleanup provisioner, if present...
`)
	require.NoError(t, err)
	assert.Equal(t, "3037", port)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, b.stopped(ctx), "cleaning the guest failed")
}

func TestNothingTrimmedIsNotTrimmed(t *testing.T) {
	for line, trimmed := range map[string]bool{
		"diskforge: trim /: 9.3 GiB (9960075264 bytes) trimmed on /dev/vda1": true,
		"diskforge: trim /: 0 B (0 bytes) trimmed on /dev/vda1":              false,
		"diskforge: trim /boot: 1 MiB (1048576 bytes) trimmed on /dev/vda2":  false,
		"diskforge: trim fstrim: /: the discard operation is not supported":  false,
	} {
		b := quiet(t)
		_, err := io.WriteString(&b.events, "==> qemu.image: Provisioning with shell script: x\n==> qemu.image: "+line+"\n")
		require.NoError(t, err)
		assert.Equal(t, trimmed, b.events.result().Trimmed, line)
	}
}

func FuzzEvents(f *testing.F) {
	for _, name := range []string{"good.txt", "failed.txt"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte("==> qemu.image: Provisioning with Ansible\nTASK [] \nfatal: [x]: FAILED! => {\"msg\": {\"a\":[1]}}\n...ignoring\n"))
	f.Fuzz(func(t *testing.T, output []byte) {
		b := quiet(t)
		n, err := b.events.Write(output)
		require.NoError(t, err)
		require.Equal(t, len(output), n)
		require.Error(t, b.explain(io.EOF))
		for _, task := range b.events.result().Tasks {
			require.GreaterOrEqual(t, task.Took, time.Duration(0))
		}
	})
}

func TestATaskOnThisHostIsNoneInTheGuest(t *testing.T) {
	for line, inGuest := range map[string]bool{
		"ok: [default]":                               true,
		"changed: [default] => (item=x)":              true,
		"fatal: [default]: FAILED! => {}":             true,
		"skipping: [default]":                         false,
		"ok: [localhost]":                             false,
		"changed: [default -> localhost]":             false,
		"changed: [default -> localhost] => {}":       false,
		"skipping: no hosts matched":                  false,
		"included: /tree/tasks/x.yml for default":     false,
		"fatal: [localhost]: FAILED! => {\"msg\": 1}": false,
	} {
		b := quiet(t)
		_, err := io.WriteString(&b.events, "==> qemu.image: Connected to SSH!\n==> qemu.image: TASK [One] ****\n==> qemu.image: "+line+"\n")
		require.NoError(t, err)
		assert.Equal(t, inGuest, b.events.ran, line)
	}
}

// ansible_connection=local in a play's variables shows in no line of Ansible's.
func TestATaskByALocalConnectionIsNoneInTheGuest(t *testing.T) {
	b := quiet(t)
	b.events.reached = b.reached
	require.NoError(t, os.Mkdir(b.path("control"), 0o700))
	const lines = "==> qemu.image: Connected to SSH!\n==> qemu.image: TASK [One] ****\n==> qemu.image: changed: [default]\n"
	_, err := io.WriteString(&b.events, lines)
	require.NoError(t, err)
	assert.False(t, b.events.ran)
	require.NoError(t, os.WriteFile(b.path("control", "62fc4ca8df"), nil, 0o600)) // as ssh leaves it
	_, err = io.WriteString(&b.events, lines)
	require.NoError(t, err)
	assert.True(t, b.events.ran)
}

// As ansible-core 2.19.11 writes it with ALLOW_BROKEN_CONDITIONALS.
func TestConditionsThatAreNotBooleanAreNamed(t *testing.T) {
	b := quiet(t)
	_, err := io.WriteString(&b.events, `==> qemu.image: Connected to SSH!
    qemu.image: Origin: /tree/other.yml:1:1
    qemu.image: [DEPRECATION WARNING]: Conditional result (False) was derived from value of type 'list' at '/tree/a.yml:10:13'. Conditionals must have a boolean result. This feature will be removed from ansible-core version 2.23.
    qemu.image: Origin: /tree/a.yml:10:13
    qemu.image:
    qemu.image: 10       when: x.stdout_lines
    qemu.image: [DEPRECATION WARNING]: Something else. This feature will be removed.
    qemu.image: Origin: /tree/b.yml:3:13
    qemu.image: [DEPRECATION WARNING]: Conditional result (True) was derived from value of type 'str' at "<CLI option '-e'>". Conditionals must have a boolean result.
    qemu.image: Origin: /tree/a.yml:10:13
`)
	require.NoError(t, err)
	assert.Equal(t, []string{"/tree/a.yml:10"}, b.events.broken)
}
