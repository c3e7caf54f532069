package hygiene_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// used is a machine that was worked with, and can be generalised.
func used(more map[string]file) map[string]file {
	tree := with(map[string]file{
		"/usr/bin/cloud-init": {"#!/usr/bin/python3\n", 0o755},
		"/etc/passwd":         {"root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/bash\n", 0},
		"/etc/shadow":         {"root:$y$j9T$a$b:20000:0:99999:7:::\nsshd:!:20000::::::\nada:!$6$c$d:20000::::::\nguest::20000::::::\n", 0o640},
	})
	for path, f := range more {
		tree[path] = f
	}
	return tree
}

func TestWhatNoTwoMachinesMayHaveIsRepairedAtRest(t *testing.T) {
	t.Parallel()
	said, kept := filepath.Join(t.TempDir(), "said"), t.TempDir()
	hostile := "/var/log/x\"\n!touch \\ $(id)"
	disk := rawDisk(t, used(map[string]file{
		"/etc/machine-id":                 {"0123456789abcdef0123456789abcdef\n", 0},
		"/etc/ssh/ssh_host_ed25519_key":   {"key", 0o600},
		"/home/ada/.bash_history":         {"mysql -psecret\n", 0o600},
		"/home/ada/.aws/credentials":      {"aws_secret_access_key = abc\n", 0o600},
		"/var/log/journal/0123/a.journal": {"LPKSHHRH", 0o640},
		"/var/log/syslog":                 {"a line\n", 0o640},
		hostile:                           {"a line\n", 0},
	}))
	o := hygiene.GeneraliseOptions{Options: guestfished(t, disk, "cat >"+said+"; cp [0-9]* "+kept+"; echo \"$*\" >>"+said), VMUser: "ada"}
	o.BakedUser = true
	g, err := hygiene.Generalise(t.Context(), o, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "debian-13", g.System)
	b, err := os.ReadFile(said)
	require.NoError(t, err)
	script := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	assert.Equal(t, "--rw --format=raw --add "+disk+" --inspector", script[len(script)-1])
	for _, command := range []string{
		`truncate "/etc/machine-id"`, `rm-rf "/etc/ssh/ssh_host_ed25519_key"`, `rm-rf "/home/ada/.bash_history"`,
		`rm-rf "/var/log/journal/0123/a.journal"`, `truncate "/var/log/syslog"`,
		`truncate "/var/log/x\x22\x0a!touch\x20\x5c\x20$(id)"`,
	} {
		assert.Contains(t, script, command)
	}
	assert.Len(t, g.Repaired, 7)
	assert.Equal(t, hygiene.Finding{Rule: "password-hash", Path: "/etc/shadow", Detail: "locked root, ada, guest"}, g.Repaired[6])
	assert.NotContains(t, string(b), "credentials", "somebody has to decide about these")
	files, err := filepath.Glob(kept + "/*")
	require.NoError(t, err)
	require.Len(t, files, 1)
	shadow, err := os.ReadFile(files[0])
	require.NoError(t, err)
	assert.Equal(t, "root:*:20000:0:99999:7:::\nsshd:!:20000::::::\nada:*:20000::::::\nguest:*:20000::::::\n", string(shadow))
}

func TestAMachineThatCouldNotBeUsedIsRefusedBeforeItIsChanged(t *testing.T) {
	t.Parallel()
	changed := filepath.Join(t.TempDir(), "changed")
	for want, c := range map[string]struct {
		more   map[string]file
		user   string
		baked  bool
		change func(disk string)
	}{
		"the account ada has UID 1000, which the login user crownlabs has to get: set VM_USER=ada BAKE_USER=true": {user: "crownlabs"},
		"the machine has the account ada already: set BAKE_USER=true":                                             {user: "ada"},
		"the machine has no cloud-init":       {user: "ada", baked: true, more: map[string]file{"/usr/bin/cloud-init": {"", 0}}},
		"was not closed: the machine runs":    {user: "ada", baked: true, change: func(disk string) { debugfs(t, disk, "feature needs_recovery") }},
		"has no account eve, which BAKE_USER": {user: "eve", baked: true, more: map[string]file{"/etc/passwd": {"root:x:0:0:root:/root:/bin/bash\n", 0}}},
		"libguestfs cannot change the disk: ": {user: "ada", baked: true},
	} {
		tree := used(c.more)
		if _, without := c.more["/usr/bin/cloud-init"]; without {
			delete(tree, "/usr/bin/cloud-init")
		}
		disk := rawDisk(t, tree)
		script := "touch " + changed
		if c.change != nil {
			c.change(disk)
		} else if strings.HasPrefix(want, "libguestfs") {
			script = "echo 'guestfish: no operating system was found on this disk' >&2; exit 1"
		}
		o := hygiene.GeneraliseOptions{Options: guestfished(t, disk, script), VMUser: c.user}
		o.BakedUser = c.baked
		_, err := hygiene.Generalise(t.Context(), o, progress.Discard)
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "\n")
	}
	assert.NoFileExists(t, changed)
}
