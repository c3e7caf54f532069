package base_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"github.com/netgroup-polito/diskforge/internal/base"
)

// What dpkg says is right: its order is the one by which apt updates.
func TestVersionsAreInDpkgsOrder(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("there is no dpkg")
	}
	versions := []string{
		"1.0", "1.0-0", "1.0-1", "1.0-1+b1", "1.0-1+b2", "1.0-1+b10", "1.0~rc1-1", "1.0~~-1", "1.0-1~deb12u1", "1.0-1+deb12u1", "1.0-1+deb12u10",
		"1.0-1.1", "1:0.9-1", "2:1", "0", "0:1.0-1", "00:01.00-01", "9.18.28-1~deb12u2", "9.18.33-1~deb12u2", "1.0a", "1.0+dfsg-1", "1.0.0",
		"7.88.1-10+deb12u5", "7.88.1-10+deb12u12", "12.2.0-14+deb12u1", "5.15.0-100.110", "5.15.0-97.107", "20240203", "20230311+deb12u1",
		"3.0.17-1~deb12u3", "3.0.11-1~deb12u2", "1.0-1ubuntu0.22.04.1", "1.0-1build1", "20260101123456789012345-1", "1.0-a", "1.0-a~", "1.0:2-1",
	}
	pairs, wrong := 0, 0
	for _, a := range versions {
		for _, b := range versions {
			want := exec.Command("dpkg", "--compare-versions", a, "gt", b).Run() == nil
			pairs++
			if !assert.Equal(t, want, base.Newer(a, b), "%s > %s", a, b) {
				wrong++
			}
		}
	}
	assert.Zero(t, wrong, "of %d", pairs)
	for _, none := range []string{"", "x", "1.0 2", "-1", "a:1", "1.0-1/2", strings.Repeat("9", 400) + ":1"} {
		assert.False(t, base.Newer(none, "1"), none)
		assert.False(t, base.Newer("1", none), none)
	}
}

// packed is a list as archives have it.
func packed(t testing.TB, list string) []byte {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	require.NoError(t, err)
	_, err = w.Write([]byte(list))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// greedy is a list whose header asks for 4 GiB of memory.
func greedy(t testing.TB) []byte {
	list := packed(t, "Package: curl\nVersion: 1\n")
	header := list[12 : 12+4*(int(list[12])+1)] // of the first block (xz-file-format, 3.1)
	header[bytes.Index(header, []byte{0x21, 1})+2] = 40
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	return list
}

// archive serves lists by their paths, and counts what it is asked for.
func archive(t testing.TB, lists map[string][]byte) (address string, asked map[string]int) {
	asked = map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, _ := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), "/binary-amd64/Packages.xz")
		asked[path]++
		if list, there := lists[path]; there {
			_, _ = w.Write(list)
		} else {
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

const (
	bookworm  = "debian/dists/bookworm/main"
	later     = "debian/dists/bookworm-updates/main"
	securitys = "debian-security/dists/bookworm-security/main"
)

var debian12 = base.Release{System: "debian", Version: "12"}

func TestTheNewestVersionsAreThoseOfMainUpdatesAndSecurity(t *testing.T) {
	t.Parallel()
	address, asked := archive(t, map[string][]byte{
		bookworm: packed(t, `Package: openssl
Source: openssl
Version: 3.0.15-1~deb12u1
Architecture: amd64
Description: as dpkg
 Package: none
 Version: 99

Package: bash
Version: 5.2.15-2+b2

Package: other
Version: 1
`),
		later: packed(t, "Package: tzdata\nVersion: 2026a-0+deb12u1\n\n\nPackage: bash\nVersion: 5.2.15-2+b9\n\nVersion: 7\n\nPackage: bash\n"),
		securitys: packed(t, "Package: openssl\nVersion: 3.0.16-1~deb12u1\n\nPackage: openssl\nVersion: 3.0.17-1~deb12u3\n\n"+
			"Package: openssl\nVersion: no version\n"),
	})
	got, err := base.Newest(t.Context(), debian12, map[string]bool{"openssl": true, "bash": true, "tzdata": true, "mine": true}, address+"/debian/", "")
	require.NoError(t, err)
	assert.Equal(t, map[string]base.Versions{
		"openssl": {Security: "3.0.17-1~deb12u3", Other: "3.0.15-1~deb12u1"},
		"bash":    {Other: "5.2.15-2+b9"},
		"tzdata":  {Other: "2026a-0+deb12u1"},
	}, got)
	assert.Equal(t, map[string]int{bookworm: 1, later: 1, securitys: 1}, asked)

	arm := debian12
	arm.Architecture = "arm64"
	_, err = base.Newest(t.Context(), arm, nil, address+"/debian", "")
	require.ErrorContains(t, err, bookworm+"/binary-arm64/Packages.xz: the server answers 404")
}

func TestUbuntuHasItsUpdatesInOneArchive(t *testing.T) {
	t.Parallel()
	lists := map[string][]byte{}
	for _, pocket := range []string{"", "-updates", "-security"} {
		for _, component := range []string{"main", "restricted", "universe", "multiverse"} {
			lists["ubuntu/dists/jammy"+pocket+"/"+component] = packed(t, "Package: curl\nVersion: 7.81.0-1"+map[string]string{"-security": "ubuntu1.20"}[pocket]+"\n")
		}
	}
	address, _ := archive(t, lists)
	got, err := base.Newest(t.Context(), base.Release{System: "ubuntu", Version: "22.04"}, map[string]bool{"curl": true}, address+"/ubuntu", "")
	require.NoError(t, err)
	assert.Equal(t, map[string]base.Versions{"curl": {Security: "7.81.0-1ubuntu1.20", Other: "7.81.0-1"}}, got)
}

func TestAnArchiveThatTellsNothingIsAnErrorInOneLine(t *testing.T) {
	t.Parallel()
	good := packed(t, "Package: curl\nVersion: 1\n")
	long := packed(t, "Package: "+strings.Repeat("x", 3<<20)+"\n")
	for want, lists := range map[string]map[string][]byte{
		"bookworm-security/main/binary-amd64/Packages.xz: the server answers 404": {bookworm: good, later: good},
		"it is no list of packages":          {bookworm: []byte("<html>log in</html>")},
		"longer than a list":                 {bookworm: long},
		"dictionary size exceeds max":        {bookworm: greedy(t)},
		"have none of the packages":          {bookworm: packed(t, ""), later: packed(t, "\x00\xff\n"), securitys: packed(t, "Package: curl\n\nVersion: 1\n")},
		"/debian/dists/bookworm/main/binary": {},
	} {
		address, _ := archive(t, lists)
		_, err := base.Newest(t.Context(), debian12, map[string]bool{"curl": true}, address+"/debian", "")
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "\n")
	}
	_, err := base.Newest(t.Context(), base.Release{System: "fedora", Version: "44"}, nil, "", "")
	require.ErrorIs(t, err, base.ErrNoArchive)
}

// The list is cut short: what came is not taken for all there is.
func TestAListThatBreaksOffIsAskedForAgain(t *testing.T) {
	t.Parallel()
	list := packed(t, "Package: curl\nVersion: 2\n\n"+strings.Repeat("Package: other\nVersion: 1\n\n", 1000))
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(list)))
			_, _ = w.Write(list[:len(list)/2])
			return
		}
		_, _ = w.Write(list)
	}))
	defer server.Close()
	got, err := base.Newest(t.Context(), debian12, map[string]bool{"curl": true}, server.URL+"/debian", "")
	require.NoError(t, err)
	assert.Equal(t, base.Versions{Security: "2", Other: "2"}, got["curl"])
	assert.Equal(t, 4, n)
}

func FuzzReadPackages(f *testing.F) {
	f.Add(packed(f, "Package: curl\nVersion: 1\n\n"))
	f.Add(greedy(f))
	f.Fuzz(func(_ *testing.T, list []byte) {
		_, _ = base.ReadPackages(bytes.NewReader(list), func(name, version string) { base.Newer(version, name) })
	})
}
