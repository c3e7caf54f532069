package packer_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// run runs the pinned Packer in the template's directory.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if testing.Short() {
		t.Skip("compiles Packer and its plugins where the cache has none: minutes")
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	set, err := provision.EnsureTools(t.Context(), filepath.Join(cache, "diskforge", "tools"), runtime.GOARCH, progress.Discard)
	require.NoError(t, err)
	cmd := exec.Command(set.Packer, args...)
	cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_PLUGIN_PATH="+set.PluginDir, "PACKER_CONFIG_DIR="+t.TempDir(), "PACKER_CACHE_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// variables are good values for the template.
func variables(t *testing.T) map[string]any {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, nil, 0o600))
		return p
	}
	key := filepath.Join(dir, "key")
	require.NoError(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).Run())
	return map[string]any{
		"base": file("base.qcow2"), "output_directory": "out", "disk_size": 10 << 30,
		"seed_files": []string{file("user-data"), file("meta-data")}, "console_log": filepath.Join(dir, "console.log"),
		"ssh_username": "packer", "ssh_private_key_file": key,
		"playbook_file": file("playbook.yml"), "extra_vars_file": file("vars.json"),
	}
}

func validate(t *testing.T, vars map[string]any) (string, error) {
	t.Helper()
	b, err := json.Marshal(vars)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "vars.pkrvars.json")
	require.NoError(t, os.WriteFile(file, b, 0o600))
	return run(t, "validate", "-var-file="+file, ".")
}

func TestTheTemplateIsFormattedAndValid(t *testing.T) {
	out, err := run(t, "fmt", "-check", "-diff", ".")
	require.NoError(t, err, out)
	out, err = validate(t, variables(t))
	require.NoError(t, err, out)
	arm := variables(t)
	arm["qemu_binary"], arm["machine_type"], arm["cpu_model"] = "qemu-system-aarch64", "virt,gic-version=max", "max,pauth-impdef=on"
	arm["firmware_code"], arm["firmware_vars"] = arm["base"], arm["base"]
	out, err = validate(t, arm)
	require.NoError(t, err, out)
	raw := variables(t)
	raw["base_format"] = "raw"
	out, err = validate(t, raw)
	require.NoError(t, err, out)
}

func TestBadVariablesAreRefusedByTheTemplate(t *testing.T) {
	for _, bad := range []struct {
		name  string
		value any
		says  string
	}{
		{"base", "", "base image is missing"},
		{"base_format", "vmdk", "must be qcow2 or raw"},
		{"output_directory", "a,b", "without a comma"},
		{"disk_size", 1000, "multiple of 512"},
		{"memory", "much", "memory"},
		{"cpus", 0, "At least one CPU"},
		{"accelerator", "none", "must be kvm or tcg"},
		{"seed_files", []string{"one"}, "needs user-data"},
		{"console_log", "a,b", "without a comma"},
		{"ssh_username", "root; reboot", "Unix user name"},
		{"bake_user", "perhaps", "bool"},
	} {
		vars := variables(t)
		vars[bad.name] = bad.value
		out, err := validate(t, vars)
		require.Error(t, err, bad.name)
		assert.Contains(t, out, bad.says, bad.name)
	}
}

func TestTheCleaningScriptIsAShellScript(t *testing.T) {
	out, err := exec.Command("sh", "-n", "scripts/clean.sh").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = exec.Command("sh", "scripts/clean.sh", "no-such-phase", "user", "false").CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "usage:")
}
