package base_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// ubuntu is the fingerprint that Ubuntu publishes (Ubuntu's documentation of its cloud
// images, "Verify an image checksum").
const ubuntu = "D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81"

// gnupg is a home of GnuPG of its own.
type gnupg struct {
	t    testing.TB
	home string
}

func newGnupg(t testing.TB) gnupg {
	home, err := os.MkdirTemp("", "gpg") // its socket's path may have 107 characters
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	return gnupg{t, home}
}

func (g gnupg) run(in []byte, args ...string) []byte {
	g.t.Helper()
	c := exec.Command("gpg", append([]string{"--homedir", g.home, "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	var said bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(in), &said
	out, err := c.Output()
	require.NoError(g.t, err, "gpg %v: %s", args, &said)
	return out
}

// key makes one and returns its fingerprint. One with an expiry is of 2020.
func (g gnupg) key(name, algorithm, expires string) string {
	g.t.Helper()
	args := []string{"--quick-generate-key", name, algorithm, "sign", expires}
	if expires != "never" {
		args = append(past, args...)
	}
	g.run(nil, args...)
	list := g.run(nil, "--with-colons", "--list-keys", name)
	return string(regexp.MustCompile(`(?m)^fpr:+([0-9A-F]{40}):`).FindSubmatch(list)[1])
}

var past = []string{"--faked-system-time", "20200101T000000"}

func (g gnupg) sign(list []byte, by string, args ...string) []byte {
	g.t.Helper()
	return g.run(list, append(args, "--local-user", by, "--output", "-", "--detach-sign")...)
}

// keyring is a file of the keys, armored or as args say.
func (g gnupg) keyring(keys []string, args ...string) string {
	g.t.Helper()
	return write(g.t, "keyring", g.run(nil, append(append(args, "--export"), keys...)...))
}

func (g gnupg) revoke(key string) {
	g.t.Helper()
	certificate, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", key+".rev"))
	require.NoError(g.t, err)
	g.run(bytes.Replace(certificate, []byte(":-----BEGIN"), []byte("-----BEGIN"), 1), "--import")
}

// publisher is a server of files by their path, and notes what it is asked for.
type publisher struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	asked []string
}

func newPublisher(t testing.TB, files map[string][]byte) *publisher {
	p := &publisher{files: files}
	p.Server = httptest.NewUnstartedServer(p)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(p.Close)
	return p
}

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.URL.Path)
	content, there := p.files[r.URL.Path]
	p.mu.Unlock()
	if !there {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", published, bytes.NewReader(content))
}

// listOf is a list of checksums with the file in it.
func listOf(name string, content []byte) []byte {
	return fmt.Appendf(nil, "%s *%s\n%s *other.img\n", strings.TrimPrefix(sum256(content), "sha256:"), name, hex64)
}

func TestAListMustBeSignedByAKeyOfTheKeyring(t *testing.T) {
	t.Parallel()
	g := newGnupg(t)
	own, other := g.key("publisher", "ed25519", "never"), g.key("somebody else", "rsa2048", "never")
	expired, revoked := g.key("of last year", "ed25519", "1y"), g.key("lost", "ed25519", "never")
	sub := g.key("with a subkey", "ed25519", "never")
	g.run(nil, "--quick-add-key", sub, "rsa2048", "sign", "never")
	list := listOf("disk.img", content)
	lost := g.sign(list, revoked)
	g.revoke(revoked)
	keys := g.keyring([]string{own})
	all := g.keyring([]string{own, expired, revoked, sub}, "--armor")
	clear := g.run(list, "--local-user", own, "--output", "-", "--clear-sign")
	old := g.sign(list, expired, past...)
	two := write(t, "two.asc", append(append([]byte("my publishers:\n"), g.run(nil, "--armor", "--export", other)...), g.run(nil, "--armor", "--export", own)...))
	tampered := bytes.Replace(list, []byte("other"), []byte("0ther"), 1)
	forged := append([]byte(hex64+" *disk.img\n"), clear...) // a line before what is signed

	for name, c := range map[string]struct {
		list, signature   []byte
		ending, keyring   string
		by, says, andSays string
	}{
		"binary":                    {list: list, signature: g.sign(list, own), ending: ".gpg", keyring: keys, by: own},
		"armored":                   {list: list, signature: g.sign(list, own, "--armor"), ending: ".sign", keyring: all, by: own},
		"of text, RSA":              {list: list, signature: g.sign(list, other, "--textmode", "--armor"), ending: ".asc", keyring: two, by: other},
		"several armored keys":      {list: list, signature: g.sign(list, own), ending: ".gpg", keyring: two, by: own},
		"by a subkey":               {list: list, signature: g.sign(list, sub), ending: ".gpg", keyring: all, by: sub},
		"by somebody else, too":     {list: list, signature: append(g.sign(list, other), g.sign(list, own)...), ending: ".gpg", keyring: keys, by: own},
		"by an expired key, too":    {list: list, signature: append(bytes.Clone(old), g.sign(list, own)...), ending: ".gpg", keyring: all, by: own},
		"clear-signed":              {list: clear, keyring: keys, by: own},
		"clear-signed in the midst": {list: forged, keyring: keys, by: own},

		"missing":               {list: list, keyring: keys, says: "it is not signed: beside it is no SHA256SUMS.gpg, .sign or .asc"},
		"of a wrong key":        {list: list, signature: g.sign(list, other), ending: ".gpg", keyring: keys, says: "it is signed by the key " + other + ", and not by " + own},
		"tampered":              {list: tampered, signature: g.sign(list, own), ending: ".gpg", keyring: keys, says: "it is not what the key " + own + " signed"},
		"of another list":       {list: list, signature: g.sign(tampered, own), ending: ".gpg", keyring: keys, says: "or its signature is another list's"},
		"of an expired key":     {list: list, signature: old, ending: ".gpg", keyring: all, says: "the key " + expired + " by which it is signed has expired"},
		"of a revoked key":      {list: list, signature: lost, ending: ".gpg", keyring: all, says: "the key " + revoked + " by which it is signed was revoked"},
		"itself expired":        {list: list, signature: g.sign(list, expired, append(past, "--default-sig-expire", "1d")...), ending: ".gpg", keyring: all, says: "expired"},
		"of the future":         {list: list, signature: g.sign(list, own, "--faked-system-time", "20990101T000000"), ending: ".gpg", keyring: keys, says: "of the future"},
		"with SHA-1":            {list: list, signature: g.sign(list, other, "--digest-algo", "SHA1"), ending: ".gpg", keyring: two, says: "SHA-1, which can be forged"},
		"huge":                  {list: list, signature: bytes.Repeat([]byte{0x88}, mib), ending: ".gpg", keyring: keys, says: "it is too long for a signature"},
		"a page":                {list: list, signature: []byte("<html>welcome"), ending: ".gpg", keyring: keys, says: "its signature is none of OpenPGP"},
		"empty":                 {list: list, signature: []byte{}, ending: ".gpg", keyring: keys, says: "its signature is none of OpenPGP"},
		"cut":                   {list: list, signature: g.sign(list, own)[:40], ending: ".gpg", keyring: keys, says: "its signature is none of OpenPGP"},
		"a key":                 {list: list, signature: g.run(nil, "--export", own), ending: ".gpg", keyring: keys, says: "does not count"},
		"clear, tampered":       {list: bytes.Replace(clear, []byte("other"), []byte("0ther"), 1), keyring: keys, says: "it is not what the key " + own + " signed"},
		"clear, of a wrong key": {list: g.run(list, "--local-user", other, "--output", "-", "--clear-sign"), keyring: keys, says: "it is signed by the key " + other},
		"clear, cut":            {list: clear[:len(clear)-60], keyring: keys, says: "it is not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPublisher(t, map[string][]byte{"/disk.img": content, "/SHA256SUMS": c.list})
			if c.ending != "" {
				p.files["/SHA256SUMS"+c.ending] = c.signature
			}
			p.Start()
			o := options(t)
			o.Keyring = c.keyring
			for _, at := range []string{p.URL + "/SHA256SUMS?token=x", local(t, p.files)} {
				stated, err := base.ResolveChecksum(t.Context(), p.URL+"/disk.img", "file:"+at, o, progress.Discard)
				if c.says == "" {
					require.NoError(t, err)
					assert.Equal(t, base.Stated{Sum: sum256(content), SignedBy: c.by}, stated)
					continue
				}
				require.ErrorContains(t, err, c.says)
				assert.NotContains(t, err.Error(), "\n")
				assert.NotContains(t, err.Error(), "token")
			}
			_, err := base.Fetch(t.Context(), p.URL+"/disk.img", "file:"+p.URL+"/SHA256SUMS", o, progress.Discard)
			assert.Equal(t, c.says == "", err == nil)
			assert.Equal(t, c.says == "", len(tree(t, o.CacheDir)) > 0, "nothing of the image is fetched before")
		})
	}
}

// local are the files in a folder; it returns the list's path.
func local(t *testing.T, files map[string][]byte) string {
	dir := t.TempDir()
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, path.Base(name)), content, 0o600))
	}
	return filepath.Join(dir, "SHA256SUMS")
}

func TestAKeyringWithoutAKeyIsRefused(t *testing.T) {
	t.Parallel()
	g := newGnupg(t)
	key := g.key("somebody", "ed25519", "never")
	require.NoError(t, base.CheckKeyring(g.keyring([]string{key})))
	require.NoError(t, base.CheckKeyring(g.keyring([]string{key}, "--armor")))
	for _, content := range [][]byte{nil, []byte("hello"), g.sign([]byte("text"), key), g.sign([]byte("text"), key, "--armor"), []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n")} {
		require.ErrorContains(t, base.CheckKeyring(write(t, "keyring", content)), "has no OpenPGP public key in it")
	}
	require.ErrorIs(t, base.CheckKeyring("/missing"), os.ErrNotExist)
}

func TestTheKeyThatIsShippedIsUbuntus(t *testing.T) {
	t.Parallel()
	f, err := os.Open("keys/ubuntu-cloud-images.asc")
	require.NoError(t, err)
	defer f.Close()
	keys, err := openpgp.ReadArmoredKeyRing(f)
	require.NoError(t, err)
	require.Len(t, keys, 1)
	assert.Equal(t, ubuntu, fmt.Sprintf("%X", keys[0].PrimaryKey.Fingerprint))
}

// asUbuntu is a server that has the name of Ubuntu's.
func asUbuntu(t *testing.T, files map[string][]byte) (*publisher, base.DownloadOptions) {
	ca := testkit.NewAuthority(t)
	certificate, key := ca.Issue(t, "cloud-images.ubuntu.com")
	pair, err := tls.LoadX509KeyPair(certificate, key)
	require.NoError(t, err)
	p := newPublisher(t, files)
	p.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	p.StartTLS()
	o := options(t)
	o.CAFile = ca.File
	return p, o.Through(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, p.Listener.Addr().String())
	})
}

// testdata/jammy is what https://cloud-images.ubuntu.com/releases/jammy/release had on
// 22 July 2026.
func TestUbuntusListMustBeSignedByUbuntu(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata/jammy", name))
		require.NoError(t, err)
		return b
	}
	const folder = "/releases/jammy/release/"
	list, signature, name := read("SHA256SUMS"), read("SHA256SUMS.gpg"), "ubuntu-22.04-server-cloudimg-amd64.img"
	const sum = "sha256:757908b2fd6d5b1431bb45070fc1f56cbf017d4025568d292ece37d9cc75e812"
	g := newGnupg(t)
	own := g.key("somebody", "ed25519", "never")

	for what, c := range map[string]struct {
		list, signature []byte
		keyring, says   string
	}{
		"as it was":             {list: list, signature: signature},
		"tampered":              {list: bytes.Replace(list, []byte(sum[7:]), []byte(hex64), 1), signature: signature, says: "it is not what the key " + ubuntu + " signed"},
		"without a signature":   {list: list, says: "it is not signed"},
		"signed by another":     {list: list, signature: g.sign(list, own), says: "it is signed by the key " + own + ", and not by " + ubuntu},
		"BASE_KEYRING wins":     {list: list, signature: signature, keyring: g.keyring([]string{own}), says: "it is signed by the key " + ubuntu + ", and not by " + own},
		"BASE_KEYRING the same": {list: list, signature: signature, keyring: "keys/ubuntu-cloud-images.asc"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{folder + "SHA256SUMS": c.list, folder + "unpacked/build-info.txt": []byte("serial=20260722\norig_prefix=jammy\n")}
			if c.signature != nil {
				files[folder+"SHA256SUMS.gpg"] = c.signature
			}
			p, o := asUbuntu(t, files)
			o.Keyring = c.keyring
			at := "https://cloud-images.ubuntu.com" + folder
			stated, err := base.ResolveChecksum(t.Context(), at+name, "file:"+at+"SHA256SUMS", o, progress.Discard)
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				assert.NotContains(t, p.asked, folder+name)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, base.Stated{Sum: sum, SignedBy: ubuntu, Release: "20260722"}, stated)
		})
	}
}

func TestOtherPublishersNeedNotSignAndTheirSignaturesAreNotAskedFor(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, map[string][]byte{"/SHA256SUMS": listOf("disk.img", content), "/SHA256SUMS.gpg": []byte("no signature")})
	p.Start()
	stated, err := base.ResolveChecksum(t.Context(), p.URL+"/disk.img", "file:"+p.URL+"/SHA256SUMS", options(t), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, base.Stated{Sum: sum256(content), SignedBy: base.Nobody}, stated)
	assert.Equal(t, []string{"/SHA256SUMS"}, p.asked)
	stated, err = base.ResolveChecksum(t.Context(), p.URL+"/latest/disk.img", sum256(content), options(t), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, base.Stated{Sum: sum256(content)}, stated, "of a digest nothing more is known")
}

func TestWhichReleaseTheNewestIsIsFoundOutWhereThePublisherSaysIt(t *testing.T) {
	t.Parallel()
	describe := func(version string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"v1","items":[{"kind":"Build","metadata":{"labels":{"cloud.debian.org/version":%q}}}],"kind":"List"}`, version)
	}
	line := func(name string, b []byte) []byte {
		return fmt.Appendf(nil, "%s  %s\n", strings.TrimPrefix(sum512(b), "sha512:"), name)
	}
	debian := describe("20260712-2537")
	sums := append(line("disk.qcow2", content), line("disk.json", debian)...)
	const day = "2026-03-04" // of published
	for name, c := range map[string]struct {
		folder string
		files  map[string][]byte
		want   string
	}{
		"Debian's":            {"/bookworm/latest/", map[string][]byte{"disk.json": debian}, "20260712-2537"},
		"of another release":  {"/bookworm/latest/", map[string][]byte{"disk.json": describe("20260801-1")}, day},
		"not there":           {"/bookworm/latest/", nil, day},
		"Ubuntu's":            {"/jammy/current/", map[string][]byte{"SHA512SUMS": line("disk.qcow2", content), "unpacked/build-info.txt": []byte("serial=20260722.1\r\n")}, "20260722.1"},
		"hostile":             {"/jammy/current/", map[string][]byte{"SHA512SUMS": line("disk.qcow2", content), "unpacked/build-info.txt": []byte("serial=2026\x1b[31m\n")}, day},
		"a dated one":         {"/bookworm/20260712-2537/", map[string][]byte{"disk.json": debian}, ""},
		"part of a name only": {"/currently/", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{c.folder + "SHA512SUMS": sums}
			for file, b := range c.files {
				files[c.folder+file] = b
			}
			p := newPublisher(t, files)
			p.Start()
			began := time.Now()
			at := p.URL + c.folder
			stated, err := base.ResolveChecksum(t.Context(), at+"disk.qcow2", "file:"+at+"SHA512SUMS", options(t), progress.Discard)
			require.NoError(t, err)
			assert.Equal(t, base.Stated{Sum: sum512(content), SignedBy: base.Nobody, Release: c.want}, stated)
			assert.Less(t, time.Since(began), 5*time.Second)
		})
	}
}
