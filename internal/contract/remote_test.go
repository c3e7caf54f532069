package contract_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// mostOverTheWire is what an inspection of a plain layer may read, in bytes.
const mostOverTheWire = 2 * mib

// put writes an image into a registry that takes what it is given, as push
// only takes layouts of diskforge's.
func put(t testing.TB, host string, m made, o registry.Options) {
	t.Helper()
	send := func(method, at, mediaType string, body []byte) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(string(body)))
		require.NoError(t, err)
		req.Header.Set("Content-Type", mediaType)
		if o.Username != "" {
			req.SetBasicAuth(o.Username, o.Password)
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Less(t, resp.StatusCode, 300, "%s %s", method, at)
		return resp
	}
	blobs, image := m.blobs(t)
	for digest, b := range blobs {
		if digest == image.Digest {
			continue
		}
		to, err := send(http.MethodPost, "http://"+host+"/v2/lab/ubuntu/blobs/uploads/", "", nil).Location()
		require.NoError(t, err)
		query := to.Query()
		query.Set("digest", digest.String())
		to.RawQuery = query.Encode()
		send(http.MethodPut, to.String(), "application/octet-stream", b)
	}
	send(http.MethodPut, "http://"+host+"/v2/lab/ubuntu/manifests/v1", string(image.MediaType), blobs[image.Digest])
}

// front stands before a registry and may answer or change a request.
func front(t testing.TB, host string, change func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !change(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// inspectRemote inspects an image in a registry.
func inspectRemote(t testing.TB, host string, o registry.Options) (*contract.Report, error) {
	t.Helper()
	i, err := registry.Open(t.Context(), host+"/lab/ubuntu:v1", o)
	if err != nil {
		return nil, err
	}
	defer i.Close()
	return contract.Image(t.Context(), i.Image, progress.Discard)
}

func remote(t testing.TB, host string) *contract.Report {
	t.Helper()
	r, err := inspectRemote(t, host, registry.Options{})
	require.NoError(t, err)
	return r
}

// written packs a disk of qemu-img's and pushes it.
func written(t testing.TB, host, disk string, o registry.Options) oci.Result {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layout")
	made, err := oci.Pack(t.Context(), disk, out, oci.Metadata{Architecture: "amd64"}, progress.Discard)
	require.NoError(t, err)
	_, err = registry.Push(t.Context(), out, host+"/lab/ubuntu:v1", o, progress.Discard)
	require.NoError(t, err)
	return made
}

// sized is a compressed qcow2 disk of some GiB that has the content at every
// 512 MiB, as many as one table describes.
func sized(t testing.TB, gib int64, content []byte) string {
	t.Helper()
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	f, err := os.Create(raw)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(gib<<30))
	for at := int64(0); at < gib<<30; at += 512 * mib {
		_, err := f.WriteAt(content, at)
		require.NoError(t, err)
	}
	_, err = f.WriteAt(rawDisk()[:512], 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	qemuImg(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, out)
	return out
}

func TestOfAnImageInARegistryOnlyPartsAreRead(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	made := written(t, host, sized(t, 10, rawDisk()[3*mib+mib/4:5*mib+mib/2]), registry.Options{})
	require.Greater(t, made.Layer.Size, int64(8*mib), "so small a layer proves nothing")
	r := remote(t, host)
	assert.Empty(t, worse(r))
	assert.Equal(t, made.Digest, r.Digest)
	assert.Equal(t, uint64(10<<30), r.Disk.VirtualSize)
	assert.Equal(t, "zstd", r.Disk.Compression)
	assert.Equal(t, 20, r.Disk.Tables)
	assert.Equal(t, 20, r.Disk.TablesRead)
	assert.Empty(t, r.Layers[0].WholeRead)
	assert.LessOrEqual(t, r.BytesRead, int64(mostOverTheWire))
	level, _ := says(t, r, "qemu-img")
	assert.Equal(t, contract.OK, level)
	_, detail := says(t, r, "layer content")
	assert.Contains(t, detail, "not checked")
	t.Logf("%d of %d bytes over the wire", r.BytesRead, made.Layer.Size)
}

func TestWhatIsTooMuchForTheWireIsSaidToBeUnchecked(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	written(t, host, sized(t, 40, rawDisk()[mib:mib+mib/16]), registry.Options{})
	r := remote(t, host)
	level, detail := says(t, r, "tables")
	assert.Equal(t, contract.Note, level)
	assert.Contains(t, detail, "20 of 80 were read")
	assert.LessOrEqual(t, r.BytesRead, int64(mostOverTheWire))
}

func TestALoginIsGivenToTheRegistry(t *testing.T) {
	t.Parallel()
	hash, err := bcrypt.GenerateFromPassword([]byte("pässword"), bcrypt.MinCost)
	require.NoError(t, err)
	users := filepath.Join(t.TempDir(), "htpasswd")
	require.NoError(t, os.WriteFile(users, []byte("alice:"+string(hash)+"\n"), 0o600))
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Htpasswd: users})
	o := registry.Options{Username: "alice", Password: "pässword"}
	put(t, host, keepsRules(good(t, qcow2Disk(t, "-c"))), o)
	r, err := inspectRemote(t, host, o)
	require.NoError(t, err)
	assert.Empty(t, worse(r))
	o.Password = "wrong"
	_, err = inspectRemote(t, host, o)
	require.ErrorContains(t, err, `refuses user "alice"`)
}

func TestAllOfALayerIsReadWhereItMustBeAndTheReportSaysWhy(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	usual := archived(t, dir("disk/"), file("disk/disk.img", rawDisk()))
	many := []item{dir("disk/"), file("disk/disk.img", rawDisk())}
	for _, n := range strings.Split("abcdefghijklmnopqrst", "") {
		many = append(many, file(n, nil))
	}
	noRanges := func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }
	for name, c := range map[string]struct {
		layer stored
		host  string
		why   string
	}{
		"gzip":         {gzipLayer(t, usual), host, "it is compressed"},
		"zstd":         {zstdLayer(t, usual), host, "it is compressed"},
		"many entries": {plainLayer(archived(t, many...)), host, "it has more than 16 entries"},
		"no ranges":    {plainLayer(usual), front(t, host, noRanges), "the registry answers range requests with the whole layer"},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, host, keepsRules(c.layer), registry.Options{})
			r := remote(t, c.host)
			if err := r.Err(contract.Error); name == "zstd" {
				require.ErrorContains(t, err, "CDI up to 1.66")
			} else {
				require.NoError(t, err)
			}
			assert.Equal(t, c.why, r.Layers[0].WholeRead)
			assert.GreaterOrEqual(t, r.BytesRead, int64(len(c.layer.packed)))
			assert.Equal(t, uint64(8*mib), r.Disk.VirtualSize)
			assert.Equal(t, "raw", r.Disk.Format)
		})
	}
}

func TestHostileImagesInARegistryDoNotPassEither(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	disk := qcow2Disk(t, "-c")
	for name, c := range map[string]struct {
		layer stored
		check string
	}{
		"a backing file":    {good(t, created(t, "-b", planted(t), "-F", "raw")), "no other files"},
		"an absurd size":    {good(t, poked(disk, 24, be64(1<<60)...)), "virtual size"},
		"an absurd L1":      {good(t, poked(disk, 36, be32(1<<31)...)), "qemu-img"},
		"a truncated one":   {good(t, disk[:len(disk)*2/3]), "tables"},
		"a truncated layer": {plainLayer(good(t, disk).raw[:200<<10]), "layer content"},
		"two disks":         {plainLayer(archived(t, dir("disk/"), file("disk/a", disk), file("disk/b", disk))), "one disk"},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, host, keepsRules(c.layer), registry.Options{})
			r := remote(t, host)
			level, detail := says(t, r, c.check)
			assert.Equal(t, contract.Error, level, detail)
			assert.LessOrEqual(t, r.BytesRead, int64(mostOverTheWire))
		})
	}
}

func TestADamagedLayerOfARegistryIsRefused(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	m := keepsRules(gzipLayer(t, archived(t, dir("disk/"), file("disk/disk.img", rawDisk()))))
	put(t, host, m, registry.Options{})
	layer := m.layers[0].packed
	lying := front(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digestOf(layer).Hex) || r.Header.Get("Range") != "" {
			return false
		}
		_, _ = w.Write(append(layer[:len(layer)-8:len(layer)-8], 0, 0, 0, 0, 0, 0, 0, 0))
		return true
	})
	_, err := inspectRemote(t, lying, registry.Options{})
	require.ErrorContains(t, err, "gives another blob")
}

func TestTagsThatOthersMadeAreWarnedOf(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	put(t, host, keepsRules(good(t, qcow2Disk(t, "-c"))), registry.Options{})
	lister := front(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/tags/list") {
			return false
		}
		_, _ = w.Write([]byte(`{"name":"lab/ubuntu","tags":["v1","sha256-` + strings.Repeat("a", 64) + `"]}`))
		return true
	})
	level, detail := says(t, remote(t, lister), "tags")
	assert.Equal(t, contract.Warning, level)
	assert.Contains(t, detail, "referrers")

	refusing := front(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	level, _ = says(t, remote(t, refusing), "tags")
	assert.Equal(t, contract.Note, level, "who may not list tags may inspect all the same")
}
