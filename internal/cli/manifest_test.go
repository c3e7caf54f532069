package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestManifestWritesAStreamOrAFolder(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	dir, made := layoutOf(t)
	ref := host + "/lab/ubuntu:latest"
	code, _, stderr := run(t, "push", "--unverified", dir, ref)
	require.Zero(t, code, stderr)

	code, stream, stderr := run(t, "manifest", ref, "--workspace", "tea", "--memory", "4096", "--cpus", "3", "--install-desktop-environment")
	require.Zero(t, code, stderr)
	assert.Regexp(t, `(?m)^kind: DataImportCron$`, stream)
	assert.Contains(t, stream, "image: "+host+"/lab/ubuntu@"+made.Digest)
	assert.Contains(t, stream, "guest: 4Gi")
	assert.Contains(t, stream, "cores: 3")
	assert.Contains(t, stream, "guiEnabled: true")

	code, stream, stderr = run(t, "manifest", host+"/lab/ubuntu@"+made.Digest)
	require.Zero(t, code, stderr)
	assert.NotContains(t, stream, "DataImportCron", "a digest never moves")

	folder := filepath.Join(t.TempDir(), "out")
	code, stdout, stderr := run(t, "manifest", ref, "--kind", "vm,datavolume", "--format", "kustomize", "-o", folder)
	require.Zero(t, code, stderr)
	assert.Equal(t, folder+"\n", stdout)
	files, err := os.ReadDir(folder)
	require.NoError(t, err)
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	assert.Equal(t, []string{"datavolume.yaml", "kustomization.yaml", "vm.yaml"}, names)
}

func TestManifestTakesALayoutThatWasPackedForARegistry(t *testing.T) {
	t.Parallel()
	disk, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.WriteFile(disk, append(make([]byte, 510), 0x55, 0xAA), 0o600))
	made, err := oci.Pack(t.Context(), disk, dir, oci.Metadata{Architecture: "amd64", Reference: "registry.example.org/lab/debian:v1"}, progress.Discard)
	require.NoError(t, err)
	code, stdout, stderr := run(t, "manifest", dir, "--kind", "vm")
	require.Zero(t, code, stderr)
	assert.Contains(t, stdout, "image: registry.example.org/lab/debian@"+made.Digest)
}

func TestManifestSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	layout, _ := layoutOf(t)
	nowhere := "127.0.0.1:1/lab/ubuntu:v1"
	for _, c := range []struct {
		words string
		args  []string
	}{
		{"manifest REF|LAYOUT_DIR", nil},
		{"was packed for no registry", []string{layout}},
		{"give yaml or kustomize", []string{nowhere, "--format", "helm"}},
		{"name it with --output", []string{nowhere, "--format", "kustomize"}},
		{`--kind "pod" is not known: give datavolume, import-cron`, []string{nowhere, "--kind", "vm,pod"}},
		{"--kind crownlabs-vm needs --workspace", []string{nowhere, "--kind", "crownlabs-vm"}},
		{"--kind import-cron needs an image that is named by a tag", []string{"127.0.0.1:1/a@sha256:" + strings.Repeat("0", 64), "--kind", "import-cron"}},
		{"no tag", []string{"a.example/b"}},
		{"leave out http://", []string{"http://a.example/b"}},
	} {
		code, stdout, stderr := run(t, append([]string{"manifest"}, c.args...)...)
		assert.Equal(t, 2, code, c.args)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, c.words)
	}
	code, _, stderr := run(t, "manifest", "ubuntu")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "there is no folder or file ubuntu here")
}

func TestManifestRefusesWhatIsNoContainerdiskAndAFolderThatCannotBe(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	image, err := random.Image(100, 2)
	require.NoError(t, err)
	ref, err := name.ParseReference(host + "/lab/other:v1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, image))
	code, stdout, stderr := run(t, "manifest", ref.String())
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Regexp(t, `is no containerdisk that KubeVirt and CDI take: .*diskforge inspect `, stderr)

	dir, _ := layoutOf(t)
	good := host + "/lab/ubuntu:v1"
	code, _, stderr = run(t, "push", "--unverified", dir, good)
	require.Zero(t, code, stderr)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	code, stdout, stderr = run(t, "manifest", good, "-o", file)
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "not a directory")
}
