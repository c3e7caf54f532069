package contract_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestWhatDiskforgePacksKeepsEveryRule(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string][]byte{
		"zstd.qcow2": qcow2Disk(t, "-c", "-o", "compression_type=zstd"), "zlib.qcow2": qcow2Disk(t, "-c"),
		"plain.qcow2": qcow2Disk(t), "disk.raw": rawDisk(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, out := filepath.Join(t.TempDir(), name), filepath.Join(t.TempDir(), "layout")
			require.NoError(t, os.WriteFile(path, disk, 0o600))
			made, err := oci.Pack(t.Context(), path, out, oci.Metadata{
				Architecture: "amd64", InstanceType: "u1.medium", Preference: "ubuntu",
				Annotations: map[string]string{oci.AnnotationInputs: "sha256:inputs"},
			}, progress.Discard)
			require.NoError(t, err)
			for _, from := range []string{out, archiveOf(t, out, ""), archiveOf(t, out, "./")} {
				r, err := contract.Layout(t.Context(), from, progress.Discard)
				require.NoError(t, err)
				assert.Empty(t, worse(r))
				require.NoError(t, r.Err(contract.Warning))
				assert.Equal(t, made.Digest, r.Digest)
				assert.Equal(t, "sha256:inputs", r.Inputs)
				assert.Equal(t, uint64(8*mib), r.Disk.VirtualSize)
				assert.Equal(t, int64(len(disk)), r.Disk.FileSize)
				assert.Equal(t, "ubuntu", r.Config.Hints["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE"])
				assert.Zero(t, r.BytesRead)
				level, detail := says(t, r, "compression")
				assert.Equal(t, name == "zstd.qcow2", level == contract.Note, "Longhorn cannot read zstd: %s", detail)
			}
		})
	}
}

func TestTheReportSurvivesJSON(t *testing.T) {
	t.Parallel()
	r := inspected(t, keepsRules(good(t, qcow2Disk(t, "-c"))))
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var again contract.Report
	require.NoError(t, json.Unmarshal(b, &again))
	assert.Equal(t, r.Disk, again.Disk)
	assert.Equal(t, r.Checks, again.Checks)
	assert.Equal(t, "0444", again.Layers[0].Entries[1].Mode)
}

const hint = "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE"

func labelled(m made, key, value string) made {
	m.config.Config.Labels = map[string]string{key: value}
	return m
}

func hinted(m made, env string) made {
	m.config.Config.Env = []string{env}
	return m
}

func TestOtherPeoplesImagesAreReadRightly(t *testing.T) {
	t.Parallel()
	qcow2, raw := qcow2Disk(t, "-c"), rawDisk()
	docker := func(l stored) stored { l.mediaType = types.DockerLayer; return l }
	asDocker := func(m made) made {
		m.manifestType, m.configType, m.annotations = types.DockerManifestSchema2, types.DockerConfigJSON, nil
		return m
	}
	usual := []item{dir("disk/"), file("disk/disk.img", raw)}
	for name, c := range map[string]struct {
		image       made
		disk        string
		compression string
		warned      []string
	}{
		"a gzip layer":       {keepsRules(gzipLayer(t, archived(t, usual...))), "disk/disk.img", "gzip", nil},
		"a sparse entry":     {keepsRules(plainLayer(sparse(t, raw[:512], 8*mib))), "disk/disk.img", "none", []string{"layer content", "compression"}},
		"a packed sparse":    {keepsRules(gzipLayer(t, sparse(t, raw[:512], 8*mib))), "disk/disk.img", "gzip", []string{"layer content"}},
		"a file at the root": {keepsRules(gzipLayer(t, archived(t, file("disk.img", raw)))), "disk.img", "gzip", []string{"one disk"}},
		"bootc=0":            {labelled(keepsRules(gzipLayer(t, archived(t, usual...))), "containers.bootc", "0"), "disk/disk.img", "gzip", nil},
		"an empty hint":      {hinted(keepsRules(gzipLayer(t, archived(t, usual...))), hint+"="), "disk/disk.img", "gzip", nil},
		"a plain raw disk":   {keepsRules(plainLayer(archived(t, usual...))), "disk/disk.img", "none", []string{"compression"}},
		"a leading ./":       {keepsRules(gzipLayer(t, archived(t, dir("./"), dir("./disk/"), file("./disk/disk.img", raw)))), "disk/disk.img", "gzip", nil},
		"no folder's entry":  {keepsRules(gzipLayer(t, archived(t, file("disk/disk.img", raw)))), "disk/disk.img", "gzip", []string{"owner and modes"}},
		"docker media types": {asDocker(keepsRules(docker(gzipLayer(t, archived(t, usual...))))), "disk/disk.img", "gzip", []string{"manifest", "config", "layers", "annotations"}},
		"compressed twice":   {keepsRules(gzipLayer(t, archived(t, dir("disk/"), file("disk/d.qcow2", qcow2)))), "disk/d.qcow2", "gzip", []string{"compression"}},
		"a lying media type": {keepsRules(stored{archived(t, usual...), gzipLayer(t, archived(t, usual...)).packed, types.OCIUncompressedLayer}), "disk/disk.img", "gzip", []string{"layers"}},
		"other files below": {keepsRules(gzipLayer(t, archived(t, dir("etc/"), file("etc/hostname", []byte("x")))), gzipLayer(t, archived(t, usual...))),
			"disk/disk.img", "gzip", []string{"layers", "nothing else"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := inspected(t, c.image)
			require.NoError(t, r.Err(contract.Error), "%+v", worse(r))
			require.NotNil(t, r.Disk)
			assert.Equal(t, c.disk, r.Disk.Name)
			assert.Equal(t, uint64(8*mib), r.Disk.VirtualSize)
			assert.Equal(t, c.compression, r.Layers[len(r.Layers)-1].Compression)
			assert.Equal(t, c.compression == "none", r.Layers[len(r.Layers)-1].WholeRead == "")
			warned := []string{}
			for _, w := range worse(r) {
				warned = append(warned, w.Check)
			}
			assert.ElementsMatch(t, c.warned, warned)
		})
	}
}

func TestEveryBrokenRuleIsFound(t *testing.T) {
	t.Parallel()
	disk := qcow2Disk(t, "-c")
	fill := func(change func(*tar.Header)) made {
		i := file("disk/disk.qcow2", disk)
		change(&i.Header)
		return keepsRules(plainLayer(archived(t, dir("disk/"), i)))
	}
	folder := func(mode int64) made {
		d := dir("disk/")
		d.Mode = mode
		return keepsRules(plainLayer(archived(t, d, file("disk/disk.qcow2", disk))))
	}
	change := func(do func(*made)) made {
		m := keepsRules(good(t, disk))
		do(&m)
		return m
	}
	with := func(items ...item) made { return keepsRules(plainLayer(archived(t, items...))) }
	env := func(e string) made { return change(func(m *made) { m.config.Config.Env = []string{e} }) }
	for name, c := range map[string]struct {
		image made
		check string
		level contract.Level
		words string
	}{
		"owned by root":            {fill(func(h *tar.Header) { h.Uid, h.Gid = 0, 0 }), "owner and modes", contract.Warning, "0:0"},
		"mode 0644":                {fill(func(h *tar.Header) { h.Mode = 0o644 }), "owner and modes", contract.Warning, "0644"},
		"root's 0400":              {fill(func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 0, 0, 0o400 }), "readable", contract.Error, "user 107"},
		"0044 of user 107":         {fill(func(h *tar.Header) { h.Mode = 0o044 }), "readable", contract.Error, "user 107"},
		"a folder of 0444":         {folder(0o444), "readable", contract.Error, "cannot be entered"},
		"a folder of 0755":         {folder(0o755), "owner and modes", contract.Warning, "0555"},
		"the clock":                {fill(func(h *tar.Header) { h.ModTime = time.Unix(1.7e9, 0) }), "times", contract.Warning, "2023-11-14"},
		"an absolute path":         {with(dir("/disk/"), file("/disk/disk.qcow2", disk)), "names", contract.Error, "begins with a slash"},
		"a file like the folder":   {with(file("disk.txt", nil), dir("disk/"), file("disk/disk.qcow2", disk)), "names", contract.Error, "CDI takes"},
		"another file":             {with(file("README", nil), dir("disk/"), file("disk/disk.qcow2", disk)), "nothing else", contract.Warning, "README"},
		"two disks":                {with(dir("disk/"), file("disk/a.qcow2", disk), file("disk/b.qcow2", disk)), "one disk", contract.Error, "2 files"},
		"a disk twice":             {with(dir("disk/"), file("disk/a.qcow2", disk), file("disk/a.qcow2", disk)), "one disk", contract.Error, "more than once"},
		"a folder in the folder":   {with(dir("disk/"), dir("disk/sub/"), file("disk/sub/a.qcow2", disk)), "one disk", contract.Error, "directory"},
		"no disk":                  {with(dir("disk/")), "one disk", contract.Error, "nothing in disk/"},
		"no layer":                 {keepsRules(), "layers", contract.Error, "none"},
		"two layers":               {keepsRules(plainLayer(archived(t, dir("disk/"))), plainLayer(archived(t, file("disk/disk.qcow2", disk)))), "layers", contract.Warning, "2"},
		"a disk over another":      {keepsRules(good(t, disk), good(t, rawDisk())), "one disk", contract.Error, "more than once"},
		"a folder that is emptied": {keepsRules(good(t, disk), plainLayer(archived(t, file("disk/.wh..wh..opq", nil), file("disk/a.img", rawDisk())))), "one disk", contract.Error, "deletes"},
		"a folder that is deleted": {keepsRules(good(t, disk), plainLayer(archived(t, file(".wh.disk", nil)))), "one disk", contract.Error, "nothing in disk/"},
		"a deleted disk":           {keepsRules(good(t, disk), plainLayer(archived(t, file("disk/.wh.disk.qcow2", nil), file("disk/a.img", rawDisk())))), "one disk", contract.Error, "deletes"},
		"a layer of no kind":       {change(func(m *made) { m.layers[0].mediaType = "application/x" }), "layers", contract.Error, "application/x"},
		"a config of no kind":      {change(func(m *made) { m.configType = "application/x" }), "config", contract.Error, "CDI"},
		"a wrong diffID":           {change(func(m *made) { m.config.RootFS.DiffIDs[0].Hex = digestOf(nil).Hex }), "layer content", contract.Error, "unpacks to"},
		"no diffID":                {change(func(m *made) { m.config.RootFS.DiffIDs = nil }), "config", contract.Error, "lists 0 layers"},
		"windows":                  {change(func(m *made) { m.config.OS = "windows" }), "platform", contract.Error, "windows"},
		"no os":                    {change(func(m *made) { m.config.OS = "" }), "platform", contract.Warning, "os is not set"},
		"x86_64":                   {change(func(m *made) { m.config.Architecture = "x86_64" }), "platform", contract.Error, "images call it amd64"},
		"mips":                     {change(func(m *made) { m.config.Architecture = "mips" }), "platform", contract.Error, "KubeVirt runs"},
		"no architecture":          {change(func(m *made) { m.config.Architecture = "" }), "platform", contract.Error, "architecture is not set"},
		"no date":                  {change(func(m *made) { m.annotations = nil }), "annotations", contract.Warning, "created is missing"},
		"a date of no form":        {change(func(m *made) { m.annotations["org.opencontainers.image.created"] = "today" }), "annotations", contract.Warning, "RFC 3339"},
		"bootc":                    {change(func(m *made) { m.annotations["containers.bootc"] = "1" }), "annotations", contract.Warning, "labels only"},
		"a layer of zstd":          {keepsRules(zstdLayer(t, good(t, rawDisk()).raw)), "layers", contract.Error, "CDI up to 1.66"},
		"ostree":                   {change(func(m *made) { m.config.Config.Labels = map[string]string{"ostree.bootable": "1"} }), "annotations", contract.Error, "ostree.bootable"},
		"a hint that is no label":  {env("INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=a b"), "instance type hints", contract.Error, "label"},
		"a hint that is unknown":   {env("INSTANCETYPE_KUBEVIRT_IO_DEFAULT_SIZE=a"), "instance type hints", contract.Warning, "does not know"},
		"a hint for UEFI":          {env("INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=debian"), "instance type hints", contract.Error, "the preference debian does not start this disk, which has BIOS"},
		"another variable":         {env("FOO_KUBEVIRT_IO_BAR=a b"), "instance type hints", contract.Error, "FOO_KUBEVIRT_IO_BAR"},
		"a variable for no label":  {env("KUBEVIRT_IO_=a"), "instance type hints", contract.Error, "kubevirt.io/"},
		"a kind without a name":    {env("INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE_KIND=a"), "instance type hints", contract.Warning, "no name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := inspected(t, c.image)
			level, detail := says(t, r, c.check)
			assert.Equal(t, c.level, level, detail)
			assert.Contains(t, detail, c.words)
			err := r.Err(c.level)
			require.Error(t, err)
			f, ok := failure.In(err)
			require.True(t, ok)
			assert.NotContains(t, f.Error(), "\n")
		})
	}
}

func TestAWarningFailsOnlyWhereWarningsCount(t *testing.T) {
	t.Parallel()
	m := keepsRules(good(t, qcow2Disk(t, "-c")))
	m.annotations = nil
	m.config.OS = ""
	r := inspected(t, m)
	require.NoError(t, r.Err(contract.Error))
	err := r.Err(contract.Warning)
	require.ErrorContains(t, err, "in 2 ways")
	f, _ := failure.In(err)
	assert.Len(t, f.Lines, 2)
}

func TestOfSeveralImagesTheOneForAmd64IsTaken(t *testing.T) {
	t.Parallel()
	disk := qcow2Disk(t, "-c")
	arm, amd := keepsRules(good(t, disk)), keepsRules(good(t, disk))
	arm.config.Architecture, arm.platform = "arm64", &v1.Platform{OS: "linux", Architecture: "arm64"}
	amd.platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	r, err := contract.Layout(t.Context(), layout(t, arm, amd), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "amd64", r.Config.Architecture)
	level, detail := says(t, r, "index")
	assert.Equal(t, contract.Note, level)
	assert.Contains(t, detail, "linux/arm64, linux/amd64")
	assert.Contains(t, detail, "this is the one for linux/amd64")
}

func TestAnIndexIsChosenFromAsNodesAndCDIDo(t *testing.T) {
	t.Parallel()
	disk := qcow2Disk(t, "-c")
	of := func(system, architecture, variant string) made {
		m := keepsRules(good(t, disk))
		m.platform = &v1.Platform{OS: system, Architecture: architecture, Variant: variant}
		return m
	}
	for _, m := range []made{of("plan9", "mips", ""), of("linux", "amd64", "v3"), of("linux", "x86_64", "")} {
		_, err := contract.Layout(t.Context(), layout(t, m), progress.Discard)
		require.ErrorContains(t, err, "by which nodes and CDI choose")
	}
	r, err := contract.Layout(t.Context(), layout(t, of("linux", "amd64", "v3"), of("linux", "arm64", "")), progress.Discard)
	require.NoError(t, err)
	level, detail := says(t, r, "index")
	assert.Equal(t, contract.Error, level, "the config is amd64's: %s", detail)
	unknown := keepsRules(good(t, disk))
	r, err = contract.Layout(t.Context(), layout(t, of("linux", "arm64", ""), unknown), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "unknown", r.Index.Taken)
}

func TestADiskThatStartsOnAnotherArchitectureIsFound(t *testing.T) {
	t.Parallel()
	disk, err := os.ReadFile(testkit.BootDisk(t, "BOOTAA64.EFI"))
	require.NoError(t, err)
	for architecture, want := range map[string]contract.Level{"amd64": contract.Error, "arm64": contract.OK} {
		m := keepsRules(good(t, disk))
		m.config.Architecture = architecture
		r, err := contract.Layout(t.Context(), layout(t, m), progress.Discard)
		require.NoError(t, err)
		level, detail := says(t, r, "platform")
		assert.Equal(t, want, level, detail)
		if want == contract.Error {
			assert.Equal(t, `architecture is "amd64", but the boot loader of its disk is for arm64`, detail)
		}
	}
}

func TestImagesOfOtherToolsComeWithTheWayToALayout(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(d, "manifest.json"), []byte("[]"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(d, "version"), []byte("Directory Transport Version: 1.1\n"), 0o600))
	_, err := contract.Layout(t.Context(), d, progress.Discard)
	require.ErrorContains(t, err, "skopeo copy dir:"+d+" oci:NEW")
	saved := archiveOf(t, d, "")
	_, err = contract.Layout(t.Context(), saved, progress.Discard)
	require.ErrorContains(t, err, "skopeo copy docker-archive:"+saved+" oci:NEW")
}

func TestAFullTMPDIRIsNotTheImagesFault(t *testing.T) {
	full := testkit.MountTmpfs(t, "1m")
	t.Setenv("TMPDIR", full)
	noise := make([]byte, 8*mib)
	copy(noise, rawDisk()[:512])
	_, _ = rand.NewChaCha8([32]byte{3}).Read(noise[512:])
	raw := archived(t, dir("disk/"), file("disk/disk.img", noise))
	_, err := contract.Layout(t.Context(), layout(t, keepsRules(gzipLayer(t, raw))), progress.Discard)
	require.ErrorContains(t, err, "no space left on device")
	require.ErrorContains(t, err, "set TMPDIR")
}

func TestWhatIsNoLayoutIsNamed(t *testing.T) {
	t.Parallel()
	text := filepath.Join(t.TempDir(), "x.tar")
	require.NoError(t, os.WriteFile(text, []byte("hello"), 0o600))
	for path, words := range map[string]string{
		filepath.Join(t.TempDir(), "missing"): "no such file",
		t.TempDir():                           "no OCI image layout",
		text:                                  "no tar archive",
		"/dev/null":                           "not a regular file",
	} {
		_, err := contract.Layout(t.Context(), path, progress.Discard)
		require.ErrorContains(t, err, words)
		_, ok := failure.In(err)
		assert.True(t, ok)
	}
}

func TestACancelledInspectionEndsWithItsCause(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, l := range []stored{good(t, rawDisk()), gzipLayer(t, archived(t, dir("disk/"), file("disk/a", rawDisk())))} {
		_, err := contract.Layout(ctx, layout(t, keepsRules(l)), progress.Discard)
		require.ErrorIs(t, err, context.Canceled)
	}
}
