package engine

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// settings are those of the environment, checked.
func givenSettings(t *testing.T, environ map[string]string) *Build {
	t.Helper()
	s, err := settings.Read(nil, func(name string) (string, bool) { v, ok := environ[name]; return v, ok })
	require.NoError(t, err)
	c, err := pipeline.Parse(s, pipeline.NeedBase, pipeline.NeedPlaybook, pipeline.NeedTarget)
	require.NoError(t, err)
	return &Build{Settings: s, Config: c}
}

func TestSettingsTravelAsTheyWereGiven(t *testing.T) {
	in, err := givenSettings(t, map[string]string{
		"ISO_URL": "https://example.org/a.qcow2", "ISO_CHECKSUM": "file:https://example.org/SHA256SUMS", "ANSIBLE_PLAYBOOK": "debian-base",
		"DISK_SIZE": "20G", "BAKE_USER": "1", "GIT_ANSIBLE_BRANCH": "v1", "EXTRA_VARS": `{"a": 1}`, "REGISTRY_USER": "me", "REGISTRY_PASS": "hidden-word",
	}).inputs(t.Context())
	require.NoError(t, err)
	for name, want := range map[string]string{
		"ISO_URL": "https://example.org/a.qcow2", "ISO_CHECKSUM": "file:https://example.org/SHA256SUMS",
		"DISK_SIZE": "20G", "GIT_ANSIBLE_BRANCH": "v1", "EXTRA_VARS": `{"a": 1}`, "BAKE_USER": "1",
	} {
		assert.Equal(t, want, in.set[name], name)
	}
	assert.NotContains(t, in.set, "MEMORY", "a default is the program's own")
	assert.NotContains(t, in.set, "BASE_FROM_PACKAGES")
	assert.Equal(t, "debian-base", in.playbook)
	assert.NotContains(t, fmt.Sprint(in), "hidden-word")
}

func TestFilesOfThisHostTravelAsFiles(t *testing.T) {
	dir := t.TempDir()
	base, vars := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "vars.yml")
	require.NoError(t, os.WriteFile(base, []byte("abc"), 0o600))
	require.NoError(t, os.WriteFile(vars, []byte("a: 1"), 0o600))
	server := httptest.NewTLSServer(nil)
	server.Close()
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	const sum = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	environ := map[string]string{"ISO_URL": base, "ISO_CHECKSUM": sum, "ANSIBLE_PLAYBOOK": "a", "ANSIBLE_DIR": dir, "EXTRA_VARS": "@" + vars, "CA_FILE": ca}
	in, err := givenSettings(t, environ).inputs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"base": base, "extraVars": vars, "caFile": ca, "hygieneAllow": ""}, in.files)
	assert.Equal(t, dir, in.dirs["ansible"])
	assert.Equal(t, sum, in.set["ISO_CHECKSUM"])
	assert.NotContains(t, in.set, "ISO_URL")
	assert.NotContains(t, in.set, "EXTRA_VARS")

	environ["ISO_CHECKSUM"] = "sha256:" + fmt.Sprintf("%064d", 0)
	_, err = givenSettings(t, environ).inputs(t.Context())
	assert.Error(t, err, "a wrong checksum of a local file")
}

func TestAListIsCheckedWhereItsKeysAre(t *testing.T) {
	dir := t.TempDir()
	const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	list, keyring := filepath.Join(dir, "SHA256SUMS"), filepath.Join(dir, "keyring")
	require.NoError(t, os.WriteFile(list, []byte(sum+"  x.img\n"), 0o600))
	publisher, err := openpgp.NewEntity("publisher", "", "", nil)
	require.NoError(t, err)
	var key, signature bytes.Buffer
	require.NoError(t, publisher.Serialize(&key))
	require.NoError(t, os.WriteFile(keyring, key.Bytes(), 0o600))
	require.NoError(t, openpgp.DetachSign(&signature, publisher, strings.NewReader(sum+"  x.img\n"), nil))
	b := givenSettings(t, map[string]string{"ISO_URL": "https://example.org/x.img", "ISO_CHECKSUM": "file:" + list, "BASE_KEYRING": keyring, "ANSIBLE_PLAYBOOK": "a"})
	_, err = b.inputs(t.Context())
	require.ErrorContains(t, err, "it is not signed")
	require.NoError(t, os.WriteFile(list+".gpg", signature.Bytes(), 0o600))
	in, err := b.inputs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+sum, in.set["ISO_CHECKSUM"])
	assert.Equal(t, "https://example.org/x.img", in.set["ISO_URL"])
	assert.NotContains(t, in.set, "BASE_KEYRING")
}

func TestAContainerdiskAsBaseTravelsByNameOrAsItsLayout(t *testing.T) {
	const sum = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	url := "oci://registry.example/lab/base@" + sum
	in, err := givenSettings(t, map[string]string{"ISO_URL": url, "ANSIBLE_PLAYBOOK": "a"}).inputs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, url, in.set["ISO_URL"])
	assert.NotContains(t, in.files, "base")

	layout := t.TempDir()
	for given, want := range map[[2]string]string{{"@" + sum, ""}: sum, {"", sum}: sum, {"", "inputs:" + sum}: "inputs:" + sum} {
		in, err = givenSettings(t, map[string]string{"ISO_URL": "oci:" + layout + given[0], "ISO_CHECKSUM": given[1], "ANSIBLE_PLAYBOOK": "a"}).inputs(t.Context())
		require.NoError(t, err)
		assert.Equal(t, layout, in.dirs["baseLayout"])
		assert.Equal(t, want, in.set["ISO_CHECKSUM"])
		assert.NotContains(t, in.set, "ISO_URL")
	}
}

func TestWhatTheEngineCannotReachIsRefused(t *testing.T) {
	for says, environ := range map[string]map[string]string{
		"TARGET_REGISTRY":             {"BASE_FROM_PACKAGES": "true", "TARGET_REGISTRY": "127.0.0.1:5000", "IMAGE_NAME": "a", "IMAGE_TAG": "1"},
		"IMAGE_TAG is not set":        {"BASE_FROM_PACKAGES": "true", "TARGET_REGISTRY": "harbor.example.org", "IMAGE_NAME": "a"},
		"ISO_CHECKSUM":                {"ISO_URL": "https://example.org/a", "ISO_CHECKSUM": "file:/sums"},
		"ANSIBLE_VAULT_PASSWORD_FILE": {"BASE_FROM_PACKAGES": "true", "ANSIBLE_VAULT_IDENTITY_LIST": "labs@engine.go"},
		"ISO_URL":                     {"ISO_URL": "oci://localhost:5000/a:1", "ISO_CHECKSUM": "inputs:sha256:" + strings.Repeat("a", 64)},
	} {
		environ["ANSIBLE_PLAYBOOK"] = "a"
		_, err := givenSettings(t, environ).inputs(t.Context())
		assert.ErrorContains(t, err, says)
	}
}

func TestAnEngineThatIsNamedMustAnswer(t *testing.T) {
	const variable = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Setenv(variable, "tcp://"+listener.Addr().String())
	assert.NoError(t, answers(t.Context()))
	require.NoError(t, listener.Close())
	err = answers(t.Context())
	require.Error(t, err)
	assert.ErrorContains(t, unreachable(err), "no Dagger engine answers at tcp://127.0.0.1:")
	t.Setenv(variable, "docker-container://engine")
	assert.NoError(t, answers(t.Context()), "only its driver knows how to reach it")
}

func TestTheErrorIsTheStagesOwnLine(t *testing.T) {
	err := explain(errors.New("input: diskforge.build provision: the task X failed\n  | fatal: no\n  |   indented [traceparent:0-1]"), "/log")
	assert.EqualError(t, err, "provision: the task X failed")
	f, ok := failure.In(err)
	require.True(t, ok)
	assert.Equal(t, "/log", f.Log)
	assert.Equal(t, []string{"fatal: no", "  indented"}, f.Lines, "the evidence stands below the line")
	assert.NoError(t, explain(nil, ""))
	for _, said := range []string{"input: diskforge.build.report hygiene: 2 leftovers", "diskforge.build hygiene: 2 leftovers", "hygiene: 2 leftovers"} {
		assert.EqualError(t, explain(errors.New(said), ""), "hygiene: 2 leftovers")
	}
}

func TestEverySettingOfABuildTravelsOrIsSaidNotTo(t *testing.T) {
	ways := []string{"", "folder", "file", "secret", "refused", "digest", "address", "login", "export"}
	for _, f := range settings.Fields() {
		if !f.In("build") {
			continue
		}
		_, ignored := strings.CutPrefix(f.Engine, "none: ")
		if why, ok := strings.CutPrefix(f.Engine, "refused: "); ok {
			_, err := (&Build{Settings: settings.Settings{f.Env: "distinct"}}).inputs(t.Context())
			require.ErrorContains(t, err, why)
			continue
		}
		assert.True(t, ignored || slices.Contains(ways, f.Engine), "%s gets to the engine in one way, or it is said why it has no effect there", f.Env)
		if f.Env == "ISO_URL" || f.Env == "ANSIBLE_PLAYBOOK" {
			continue // files travel as files, and the playbook has an argument of its own
		}
		in, err := (&Build{Settings: settings.Settings{f.Env: "distinct"}}).inputs(t.Context())
		require.NoError(t, err)
		_, travels := in.set[f.Env]
		assert.Equal(t, f.Engine == "" || f.Engine == "address" && f.Env != "PUSH", travels, f.Env)
	}
}

func TestASettingWithoutEffectIsWarnedOf(t *testing.T) {
	b := givenSettings(t, map[string]string{"BASE_FROM_PACKAGES": "true", "ANSIBLE_PLAYBOOK": "a", "PACKER_LOG": "0", "BASE_TIMEOUT": "2h"})
	var out bytes.Buffer
	b.UI = ui.New(&out, false)
	defer b.UI.Close()
	b.warn()
	assert.Contains(t, out.String(), "PACKER_LOG has no effect with --engine dagger")
	assert.NotContains(t, out.String(), "CACHE_DIR")
	in, err := b.inputs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "2h", in.set["BASE_TIMEOUT"])
}

func TestOnlyWhatStagesSayIsShown(t *testing.T) {
	for line, want := range map[string]string{
		"48  : ┆ [12.1s] | 09:05:18 INFO starting the guest stage=provision elapsed=4.1s": "starting the guest stage=provision elapsed=4.1s",
		"1   : [0.0s] | cloud url=https://example.org":                                    "",
		"48  : ┆ withExec diskforge base":                                                 "",
	} {
		assert.Equal(t, want, activity(line))
	}
}

func TestTheModuleIsTheCheckoutsElseTheReleases(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	ref, err := reference("v1.2.3")
	require.NoError(t, err)
	assert.Equal(t, root, ref)

	t.Chdir(t.TempDir())
	ref, err = reference("v1.2.3")
	require.NoError(t, err)
	assert.Equal(t, "github.com/netgroup-polito/diskforge@v1.2.3", ref)
	for _, version := range []string{"(devel)", "unknown", "v0.0.0-20261123-0123456789ab", "v1.2.3+dirty"} {
		_, err = reference(version)
		assert.ErrorContains(t, err, "checkout", version)
	}
}
