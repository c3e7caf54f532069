package contract_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// planted makes a file whose content must not be read, and returns its path.
func planted(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "planted")
	require.NoError(t, os.WriteFile(path, []byte("PLANTED"), 0o600))
	return path
}

// poked changes bytes of a disk image.
func poked(disk []byte, offset int, b ...byte) []byte {
	changed := bytes.Clone(disk)
	copy(changed[offset:], b)
	return changed
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// created is an empty disk that qemu-img makes.
func created(t *testing.T, args ...string) []byte {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, append(append([]string{"create", "-f", "qcow2"}, args...), path, "64M")...)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func TestAHostileDiskNeitherPassesNorOpensAnotherFile(t *testing.T) {
	t.Parallel()
	secret, disk := planted(t), qcow2Disk(t, "-c")
	snapshot := filepath.Join(t.TempDir(), "snapshot.qcow2")
	require.NoError(t, os.WriteFile(snapshot, qcow2Disk(t), 0o600))
	qemuImg(t, "snapshot", "-c", "before", snapshot)
	withSnapshot, err := os.ReadFile(snapshot)
	require.NoError(t, err)
	// qemu-img cannot make an encrypted one on a busy host, where it fails to
	// measure its key derivation.
	for name, c := range map[string]struct {
		disk  []byte
		check string
		words string
	}{
		"a backing file":                           {created(t, "-b", secret, "-F", "raw"), "no other files", secret},
		"a backing protocol":                       {created(t, "-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw"), "no other files", "nbd://"},
		"a json: backing file":                     {created(t, "-u", "-b", `json:{"driver":"file","filename":"/etc/shadow"}`, "-F", "raw"), "no other files", "shadow"},
		"an external data file":                    {poked(disk, 72, be64(1<<2)...), "no other files", "another file"},
		"encrypted with LUKS":                      {poked(disk, 32, be32(2)...), "encryption", "encrypted"},
		"a snapshot":                               {withSnapshot, "snapshots", "1 internal"},
		"a size of nothing":                        {poked(disk, 24, be64(0)...), "virtual size", "out of range"},
		"a size of 16 EiB":                         {poked(disk, 24, be64(1<<64-512)...), "virtual size", "out of range"},
		"a size of 3 TiB":                          {poked(disk, 24, be64(3<<40)...), "virtual size", "out of range"},
		"an L1 that is absurd":                     {poked(disk, 36, be32(1<<31)...), "qemu-img", "cannot open"},
		"an L1 that is too small":                  {poked(disk, 36, be32(0)...), "tables", "do not cover"},
		"an L1 far away":                           {poked(disk, 40, be64(1<<50)...), "tables", "ends before"},
		"an unknown feature":                       {poked(disk, 72, be64(1<<40)...), "qemu-img", "cannot open"},
		"clusters of 2^63":                         {poked(disk, 20, be32(63)...), "format", "2^63"},
		"version 99":                               {poked(disk, 4, be32(99)...), "format", "version 99"},
		"a dirty one":                              {poked(disk, 72, be64(1)...), "format", "closed"},
		"a corrupt one":                            {poked(disk, 72, be64(2)...), "format", "corrupt"},
		"one cut in its data":                      {disk[:len(disk)*2/3], "tables", "ends before"},
		"one cut in its header":                    {disk[:50], "format", "truncated"},
		"nothing":                                  {nil, "format", "empty"},
		"a VMDK":                                   {append([]byte("KDMV"), make([]byte, 5000)...), "format", "VMDK"},
		"an HTML page":                             {[]byte("<html><body>404</body></html>"), "format", "HTML"},
		"a raw disk that is cut":                   {rawDisk()[:mib], "format", "truncated"},
		"another disk in a raw one's first sector": {append([]byte("QED\x00"), rawDisk()...), "format", "QED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, layer := range []stored{good(t, c.disk), gzipLayer(t, good(t, c.disk).raw)} {
				r := inspected(t, keepsRules(layer))
				level, detail := says(t, r, c.check)
				assert.Equal(t, contract.Error, level, detail)
				assert.Contains(t, detail, c.words)
				require.Error(t, r.Err(contract.Error))
				if c.check == "no other files" {
					level, detail := says(t, r, "qemu-img")
					assert.Equal(t, contract.Note, level, "qemu-img, which would have opened it, was asked")
					assert.Contains(t, detail, "other files")
				}
				b, err := json.Marshal(r)
				require.NoError(t, err)
				assert.NotContains(t, string(b), "PLANTED", "another file was read")
			}
		})
	}
}

// A file of another format would be opened through its own references.
func TestADescriptorOfAnotherFormatIsNotFollowed(t *testing.T) {
	t.Parallel()
	vmdk := fmt.Sprintf("# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 1 FLAT %q 0\n", planted(t))
	r := inspected(t, keepsRules(good(t, []byte(vmdk))))
	level, detail := says(t, r, "format")
	assert.Equal(t, contract.Error, level)
	assert.Contains(t, detail, "VMDK")
	level, _ = says(t, r, "qemu-img")
	assert.Equal(t, contract.Note, level, "qemu-img was asked")
}

func TestAnEntryThatIsNoFileIsNoDisk(t *testing.T) {
	t.Parallel()
	secret := planted(t)
	special := func(kind byte, link string) item {
		return item{Header: tar.Header{Typeflag: kind, Name: "disk/disk.qcow2", Linkname: link, Mode: 0o444, Uid: 107, Gid: 107, ModTime: time.Unix(0, 0)}}
	}
	for words, i := range map[string]item{
		"symbolic link": special(tar.TypeSymlink, secret),
		"hard link":     special(tar.TypeLink, secret),
		"device":        special(tar.TypeBlock, ""),
		"pipe":          special(tar.TypeFifo, ""),
	} {
		r := inspected(t, keepsRules(plainLayer(archived(t, dir("disk/"), i))))
		level, detail := says(t, r, "one disk")
		assert.Equal(t, contract.Error, level)
		assert.Contains(t, detail, words)
		assert.Nil(t, r.Disk)
	}
}

func TestPathsThatLeadOutOfTheImageAreErrorsAndNothingIsWrittenThere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"disk/../../../tmp/diskforge-escaped", "../disk/disk.qcow2", "/tmp/diskforge-escaped", "./../diskforge-escaped"} {
		for _, layer := range []stored{
			plainLayer(archived(t, dir("disk/"), file(name, []byte("x")), file("disk/disk.img", rawDisk()))),
			gzipLayer(t, archived(t, dir("disk/"), file(name, []byte("x")), file("disk/disk.img", rawDisk()))),
		} {
			r := inspected(t, keepsRules(layer))
			level, _ := says(t, r, "names")
			assert.Equal(t, contract.Error, level, name)
		}
	}
	assert.NoFileExists(t, "/tmp/diskforge-escaped")
}

func TestSparseEntriesAreNoDisks(t *testing.T) {
	t.Parallel()
	// An old GNU sparse entry; Go's writer makes none, so its type is poked in.
	raw := archived(t, dir("disk/"), file("disk/disk.img", rawDisk()))
	raw[512+156] = tar.TypeGNUSparse
	sum := 0
	copy(raw[512+148:], "        ")
	copy(raw[512+257:], "ustar  \x00")
	for _, b := range raw[512:1024] {
		sum += int(b)
	}
	copy(raw[512+148:], fmt.Sprintf("%06o\x00 ", sum))
	r := inspected(t, keepsRules(plainLayer(raw)))
	require.Error(t, r.Err(contract.Error))
	assert.Nil(t, r.Disk)
	level, detail := says(t, r, "one disk")
	assert.Equal(t, contract.Error, level)
	assert.Contains(t, detail, "sparse")
}

func TestALayerThatClaimsTerabytesIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	huge := file("disk/disk.img", nil).Header
	huge.Size = 50 << 30
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	require.NoError(t, tar.NewWriter(w).WriteHeader(&huge))
	_, err := io.CopyN(w, zeros{}, 64*mib)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	for _, l := range []stored{plainLayer(sparse(t, rawDisk()[:512], 2<<40)), gzipLayer(t, sparse(t, rawDisk()[:512], 2<<40)), {nil, b.Bytes(), types.OCILayer}} {
		level, detail := says(t, inspected(t, keepsRules(l)), "layer content")
		assert.Equal(t, contract.Error, level)
		assert.Contains(t, detail, "unpacks to more than any disk needs")
		assert.Contains(t, detail, "claims to hold", "its header alone was enough")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bomb is a layer of a few KiB whose archive claims and unpacks to n bytes.
func bomb(t *testing.T, n int64, pack func(io.Writer) io.WriteCloser) []byte {
	var b bytes.Buffer
	w := pack(&b)
	out := tar.NewWriter(w)
	d := dir("disk/")
	require.NoError(t, out.WriteHeader(&d.Header))
	h := file("disk/disk.img", nil).Header
	h.Size = n
	require.NoError(t, out.WriteHeader(&h))
	zeros := make([]byte, mib)
	for left := n; left > 0; left -= int64(len(zeros)) {
		_, err := out.Write(zeros[:min(left, int64(len(zeros)))])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestABombTakesLittleMemoryAndIsFound(t *testing.T) {
	const unpacked = 512 * mib
	contract.Unpack(t, 64*mib)
	for name, pack := range map[string]func(io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser { z, err := zstd.NewWriter(w); require.NoError(t, err); return z },
	} {
		t.Run(name, func(t *testing.T) {
			m := keepsRules(stored{nil, bomb(t, unpacked, pack), types.OCILayer})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			r := inspected(t, m)
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64*mib), "all that was allocated while it was read")
			level, detail := says(t, r, "layer content")
			assert.Equal(t, contract.Error, level)
			assert.Contains(t, detail, "unpacks to more than any disk needs")
		})
	}
}

func TestALayerThatLiesAboutSizesIsAnError(t *testing.T) {
	t.Parallel()
	huge := file("disk/disk.img", nil).Header
	huge.Size = 1 << 60
	var b bytes.Buffer
	require.NoError(t, tar.NewWriter(&b).WriteHeader(&huge))
	for _, l := range []stored{plainLayer(b.Bytes()), gzipLayer(t, b.Bytes()), zstdLayer(t, b.Bytes())} {
		r := inspected(t, keepsRules(l))
		level, _ := says(t, r, "layer content")
		assert.Equal(t, contract.Error, level)
	}
	// A zstd frame that asks for a window of gigabytes.
	r := inspected(t, keepsRules(stored{nil, []byte("\x28\xb5\x2f\xfd\x00\xb8" + strings.Repeat("\x00", 64)), types.OCILayerZStd}))
	level, _ := says(t, r, "layer content")
	assert.Equal(t, contract.Error, level)
}

func TestALayerWithCountlessEntriesIsAnError(t *testing.T) {
	contract.Entries(t, 1000)
	var many []item
	for n := range 1500 {
		many = append(many, file(fmt.Sprintf("x/%d", n), nil))
	}
	raw := archived(t, append(many, dir("disk/"), file("disk/disk.img", rawDisk()))...)
	for _, l := range []stored{plainLayer(raw), gzipLayer(t, raw)} {
		r := inspected(t, keepsRules(l))
		level, detail := says(t, r, "layer content")
		assert.Equal(t, contract.Error, level)
		assert.Contains(t, detail, "too many entries")
		assert.LessOrEqual(t, len(r.Layers[0].Entries), 100)
	}
}

func TestNamesThatWouldFillTheMemoryAreAnError(t *testing.T) {
	t.Parallel()
	var many []item
	for n := range 17_000 { // of 16 MiB of names
		many = append(many, file(fmt.Sprintf("%s/%d", strings.Repeat("x", 1000), n), nil))
	}
	for words, items := range map[string][]item{
		"too many entries": many, "a name of more than": {file(strings.Repeat("x", 1<<16), nil)},
	} {
		r := inspected(t, keepsRules(gzipLayer(t, archived(t, items...))))
		level, detail := says(t, r, "layer content")
		assert.Equal(t, contract.Error, level)
		assert.Contains(t, detail, words)
	}
}

func TestALayoutCannotMakeUsOpenOtherFiles(t *testing.T) {
	t.Parallel()
	secret := planted(t)
	good := keepsRules(good(t, qcow2Disk(t, "-c")))
	for name, spoil := range map[string]func(dir, blob string){
		"a blob that is a link out": func(_, blob string) {
			require.NoError(t, os.Remove(blob))
			require.NoError(t, os.Symlink(secret, blob))
		},
		"a folder that is a link out": func(d, _ string) {
			require.NoError(t, os.Rename(d+"/blobs", d+"-moved"))
			require.NoError(t, os.Symlink(d+"-moved", d+"/blobs"))
		},
		"a blob that is a device": func(_, blob string) {
			require.NoError(t, os.Remove(blob))
			require.NoError(t, os.Symlink("/dev/zero", blob))
		},
		"an index that is a link out": func(d, _ string) {
			require.NoError(t, os.Remove(d+"/index.json"))
			require.NoError(t, os.Symlink(secret, d+"/index.json"))
		},
		"a damaged layer": func(_, blob string) { poke(t, blob) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := layout(t, good)
			spoil(d, filepath.Join(d, "blobs", "sha256", digestOf(good.layers[0].packed).Hex))
			_, err := contract.Layout(t.Context(), d, progress.Discard)
			require.Error(t, err)
			assert.NotContains(t, err.Error(), "PLANTED")
		})
	}
}

func poke(t *testing.T, path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("damage"), 5000)
	require.NoError(t, err)
}

func TestAnIndexOrManifestThatIsNonsenseIsRefused(t *testing.T) {
	t.Parallel()
	disk := qcow2Disk(t, "-c")
	d := layout(t, keepsRules(good(t, disk)))
	write := func(index string) error {
		require.NoError(t, os.WriteFile(filepath.Join(d, "index.json"), []byte(index), 0o600))
		_, err := contract.Layout(t.Context(), d, progress.Discard)
		return err
	}
	require.Error(t, write("{"))
	require.Error(t, write("null"))
	require.Error(t, write(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":-1,"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`))
	require.Error(t, write(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3,"digest":"sha256:../../../../etc/passwd"}]}`))
	require.Error(t, write(`{"manifests":[`+strings.Repeat(" ", 5*mib)+`]}`))

	m := keepsRules(good(t, disk))
	for range 100 {
		m.layers = append(m.layers, m.layers[0])
	}
	_, err := contract.Layout(t.Context(), layout(t, m), progress.Discard)
	require.ErrorContains(t, err, "101 layers are more than the 64")
}

func TestWhatAnImageSaysCannotReachTheTerminal(t *testing.T) {
	t.Parallel()
	m := keepsRules(plainLayer(archived(t, dir("disk/"), file("disk/\x1b[2J\u202eevil.img", rawDisk()), file("\x07bell\nline", nil))))
	m.annotations = map[string]string{"org.opencontainers.image.created": "\x1b]0;title\x07"}
	m.config = v1.ConfigFile{OS: "\x1b[31mlinux", Architecture: "amd64\n", RootFS: m.config.RootFS}
	for _, c := range inspected(t, m).Checks {
		for _, bad := range []string{"\x1b", "\x07", "\n", "\u202e"} {
			assert.NotContains(t, c.Detail, bad)
		}
	}
}
