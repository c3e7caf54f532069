package settings_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

// from reads and parses settings that come from this environment alone.
func from(t *testing.T, environment, flags map[string]string) (settings.Config, error) {
	t.Helper()
	s, err := settings.Read(flags, func(key string) (string, bool) { v, ok := environment[key]; return v, ok })
	require.NoError(t, err)
	return settings.Parse(s)
}

func TestTheDefaultsAreThoseOfTheOriginal(t *testing.T) {
	c, err := from(t, nil, nil)
	require.NoError(t, err)
	assert.True(t, c.PackerLog)
	assert.False(t, c.Desktop)
	assert.Equal(t, 2048, c.MemoryMiB)
	assert.Equal(t, int64(10<<30), c.DiskSize)
	assert.Equal(t, "crownlabs", c.VMUser)
	assert.Empty(t, c.GitURL, "git is not used unless asked for")
}

func TestAFlagWinsOverTheEnvironment(t *testing.T) {
	c, err := from(t, map[string]string{"MEMORY": "4096"}, map[string]string{"MEMORY": "1024"})
	require.NoError(t, err)
	assert.Equal(t, 1024, c.MemoryMiB)
}

func TestBadValuesAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, bad := range []struct{ name, value, says string }{
		{"MEMORY", "-1", "no amount of memory"},
		{"MEMORY", "12", "out of range"},
		{"DISK_SIZE", "9999999999999G", "no size"},
		{"DISK_SIZE", "100M", "out of range"},
		{"DISK_SIZE", "2000000001", "multiple of 512"},
		{"DISK_SIZE", "512", "out of range"},
		{"DISK_SIZE", "10240000", "out of range"},
		{"ANSIBLE_VAULT_PASSWORD_FILE", "/no/such/file", "no such file"},
		{"ANSIBLE_VAULT_IDENTITY_LIST", "lab@prompt", "nobody can type one"},
		{"ANSIBLE_VAULT_IDENTITY_LIST", "lab@/no/such/file", "no such file"},
		{"CPUS", "0", "processors"},
		{"BOOT_TIMEOUT", "soon", "duration"},
		{"BUILD_USER", "root", "login name"},
		{"BUILD_USER", "a;b", "login name"},
		{"BUILD_USER", "crownlabs", "also VM_USER"},
		{"SPARSIFY", "yes", "give auto"},
		{"QCOW2_COMPRESSION", "lz4", "give zstd"},
		{"ARCHITECTURE", "s390x", "give amd64 or arm64"},
		{"ANSIBLE_DIR", "/no/such/folder", "no such file"},
		{"ANSIBLE_DIR", file, "not a folder"},
		{"CA_FILE", t.TempDir(), "not a file"},
		{"CA_FILE", file, "has no certificate in it"},
		{"APT_MIRROR", "ftp://x", "http"},
		{"EXTRA_VARS", "[1, 2]", "mapping"},
		{"EXTRA_VARS", "{1: {2: 3}}", "mapping"},
		{"EXTRA_VARS", "@/no/such/file", "no such file"},
		{"EXTRA_VARS", "@/dev/zero", "/dev/zero is no file"},
		{"CA_FILE", "/dev/zero", "/dev/zero is not a file"},
		{"REGISTRY_PASS_FILE", "/dev/zero", "/dev/zero is not a file"},
		{"HYGIENE_ALLOW", fifo(t), "is not a file"},
		{"REGISTRY_USER", "me", "REGISTRY_PASS"},
		{"REGISTRY_PASS", "x", "REGISTRY_USER"},
		{"PACKER_LOG", "2", "true nor false"},
	} {
		_, err := from(t, map[string]string{bad.name: bad.value}, nil)
		if assert.Error(t, err, "%s=%s", bad.name, bad.value) {
			assert.Contains(t, err.Error(), bad.says, "%s=%s", bad.name, bad.value)
			assert.NotContains(t, err.Error(), "secret")
		}
	}
}

// CrownLabs' former builder took these, from Packer and Docker.
func TestWhatTheFormerBuilderTookIsUnderstoodOrNamed(t *testing.T) {
	for size, bytes := range map[string]int64{"10240": 10 << 30, "10g": 10 << 30, "10gi": 10 << 30, "10240m": 10 << 30, "10737418240": 10 << 30, "20G": 20 << 30} {
		c, err := from(t, map[string]string{"DISK_SIZE": size}, nil)
		require.NoError(t, err, size)
		assert.Equal(t, bytes, c.DiskSize, size)
	}
	account := map[string]string{"USERNAME": "me", "PASSWORD": "planted", "TARGET_REGISTRY": "harbor.example.org"}
	environ := func(name string) (string, bool) { v, ok := account[name]; return v, ok }
	_, err := settings.Read(nil, environ)
	require.ErrorContains(t, err, "rename them to REGISTRY_USER and REGISTRY_PASS")
	assert.NotContains(t, err.Error(), "planted")
	delete(account, "TARGET_REGISTRY") // a desktop's USERNAME is nobody's business
	_, err = settings.Read(nil, environ)
	require.NoError(t, err)
}

func TestACommandRefusesNoSettingThatItDoesNotRead(t *testing.T) {
	_, err := from(t, map[string]string{"REGISTRY_USER": "me", "CPUS": "none", "DISK_SIZE": "x"}, nil)
	var mistakes settings.Mistakes
	require.ErrorAs(t, err, &mistakes)
	assert.Len(t, mistakes, 3)
	assert.NoError(t, mistakes.For("pack"))
	assert.ErrorContains(t, mistakes.For("push"), "REGISTRY_PASS")
	assert.NotContains(t, mistakes.For("push").Error(), "CPUS")
}

func TestVaultsAreNamedByTheirFiles(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.WriteFile("pw", []byte("pw"), 0o600))
	c, err := from(t, map[string]string{"ANSIBLE_VAULT_PASSWORD_FILE": "pw", "ANSIBLE_VAULT_IDENTITY_LIST": "lab@pw, pw"}, nil)
	require.NoError(t, err)
	assert.Equal(t, dir+"/pw", c.VaultPasswordFile)
	assert.Equal(t, "lab@"+dir+"/pw,"+dir+"/pw", c.VaultIdentities)
}

// fifo is a pipe that nobody writes to.
func fifo(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(name, 0o600))
	return name
}

func TestProxiesAreFoundInTheirLowerCaseSpelling(t *testing.T) {
	c, err := from(t, map[string]string{"http_proxy": "http://proxy:3128"}, nil)
	require.NoError(t, err)
	assert.Equal(t, "http://proxy:3128", c.HTTPProxy)
}

func TestExtraVariablesComeFromTextOrAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vars.yaml")
	require.NoError(t, os.WriteFile(file, []byte("course: databases\n"), 0o600))
	for _, v := range []string{`{"course": "databases"}`, "@" + file} {
		c, err := from(t, map[string]string{"EXTRA_VARS": v}, nil)
		require.NoError(t, err)
		assert.Equal(t, settings.Vars{"course": "databases"}, c.ExtraVars)
	}
}

func TestSizesAreInPowersOf1024(t *testing.T) {
	for text, want := range map[string]int64{"10G": 10 << 30, "10Gi": 10 << 30, "10GiB": 10 << 30, "10240M": 10 << 30, "512": 512 << 20, "1T": 1 << 40} {
		got, err := settings.ParseSize(text)
		require.NoError(t, err)
		assert.Equal(t, want, got, text)
	}
}

func TestAgesHaveDaysAndWeeks(t *testing.T) {
	for text, want := range map[string]time.Duration{"7d": 168 * time.Hour, "2w": 336 * time.Hour, "12h": 12 * time.Hour, "0d": 0} {
		got, err := settings.ParseAge(text)
		require.NoError(t, err)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "7", "-7d", "7 d", "1.5d", "7s", "999999w", "1d12h", "9999999d"} {
		_, err := settings.ParseAge(text)
		require.ErrorContains(t, err, "age", text)
		require.ErrorContains(t, err, fmt.Sprintf("%q", text))
	}
}

func TestAnAgeInMinutesOrMonthsIsRefusedAsAmbiguous(t *testing.T) {
	_, err := settings.ParseAge("6m")
	require.EqualError(t, err, `"6m" could be minutes or months: give 12h, 7d or 26w`)
}

func FuzzSizesNeverOverflow(f *testing.F) {
	for _, s := range []string{"10G", "999999999999T", "", "Gi", "1K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := settings.ParseSize(s); err == nil && n < 0 {
			t.Errorf("%q is %d", s, n)
		}
	})
}

func TestEverySettingHasHelpAndACommandThatReadsIt(t *testing.T) {
	readers := strings.Fields("build provision sparsify verify pack push base doctor")
	for _, f := range settings.Fields() {
		assert.NotEmpty(t, f.Help, f.Env)
		read := false
		for _, r := range readers {
			read = read || f.In(r)
		}
		assert.True(t, read, f.Env)
	}
}

func TestAFieldTellsItsValueAndMasksASecret(t *testing.T) {
	s := settings.Settings{"ISO_URL": "https://example.org/x.qcow2", "REGISTRY_PASS": "s3cret"}
	told := map[string]string{}
	for _, f := range settings.Fields() {
		told[f.Env] = f.Value(s)
	}
	assert.Equal(t, "https://example.org/x.qcow2", told["ISO_URL"])
	assert.Equal(t, "***", told["REGISTRY_PASS"])
	assert.Empty(t, told["SUITE"])
}

func TestACommandIsGivenNoOthersSettings(t *testing.T) {
	s := settings.Settings{"ISO_URL": "https://example.org/x.qcow2", "ANSIBLE_PLAYBOOK": "course", "MEMORY": "4096", "REGISTRY_PASS": "s3cret"}
	only := s.Only("build-all")
	assert.Empty(t, only["ISO_URL"]+only["ANSIBLE_PLAYBOOK"], "images have their own")
	assert.Equal(t, "4096", only["MEMORY"])
	assert.Equal(t, "s3cret", only["REGISTRY_PASS"])
	assert.NotContains(t, fmt.Sprintf("%v %+v %#v", only, struct{ S settings.Settings }{only}, only), "s3cret")
	assert.Equal(t, "10G", only.Get("DISK_SIZE"), "a default")
	with := only.With(map[string]string{"ANSIBLE_PLAYBOOK": "course", "DISK_SIZE": "20G"})
	assert.Equal(t, []string{"course", "20G", "4096"}, []string{with["ANSIBLE_PLAYBOOK"], with["DISK_SIZE"], with["MEMORY"]})
}

func TestProvisionIsToldOfAllThatAnImageIsMadeFrom(t *testing.T) {
	made := []string{
		"ANSIBLE_PLAYBOOK", "DISK_SIZE", "BUILD_USER", "VM_USER", "BAKE_USER", "INSTALL_DESKTOP_ENVIRONMENT", "EXTRA_VARS", "APT_MIRROR",
		"SPARSIFY", "QCOW2_COMPRESSION", "ARCHITECTURE", "IMAGE_INPUTS",
	}
	for _, f := range settings.Fields() {
		if slices.Contains(made, f.Env) {
			assert.True(t, f.In("provision"), "%s: it writes down the input digest", f.Env)
		}
	}
}

func TestAnEpochThatIsNoNumberIsRefused(t *testing.T) {
	_, err := from(t, map[string]string{"SOURCE_DATE_EPOCH": "yesterday"}, nil)
	require.EqualError(t, err, `SOURCE_DATE_EPOCH: "yesterday" is no number of seconds: give e.g. 1764374400, or leave it out`)
	c, err := from(t, map[string]string{"SOURCE_DATE_EPOCH": "1764374400"}, nil)
	require.NoError(t, err)
	assert.Equal(t, "1764374400", c.SourceDateEpoch)
}
