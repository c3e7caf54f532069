package pipeline

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
)

var (
	aptUpdate  = base.Update{Source: "apt", Package: "apt", Installed: "2.6.2", Available: "2.6.3"}
	bashUpdate = base.Update{Source: "bash", Package: "bash", Installed: "5.2.15-2+b13", Available: "5.2.15-2+b14"}
)

// archives have those updates, whatever is installed.
func archives(of base.Updates) func(context.Context, []sbom.Inventory, string, string) ([]base.Updates, error) {
	return func(context.Context, []sbom.Inventory, string, string) ([]base.Updates, error) {
		return []base.Updates{of}, nil
	}
}

func TestWithFailOnUpdatesAnImageWithPendingOnesIsNotPacked(t *testing.T) {
	for which, want := range map[string]map[string]string{ // what is pending, and the error
		"none":     {"security": "", "other": ""},
		"security": {"security": "1 update pending: apt", "other": ""},
		"all":      {"security": "1 update pending: apt", "other": "1 update pending: bash"},
	} {
		for pending, wrong := range want {
			settings := everything(t.TempDir())
			settings["FAIL_ON_UPDATES"] = which
			b, g, _ := wired(t, settings)
			g.inventory = aDebian()
			updates := base.Updates{Security: []base.Update{aptUpdate}}
			if pending == "other" {
				updates = base.Updates{Others: []base.Update{bashUpdate}}
			}
			b.rooms.updates = archives(updates)
			_, err := b.Run(t.Context())
			assert.Equal(t, wrong == "", slices.Contains(g.runs, "pack"), which)
			if wrong == "" {
				require.NoError(t, err)
				continue
			}
			f, _ := failure.In(err)
			require.NotNil(t, f)
			assert.Contains(t, f.What, wrong)
			assert.Regexp(t, `^(apt 2\.6\.2, and there is 2\.6\.3|bash \S+, and there is \S+14)$`, strings.Join(f.Lines, "\n"))
		}
	}
}

func TestWithFailOnUpdatesArchivesThatCannotBeReadAreAnError(t *testing.T) {
	settings := everything(t.TempDir())
	settings["FAIL_ON_UPDATES"] = "security"
	b, g, _ := wired(t, settings)
	g.inventory = aDebian()
	b.rooms.updates = func(_ context.Context, _ []sbom.Inventory, mirror, _ string) ([]base.Updates, error) {
		return nil, errors.New(mirror + " is down")
	}
	_, err := b.Run(t.Context())
	require.ErrorContains(t, err, "http://mirror.example.org is down")
	assert.NotContains(t, g.runs, "pack")

	g.inventory = sbom.Inventory{None: "it is no Debian"}
	_, err = b.Run(t.Context())
	require.ErrorContains(t, err, "nobody knows which updates are pending: it is no Debian")
}

// refreshing is a build that refreshes an image, and the disks that scan sees: the image's,
// then what came of it.
func refreshing(t *testing.T, disks ...sbom.Inventory) (*Build, *given) {
	t.Helper()
	settings := everything(t.TempDir())
	maps.DeleteFunc(settings, func(name, _ string) bool {
		return strings.HasPrefix(name, "GIT_") || name == "DISK_SIZE" || name == "OUTPUTS"
	})
	settings["ISO_URL"], settings["ISO_CHECKSUM"] = "oci://registry.example.org/labs/course@sha256:"+strings.Repeat("a", 64), ""
	settings["ANSIBLE_PLAYBOOK"] = RefreshPlaybook
	b, g, _ := wired(t, settings)
	b.rooms.scan = func(context.Context, hygiene.Options, progress.Reporter) (hygiene.Result, error) {
		require.NotEmpty(t, disks, "scanned once too often")
		found := hygiene.Result{Inventory: disks[0]}
		disks = disks[1:]
		return found, nil
	}
	return b, g
}

func TestARefreshIsBuiltFromItsImageAndKnowsItsOriginal(t *testing.T) {
	now := aDebian()
	now.Packages[1].Version = "5.2.15-2+b14"
	now.Packages = append(now.Packages, sbom.Package{Name: "linux-image-6.1.0-41-amd64", Version: "6.1.158-1"})
	b, g := refreshing(t, aDebian(), now)
	b.rooms.updates = archives(base.Updates{Others: []base.Update{bashUpdate}})
	was := oci.Original{Refreshes: 2, Inputs: "sha256:" + strings.Repeat("b", 64), Built: time.Unix(1700000000, 0).UTC()}
	done, err := b.Refresh(t.Context(), was, false)
	require.NoError(t, err)
	assert.Equal(t, "registry.example.org/labs/course:v1@sha256:image", done.Reference)
	assert.Equal(t, "course", g.provision.Playbook.File[:6])
	assert.EqualValues(t, virtualSize, g.provision.DiskSize, "the image's own")
	was.Refreshes = 3
	assert.Equal(t, was, g.pack.Original)
	assert.Equal(t, []report.Change{
		{Name: "bash", From: "5.2.15-2+b13", To: "5.2.15-2+b14"}, {Name: "linux-image-6.1.0-41-amd64", To: "6.1.158-1"},
	}, saved(t, b).Changes)
}

func TestWhereNothingIsPendingNothingIsBuilt(t *testing.T) {
	for _, pending := range []base.Updates{{}, {Others: []base.Update{bashUpdate}}} {
		b, g := refreshing(t, aDebian())
		b.rooms.updates = archives(pending)
		_, err := b.Refresh(t.Context(), oci.Original{}, true)
		require.ErrorIs(t, err, ErrCurrent)
		assert.Empty(t, g.runs)
		left, err := os.ReadDir(b.Config.OutputDir)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func TestARefreshThatChangesNothingIsNotPublished(t *testing.T) {
	b, g := refreshing(t, aDebian(), aDebian())
	b.rooms.updates = archives(base.Updates{Security: []base.Update{aptUpdate}})
	_, err := b.Refresh(t.Context(), oci.Original{}, false)
	require.ErrorContains(t, err, "updates are pending, and none was installed")
	assert.NotContains(t, g.runs, "pack")
}
