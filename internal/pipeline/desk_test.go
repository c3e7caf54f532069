package pipeline

import (
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/ui"
)

func TestADeskIsRefusedBeforeAnythingSlow(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		image string
		ports []Port
		want  string
	}{
		{"/not/there", nil, "there is no disk and no layout /not/there here"},
		{"not-there", nil, "there is no disk and no layout not-there here"},
		{"oci:/not/there@sha256:" + digestA[7:], nil, "there is no disk and no layout /not/there here"},
		{t.TempDir(), nil, "has no containerdisk"},
		{"/not/there", []Port{{port, 80}}, "is not free"},
		{"desk_test.go", nil, "desk_test.go: this is no disk image, it looks like a text file: give a qcow2 or raw disk image"},
	} {
		b := &Build{UI: ui.New(io.Discard, false)}
		b.Config.CacheDir = filepath.Join(t.TempDir(), "cache")
		err := b.Attend(t.Context(), c.image, Desk{Ports: c.ports, Say: func(what, how string) error {
			assert.Fail(t, "nothing is said", what+how)
			return nil
		}})
		require.ErrorContains(t, err, c.want)
	}
}
