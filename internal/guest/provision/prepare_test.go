package provision

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
)

func good(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{
		Base: filepath.Join(dir, "a base, with any name"), BaseFormat: "qcow2", Output: filepath.Join(dir, "out, put", "disk.qcow2"), WorkDir: filepath.Join(dir, "work"),
		Playbook: playbook.Source{Root: dir, File: "playbooks/a.yml"}, Accel: vm.Verdict{Accelerator: "tcg"},
		MemoryMiB: 2048, CPUs: 2, DiskSize: 10 << 30, BuildUser: "packer", VMUser: "crownlabs",
	}
}

func prepared(t *testing.T, opts Options) *build {
	t.Helper()
	b, err := newBuild(opts)
	require.NoError(t, err)
	t.Cleanup(b.close)
	require.NoError(t, b.prepare())
	return b
}

func read(t *testing.T, b *build, name string) string {
	t.Helper()
	content, err := os.ReadFile(b.path(name))
	require.NoError(t, err)
	return string(content)
}

func TestSecretsAreInFilesThatOnlyWeCanReadAndInNoOther(t *testing.T) {
	t.Setenv("REGISTRY_PASS", "planted-password")
	opts := good(t)
	opts.ExtraVars = map[string]any{"token": "planted-var"}
	opts.HTTPProxy = "http://u:planted-proxy@192.0.2.1:3128"
	b := prepared(t, opts)
	require.NoError(t, filepath.WalkDir(b.run, func(path string, entry os.DirEntry, err error) error {
		require.NoError(t, err)
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), path)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		if name := entry.Name(); name != "extra-vars.json" && name != "user-data" {
			assert.NotContains(t, string(content), "planted", path)
		}
		return nil
	}))
	assert.NotContains(t, strings.Join(b.environment("x"), "\n"), "planted")
}

func TestTheBuildUserHasAKeyOfThisBuildAndNoUIDOfALoginUser(t *testing.T) {
	b := prepared(t, good(t))
	var config struct {
		Users []struct {
			Name  string   `yaml:"name"`
			UID   int      `yaml:"uid"`
			Group string   `yaml:"primary_group"`
			Lock  bool     `yaml:"lock_passwd"`
			Keys  []string `yaml:"ssh_authorized_keys"`
		} `yaml:"users"`
		HostKeys map[string]string `yaml:"ssh_keys"`
		Boot     []any             `yaml:"bootcmd"`
	}
	userData := read(t, b, "seed/user-data")
	require.True(t, strings.HasPrefix(userData, "#cloud-config\n"))
	require.NoError(t, yaml.Unmarshal([]byte(userData), &config))
	require.Len(t, config.Users, 1)
	user := config.Users[0]
	assert.Equal(t, "packer", user.Name)
	assert.Equal(t, buildUID, user.UID)
	assert.Less(t, user.UID, 1000)
	assert.Equal(t, "users", user.Group)
	assert.True(t, user.Lock)
	assert.Empty(t, config.Boot)

	key, err := ssh.ParsePrivateKey([]byte(read(t, b, "key")))
	require.NoError(t, err)
	authorized, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(user.Keys[0]))
	require.NoError(t, err)
	assert.Equal(t, key.PublicKey().Marshal(), authorized.Marshal())
	assert.Equal(t, keyComment, comment)
	host, err := ssh.ParsePrivateKey([]byte(config.HostKeys["ed25519_private"]))
	require.NoError(t, err)
	assert.Contains(t, read(t, b, "known_hosts"), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(host.PublicKey()))))
}

func TestTheTemplateIsGivenTheMachineOfTheArchitecture(t *testing.T) {
	for architecture, want := range map[string]map[string]any{
		"amd64": {"qemu_binary": "qemu-system-x86_64", "machine_type": "pc", "cpu_model": "max", "firmware_code": "", "firmware_vars": ""},
		"arm64": {
			"qemu_binary": "qemu-system-aarch64", "machine_type": "virt,gic-version=max", "cpu_model": "max,pauth-impdef=on",
			"firmware_code": "/usr/share/AAVMF/AAVMF_CODE.fd", "firmware_vars": "/usr/share/AAVMF/AAVMF_VARS.fd",
		},
	} {
		opts := good(t)
		opts.Accel.Architecture = architecture
		var got map[string]any
		require.NoError(t, json.Unmarshal([]byte(read(t, prepared(t, opts), "vars.pkrvars.json")), &got))
		for name, value := range want {
			assert.Equal(t, value, got[name], name)
		}
	}
}

func TestABakedUserIsTheLoginUserWithTheUIDThatItGets(t *testing.T) {
	opts := good(t)
	opts.BakeUser = true
	b := prepared(t, opts)
	userData := read(t, b, "seed/user-data")
	assert.Contains(t, userData, "name: crownlabs\n")
	assert.NotContains(t, userData, "uid")
	assert.Contains(t, read(t, b, "vars.pkrvars.json"), `"bake_user": true`)
}

func TestTheBuildsOwnSettingsAreInstalledAtBootAndRemovedByTheCleaning(t *testing.T) {
	opts := good(t)
	opts.HTTPProxy, opts.HTTPSProxy, opts.NoProxy = "http://p:1", "http://p:2", "localhost"
	opts.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(opts.CAFile, []byte("PEM"), 0o600))
	b := prepared(t, opts)
	script, err := b.settingsScript()
	require.NoError(t, err)
	clean := read(t, b, "packer/scripts/clean.sh")
	for _, file := range []string{"/etc/environment", "/etc/apt/apt.conf.d/00diskforge-build", "/usr/local/share/ca-certificates/diskforge-build.crt"} {
		assert.Contains(t, script, file)
		assert.Contains(t, clean, file)
	}
	assert.Equal(t, "# diskforge build begin\nhttp_proxy=http://p:1\nHTTP_PROXY=http://p:1\nhttps_proxy=http://p:2\nHTTPS_PROXY=http://p:2\nno_proxy=localhost\nNO_PROXY=localhost\n# diskforge build end\n", b.proxyEnvironment())
	assert.Contains(t, b.aptProxies(), `Acquire::https::Proxy "http://p:2";`)

	opts.CAFile = filepath.Join(t.TempDir(), "missing.pem")
	b, err = newBuild(opts)
	require.NoError(t, err)
	t.Cleanup(b.close)
	require.ErrorContains(t, b.prepare(), "CA_FILE")
}

func TestExtraVariablesAreThoseOfCrownLabsAndTheUsersWin(t *testing.T) {
	opts := good(t)
	opts.Desktop, opts.AptMirror = true, "http://mirror/debian"
	opts.ExtraVars = map[string]any{"vm_user": "other", "list": []any{1.0, "two"}}
	var vars map[string]any
	require.NoError(t, json.Unmarshal([]byte(read(t, prepared(t, opts), "extra-vars.json")), &vars))
	assert.Equal(t, map[string]any{"crownlabs_mode": "true", "install_desktop_environment": "true", "vm_user": "other", "apt_mirror": "http://mirror/debian", "list": []any{1.0, "two"}}, vars)
}

func TestAnyFolderNameWillDo(t *testing.T) {
	opts := good(t)
	opts.WorkDir = filepath.Join(t.TempDir(), "my work, it's 100% mine: "+strings.Repeat("long", 30))
	b := prepared(t, opts)
	assert.Regexp(t, plainPath, b.run)
	assert.NotContains(t, read(t, b, "vars.pkrvars.json"), "it's")
	target, err := os.Readlink(b.path("base.qcow2"))
	require.NoError(t, err)
	assert.Equal(t, opts.Base, target)
	b.close()
	assert.NoDirExists(t, b.run)
}

func TestWhatAFormerRunLeftIsClearedAndNothingIsLeftAfterThisOne(t *testing.T) {
	opts := good(t)
	require.NoError(t, os.MkdirAll(filepath.Join(opts.WorkDir, "run", "tmp"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(opts.WorkDir, "run", "key"), []byte("old"), 0o600))
	require.NoError(t, os.MkdirAll(opts.Output+".partial", 0o700))
	b := prepared(t, opts)
	assert.NoDirExists(t, opts.Output+".partial")
	b.close()
	entries, err := filepath.Glob(filepath.Join(opts.WorkDir, "*"))
	require.NoError(t, err)
	for _, e := range entries {
		assert.Equal(t, ".log", filepath.Ext(e))
	}
}

func TestProcessesOfThisBuildAreEndedWhereverTheyHideAndNoOthers(t *testing.T) {
	b := prepared(t, good(t))
	start := func(env string) *exec.Cmd {
		cmd := exec.Command("setsid", "sleep", "300")
		cmd.Env = append(os.Environ(), env)
		require.NoError(t, cmd.Start())
		return cmd
	}
	ours, other := start(marker+b.id), start(marker+"another")
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	time.Sleep(50 * time.Millisecond) // until both have begun their program
	b.killLeftovers()
	require.Error(t, ours.Wait())
	assert.NoError(t, other.Process.Signal(syscall.Signal(0)))
}

func TestWhatAKilledRunLeftInTheTemporaryDirectoryIsRemovedByTheNext(t *testing.T) {
	short, err := os.MkdirTemp("", "t") // t.TempDir is too long for sockets
	require.NoError(t, err)
	defer os.RemoveAll(short)
	opts := good(t)
	opts.WorkDir = filepath.Join(opts.WorkDir, "with, odd characters")
	t.Setenv("TMPDIR", short)
	killed, err := newBuild(opts) // and never closed
	require.NoError(t, err)
	require.NoError(t, killed.prepare())
	require.True(t, strings.HasPrefix(killed.run, os.TempDir()), "%s", killed.run)
	require.NoError(t, os.WriteFile(killed.path("left"), nil, 0o600))

	next := prepared(t, opts)
	assert.Equal(t, killed.run, next.run)
	assert.NoFileExists(t, next.path("left"))
	next.close()
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	assert.Empty(t, left)

	require.NoError(t, os.Mkdir(killed.run, 0o755))
	next = prepared(t, opts)
	assert.NotEqual(t, killed.run, next.run)
	assert.DirExists(t, killed.run, "what may be somebody else's is left alone")
}

func TestALongTMPDIRIsLeftForAShorterFolder(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("jenkins-workspace-", 8))
	require.NoError(t, os.MkdirAll(long, 0o700))
	t.Setenv("TMPDIR", long)
	b, err := newBuild(Options{WorkDir: filepath.Join(long, "work"), Output: filepath.Join(long, "disk.qcow2"), Base: "base.qcow2"})
	require.NoError(t, err)
	defer b.close()
	// The longest names: a socket of ssh's while it is made, one of a plugin's.
	for _, socket := range []string{b.path("control", strings.Repeat("0", 10)+"."+strings.Repeat("x", 16)), b.path("tmp", "plugin"+strings.Repeat("0", 20))} {
		require.NoError(t, os.MkdirAll(filepath.Dir(socket), 0o700))
		l, err := net.Listen("unix", socket)
		require.NoError(t, err, socket)
		l.Close()
	}
	_, err = runDir(filepath.Join(long, "run"), "/proc/none")
	require.ErrorContains(t, err, "is too long for the name of a socket")
	require.ErrorContains(t, err, "set TMPDIR to a short path")
	left, err := os.ReadDir(long)
	require.NoError(t, err)
	assert.Len(t, left, 1, "only the work directory")
}
