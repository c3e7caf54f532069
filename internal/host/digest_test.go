package host_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// digestOfABC is sha256sum's of "abc" (FIPS 180-4, appendix B.1).
const digestOfABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

func TestAFilesDigestIsThatOfSha256sum(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte("abc"), 0o600))
	got, err := host.DigestFile(t.Context(), name, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, digestOfABC, got)
	assert.True(t, host.ValidDigest(got))
	_, err = host.DigestFile(t.Context(), t.TempDir(), progress.Discard)
	require.ErrorIs(t, err, host.ErrNotRegular)
}

func TestWhatHasAnotherDigestIsNotGivenOutToItsEnd(t *testing.T) {
	t.Parallel()
	another := errors.New("another")
	wrong := func(got string) error { return errors.Join(another, errors.New(got)) }
	read := func(s string, size int64) (string, error) {
		b, err := io.ReadAll(iotest.OneByteReader(host.Verify(strings.NewReader(s), size, digestOfABC, wrong)))
		return string(b), err
	}
	b, err := read("abc", 3)
	require.NoError(t, err)
	assert.Equal(t, "abc", b)
	b, err = read("abc and what nobody asked for", 3)
	require.NoError(t, err)
	assert.Equal(t, "abc", b)
	b, err = read("abd", 3)
	require.ErrorIs(t, err, another)
	assert.ErrorContains(t, err, "sha256:")
	assert.Equal(t, "ab", b)
	_, err = read("ab", 3)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = read("", 0)
	require.ErrorIs(t, err, another)
}

func TestALinkIsFollowedWhereAUserNamesItAndNotInAPlaceOfOurs(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink("/etc/passwd", link))
	f, err := host.Open(link)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = host.OpenNoFollow(link)
	require.ErrorIs(t, err, syscall.ELOOP)
}
