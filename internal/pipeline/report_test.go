package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestAStageThatRecallsAnEarlierReportNotesItsOwnEnd(t *testing.T) {
	nothing := strings.NewReplacer()
	var first, second journal
	first.begin(&Build{})
	first.stage("accel")("tcg", false, nil)
	first.stage("provision")("28 tasks", false, nil)
	text, err := json.Marshal(first.compose(nothing))
	require.NoError(t, err)

	second.begin(&Build{})
	end := second.stage("sparsify")
	second.takeUp(text)
	end("trim", false, nil)
	text, err = json.Marshal(second.compose(nothing))
	require.NoError(t, err)
	var told report.Report
	require.NoError(t, json.Unmarshal(text, &told))
	var results []string
	for _, s := range told.Stages {
		results = append(results, s.Name+": "+s.Result)
	}
	assert.Equal(t, []string{"accel: tcg", "provision: 28 tasks", "sparsify: trim"}, results)
}

// saved is the report in a build's OUTPUT_DIR.
func saved(t *testing.T, b *Build) *report.Report {
	t.Helper()
	f, err := os.Open(filepath.Join(b.Config.OutputDir, report.DataFile))
	require.NoError(t, err)
	defer f.Close()
	r, err := report.Read(f)
	require.NoError(t, err)
	return r
}

// aQcow2 writes a small compressed disk.
func aQcow2(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	require.NoError(t, host.Run(t.Context(), host.Cmd{Program: "qemu-img", Args: []string{"convert", "-q", "-c", "-O", "qcow2", "-f", "raw", aDisk(t), path}}))
	return path
}

func TestTheReportOfAnImageThatIsSentLaterIsCompleted(t *testing.T) {
	b, _ := newBuild(t)
	disk := aQcow2(t)
	sum, err := host.DigestFile(t.Context(), disk, progress.Discard)
	require.NoError(t, err)
	b.Config.Push, b.Config.Reference = true, "127.0.0.1:9/labs/course:v1"
	away := realRooms
	away.push = func(context.Context, string, string, registry.Options, progress.Reporter) (string, error) {
		return "", errors.New("nobody answers")
	}
	b.rooms = &away
	w := provisionedWay(t, b, time.Time{})
	w.whole, w.Layout, w.disk, w.known.Digest, w.known.Verified = true, Layout(b.Config.OutputDir, b.Config.ImageName), disk, sum, sum
	require.NoError(t, w.run(t.Context(), packing))
	err = w.run(t.Context(), pushing)
	require.Error(t, err)
	assert.Equal(t, report.Packed, saved(t, b).Outcome, "a run that was killed here leaves it so")
	require.Error(t, w.conclude(err))
	failed := saved(t, b)
	require.Equal(t, report.Failed, failed.Outcome)

	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	later, _ := newBuild(t)
	later.Config = b.Config
	later.Config.Reference = host + "/labs/course:v1"
	sent, err := later.Send(t.Context())
	require.NoError(t, err)
	told := saved(t, later)
	assert.Equal(t, report.Published, told.Outcome)
	assert.Equal(t, sent.Reference, told.Image.Reference)
	assert.Empty(t, told.Failure)
	assert.Equal(t, failed.Checks, told.Checks, "what was found when it was built")
	var names []string
	for _, s := range told.Stages {
		assert.Empty(t, s.Failure)
		names = append(names, s.Name)
	}
	assert.Equal(t, []string{"pack", "inspect", "inspect", "push"}, names)
}
