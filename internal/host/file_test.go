package host_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
)

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func TestAFileIsReplacedInOnePiece(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, host.WriteFile(name, 0o644, text("first")))
	require.NoError(t, host.WriteFile(name, 0o644, text("2nd")))
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "2nd", string(got))
	assert.NoFileExists(t, name+".part")
}

func TestAFailedWriteLeavesTheFileAsItWasAndNothingElse(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, host.WriteFile(name, 0o644, text("first")))
	boom := errors.New("boom")
	require.ErrorIs(t, host.WriteFile(name, 0o644, func(w io.Writer) error {
		_, _ = io.WriteString(w, "half")
		return boom
	}), boom)
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "first", string(got))
	assert.NoFileExists(t, name+".part")
}

func TestWhatAKilledProcessLeftIsTakenOver(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name+".part", []byte("longer than what comes"), 0o600))
	require.NoError(t, host.WriteFile(name, 0o644, text("new")))
	got, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "new", string(got))
}

func TestAFileThatIsNotOursAloneIsReplacedAndNotWrittenTo(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	victim := name + ".victim"
	require.NoError(t, os.WriteFile(victim, []byte("mine"), 0o600))
	require.NoError(t, os.Link(victim, name+".part"))
	require.NoError(t, host.WriteFile(name, 0o644, text("new")))
	for file, want := range map[string]string{victim: "mine", name: "new"} {
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	}
}

func TestASymbolicLinkInThePlaceOfTheTemporaryFileIsNotFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(victim, filepath.Join(dir, "file.part")))
	require.Error(t, host.WriteFile(filepath.Join(dir, "file"), 0o644, text("x")))
	got, err := os.ReadFile(victim)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(got))
}

func TestARecordIsReadAsItWasWrittenAndNotThroughALink(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "record.json")
	require.NoError(t, host.WriteJSON(name, 0o600, map[string]int{"a": 1}))
	var got map[string]int
	require.NoError(t, host.ReadJSON(name, &got))
	assert.Equal(t, map[string]int{"a": 1}, got)
	require.NoError(t, os.Symlink(name, name+".link"))
	require.Error(t, host.ReadJSON(name+".link", &got))
}
