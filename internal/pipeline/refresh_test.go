package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/testkit"
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

func TestTheReportHasWhatChangedSinceTheImageBefore(t *testing.T) {
	bundle := func(t *testing.T, has sbom.Inventory) registry.Referrer {
		dir := t.TempDir()
		require.NoError(t, sbom.Save(dir, sbom.Disk{Digest: "sha256:" + strings.Repeat("d", 64)}, has))
		text, err := os.ReadFile(filepath.Join(dir, sbom.SPDXFile))
		require.NoError(t, err)
		said, err := attest.New(attest.SPDX, "sha256:"+strings.Repeat("a", 64), "", json.RawMessage(text))
		require.NoError(t, err)
		closed, _ := testkit.CosignKey(t, "")
		key, err := attest.ReadKey(closed, "")
		require.NoError(t, err)
		content, err := key.Bundle(t.Context(), said)
		require.NoError(t, err)
		return registry.Referrer{ArtifactType: attest.BundleType, Content: content}
	}
	before := aDebian()
	before.Packages[0].Version = "2.6.1"
	const tag, latest = "registry.example.org/labs/course:v1", "registry.example.org/labs/course:latest"
	for name, g := range map[string]given{
		"of the tag":            {bundles: map[string][]registry.Referrer{tag: {bundle(t, before)}, latest: {bundle(t, aDebian())}}},
		"of a tag that is new":  {bundlesErr: map[string]error{tag: errors.New("not there")}, bundles: map[string][]registry.Referrer{latest: {{Content: []byte("{}")}, bundle(t, before)}}},
		"of one without a bill": {bundles: map[string][]registry.Referrer{latest: {bundle(t, before)}}},
	} {
		b, its, _ := wired(t, everything(t.TempDir()))
		its.inventory, its.bundles, its.bundlesErr = aDebian(), g.bundles, g.bundlesErr
		_, err := b.Run(t.Context())
		require.NoError(t, err)
		want := []report.Change{{Name: "apt", From: "2.6.1", To: "2.6.2"}}
		if name == "of one without a bill" {
			want = nil
		}
		assert.Equal(t, want, saved(t, b).Changes, name)
	}
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
