package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// warnings is a Reporter that remembers its warnings.
type warnings struct {
	progress.Reporter
	mu   sync.Mutex
	said []string
}

func listen() *warnings { return &warnings{Reporter: progress.Discard} }

func (w *warnings) Warn(message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, message)
}

// recorded makes a directory in which a stage has made disk.qcow2.
func recorded(t *testing.T) (*pipeline.Dir, pipeline.Record) {
	d := open(t, filepath.Join(t.TempDir(), "work"))
	require.NoError(t, os.WriteFile(d.Path("disk.qcow2"), []byte("disk"), 0o600))
	digest, err := host.DigestFile(t.Context(), d.Path("disk.qcow2"), progress.Discard)
	require.NoError(t, err)
	r := pipeline.Record{Inputs: "sha256:inputs", Output: "disk.qcow2", Digest: digest, Size: 4, Result: json.RawMessage(`{"trimmed":true}`)}
	require.NoError(t, d.Save("sparsify", r))
	return d, r
}

func TestARecordIsReadBackForTheSameInputs(t *testing.T) {
	d, want := recorded(t)
	got, ok, err := d.Load(t.Context(), "sparsify", "sha256:inputs", progress.Discard)
	require.NoError(t, err)
	require.True(t, ok)
	assert.Equal(t, "sparsify", got.Stage)
	assert.Equal(t, want.Digest, got.Digest)
	assert.JSONEq(t, `{"trimmed":true}`, string(got.Result))
	assert.False(t, got.Time.IsZero())
	assert.EqualValues(t, 0o600, mode(t, d.Path("records", "sparsify.json")))
}

func TestOtherInputsOrNoRecordIsSilentlyNothing(t *testing.T) {
	d, _ := recorded(t)
	w := listen()
	for stage, inputs := range map[string]string{"sparsify": "sha256:others", "verify": "sha256:inputs"} {
		_, ok, err := d.Load(t.Context(), stage, inputs, w)
		require.NoError(t, err)
		assert.False(t, ok)
	}
	assert.Empty(t, w.said)
}

func TestAnOutputThatIsNoLongerTheRecordedOneIsNotUsedAgainAndThatIsSaid(t *testing.T) {
	for want, tamper := range map[string]func(d *pipeline.Dir) error{
		"has 3 bytes instead of 4": func(d *pipeline.Dir) error { return os.Truncate(d.Path("disk.qcow2"), 3) },
		"was changed":              func(d *pipeline.Dir) error { return os.WriteFile(d.Path("disk.qcow2"), []byte("desk"), 0o600) },
		"is not there any more":    func(d *pipeline.Dir) error { return os.Remove(d.Path("disk.qcow2")) },
		"is not a regular file": func(d *pipeline.Dir) error {
			return errors.Join(os.Rename(d.Path("disk.qcow2"), d.Path("moved")), os.Symlink("moved", d.Path("disk.qcow2")))
		},
		"disk.qcow2 is not a regular": func(d *pipeline.Dir) error {
			return errors.Join(os.Remove(d.Path("disk.qcow2")), syscall.Mkfifo(d.Path("disk.qcow2"), 0o600))
		},
	} {
		t.Run(want, func(t *testing.T) {
			d, _ := recorded(t)
			require.NoError(t, tamper(d))
			w := listen()
			_, ok, err := d.Load(t.Context(), "sparsify", "sha256:inputs", w)
			require.NoError(t, err)
			assert.False(t, ok)
			require.Len(t, w.said, 1)
			assert.Contains(t, w.said[0], "what sparsify made earlier is not used again")
			assert.Contains(t, w.said[0], want)
		})
	}
}

func TestARecordThatWasTamperedWithIsNotBelieved(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("disk"), 0o600))
	_, good := recorded(t)
	good.Stage = "sparsify"
	change := func(f func(*pipeline.Record)) string {
		r := good
		f(&r)
		b, err := json.Marshal(r)
		require.NoError(t, err)
		return string(b)
	}
	for name, text := range map[string]string{
		"no JSON":       "{",
		"empty":         "",
		"too long":      `{"stage":"` + strings.Repeat("x", 1<<20) + `"}`,
		"other stage":   change(func(r *pipeline.Record) { r.Stage = "verify" }),
		"outside":       change(func(r *pipeline.Record) { r.Output = outside }),
		"above":         change(func(r *pipeline.Record) { r.Output = "../outside" }),
		"no digest":     change(func(r *pipeline.Record) { r.Digest = "" }),
		"negative size": change(func(r *pipeline.Record) { r.Size = -1 }),
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := recorded(t)
			require.NoError(t, os.WriteFile(d.Path("records", "sparsify.json"), []byte(text), 0o600))
			w := listen()
			_, ok, err := d.Load(t.Context(), "sparsify", "sha256:inputs", w)
			require.NoError(t, err)
			assert.False(t, ok)
			assert.Len(t, w.said, 1)
		})
	}
}

func TestFieldsOfALaterVersionAreTolerated(t *testing.T) {
	d, r := recorded(t)
	text := `{"stage":"sparsify","inputs":"sha256:inputs","output":"disk.qcow2","digest":"` + r.Digest + `","size":4,"colour":"green"}`
	require.NoError(t, os.WriteFile(d.Path("records", "sparsify.json"), []byte(text), 0o600))
	_, ok, err := d.Load(t.Context(), "sparsify", "sha256:inputs", progress.Discard)
	require.NoError(t, err)
	assert.True(t, ok)
}

func TestLoadingEndsWithTheContext(t *testing.T) {
	d, _ := recorded(t)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	_, _, err := d.Load(ctx, "sparsify", "sha256:inputs", progress.Discard)
	require.ErrorIs(t, err, stop)
}

func TestARecordThatCannotBeWrittenLeavesTheEarlierOne(t *testing.T) {
	d, r := recorded(t)
	require.NoError(t, os.Mkdir(d.Path("records", "sparsify.json.part"), 0o700))
	r.Inputs = "sha256:others"
	require.Error(t, d.Save("sparsify", r))
	_, ok, err := d.Load(t.Context(), "sparsify", "sha256:inputs", progress.Discard)
	require.NoError(t, err)
	assert.True(t, ok)
}

func TestTheDigestIsThatOfSha256sum(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("abc"), 0o600))
	got, err := host.DigestFile(t.Context(), path, progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", got, "FIPS 180-4's example")
	_, err = host.DigestFile(t.Context(), t.TempDir(), progress.Discard)
	require.ErrorContains(t, err, "not a regular file")
}
