package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// layoutOf packs a small raw disk.
func layoutOf(t *testing.T) (dir string, made oci.Result) {
	t.Helper()
	disk, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.WriteFile(disk, append(make([]byte, 510), 0x55, 0xAA), 0o600))
	made, err := oci.Pack(t.Context(), disk, dir, oci.Metadata{Architecture: "amd64"}, progress.Discard)
	require.NoError(t, err)
	return dir, made
}

func TestInspectTellsOfALayoutAndOfARegistry(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	dir, made := layoutOf(t)
	ref := host + "/lab/ubuntu:v1"
	code, _, stderr := run(t, "push", "--unverified", dir, ref)
	require.Zero(t, code, stderr)
	for what, printed := range map[string]string{dir: "oci:" + dir + "@" + made.Digest, ref: "oci://" + ref, host + "/lab/ubuntu@" + made.Digest: ""} {
		if printed != "" { // as builds print it, and ISO_URL takes it
			code, stdout, stderr := run(t, "inspect", printed)
			require.Zero(t, code, stderr)
			assert.Contains(t, stdout, made.Digest)
		}
		code, stdout, stderr := run(t, "inspect", what)
		require.Zero(t, code, stderr)
		assert.Contains(t, stdout, made.Digest)
		assert.Regexp(t, `ok +one disk +disk/disk.img`, stdout)

		code, stdout, stderr = run(t, "inspect", "--json", what)
		require.Zero(t, code, stderr)
		var r contract.Report
		require.NoError(t, json.Unmarshal([]byte(stdout), &r))
		assert.Equal(t, what, r.Reference)
		assert.Equal(t, made.Digest, r.Digest)
		assert.Equal(t, what != dir, r.BytesRead > 0)
	}
}

func TestInspectFailsWhereALayoutHasAnotherImage(t *testing.T) {
	t.Parallel()
	dir, made := layoutOf(t)
	code, stdout, stderr := run(t, "inspect", "oci:"+dir+"@sha256:"+strings.Repeat("0", 64))
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, dir+" has the image "+made.Digest+", not sha256:0000")
}

func TestInspectFailsWhereThereIsNoContainerdisk(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, "inspect", t.TempDir())
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "no OCI image layout")

	code, _, stderr = run(t, "inspect")
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "inspect REF|LAYOUT_DIR|ARCHIVE.tar")

	for _, what := range []string{"ubuntu", "ubuntu:24.04", "missing.tar", "out/diskforge-demo", "out/diskforge-demo:v1"} {
		code, _, stderr = run(t, "inspect", what)
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, "there is no folder or file "+what+" here, and it names no registry either")
	}
}

func TestInspectAndPushSayWhereTheLayoutIs(t *testing.T) {
	t.Parallel()
	dir, _ := layoutOf(t)
	for _, command := range [][]string{{"inspect"}, {"push", "--unverified"}} {
		code, _, stderr := run(t, append(command, filepath.Dir(dir))...)
		assert.Equal(t, 1, code)
		assert.Contains(t, stderr, "no OCI image layout")
		assert.Contains(t, stderr, ": the layout is "+dir+"\n")
	}
}

func TestInspectSaysThatATagIsNotThere(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	publish(t, host+"/lab/ubuntu", 3, "", "v1")
	code, _, stderr := run(t, "inspect", host+"/lab/ubuntu:v9")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "has no tag v9 of lab/ubuntu, or it is private")
	assert.NotContains(t, stderr, "login")
}

func TestInspectTellsWhatTheImageWasMadeFromWhenAndWhatIsInIt(t *testing.T) {
	t.Parallel()
	disk, dir := filepath.Join(t.TempDir(), "disk.raw"), filepath.Join(t.TempDir(), "layout")
	require.NoError(t, os.WriteFile(disk, append(make([]byte, 510), 0x55, 0xAA), 0o600))
	base := "sha256:" + strings.Repeat("7", 64)
	_, err := oci.Pack(t.Context(), disk, dir, oci.Metadata{
		Architecture: "amd64", BaseName: "https://cloud.example/debian.qcow2", BaseDigest: base,
		Annotations: map[string]string{oci.AnnotationBuilt: "2026-11-02T10:00:00Z", oci.AnnotationGuest: "debian 12\x1b[2J"},
	}, progress.Discard)
	require.NoError(t, err)
	code, stdout, stderr := run(t, "inspect", dir)
	require.Zero(t, code, stderr)
	assert.Regexp(t, `(?m)^base +https://cloud.example/debian.qcow2 `+base+`$`, stdout)
	assert.Regexp(t, `(?m)^built +2026-11-02T10:00:00Z$`, stdout)
	assert.Regexp(t, `(?m)^guest +debian 12`, stdout)
	assert.NotContains(t, stdout, "\x1b")

	plain, _ := layoutOf(t)
	_, stdout, _ = run(t, "inspect", plain)
	assert.NotRegexp(t, `(?m)^(base|built|guest) `, stdout, "what is not known has no line")
}

// An image that is no containerdisk: the report is printed, the exit code is 1.
func TestInspectReportsAnImageThatKubeVirtRefusesAndFails(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	image, err := random.Image(100, 2)
	require.NoError(t, err)
	ref, err := name.ParseReference(host + "/lab/other:v1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, image))
	code, stdout, stderr := run(t, "inspect", ref.String())
	assert.Equal(t, 1, code)
	assert.Regexp(t, `error +one disk +there is nothing in disk/`, stdout)
	assert.Contains(t, stderr, "breaks the contract of containerdisks")
}
