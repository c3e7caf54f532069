package pipeline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// aDebian is what scan finds on one.
func aDebian() sbom.Inventory {
	return sbom.Inventory{System: "debian", Version: "12", Packages: []sbom.Package{
		{Name: "apt", Version: "2.6.2", Architecture: "amd64", Source: "apt", SourceVersion: "2.6.2"},
		{Name: "bash", Version: "5.2.15-2+b13", Architecture: "amd64", Source: "bash", SourceVersion: "5.2.15-2"},
	}}
}

// documents are both in a folder, as text.
func documents(t *testing.T, dir string) (all [2]string) {
	t.Helper()
	for i, name := range []string{sbom.SPDXFile, sbom.CycloneDXFile} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		all[i] = string(text)
	}
	return all
}

func TestTheSBOMLiesBesideTheReportOnEveryWay(t *testing.T) {
	dir := t.TempDir()
	b, g, _ := wired(t, everything(dir))
	out := b.Config.OutputDir
	g.inventory, b.KeepStages = aDebian(), true
	_, err := b.Run(t.Context())
	require.NoError(t, err)
	before, metadata := documents(t, out), g.pack
	for _, text := range before {
		assert.Contains(t, text, strings.TrimPrefix(g.pack.VerifiedDisk, "sha256:"), "the digest of the disk")
		assert.Contains(t, text, "2020-09-13T12:26:40Z", "SOURCE_DATE_EPOCH")
		assert.Contains(t, text, "pkg:deb/debian/bash@5.2.15-2%2Bb13?arch=amd64&distro=debian-12&upstream=bash%405.2.15-2")
	}
	bill := report.SBOM{Packages: 2, Files: []string{"sbom.spdx.json", "sbom.cdx.json"}}
	assert.Equal(t, bill, saved(t, b).SBOM)

	require.NoError(t, os.Remove(filepath.Join(out, sbom.SPDXFile)))
	_, err = b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, before, documents(t, out), "a build that goes on")

	disk := filepath.Join(dir, "disk.qcow2")
	require.NoError(t, b.ProvisionTo(t.Context(), disk+".0"))
	require.NoError(t, b.SparsifyTo(t.Context(), disk+".0", disk))
	playbook := b.Config.Playbook
	b.Config.Playbook = "" // its tree is not fetched
	require.NoError(t, b.VerifyDisk(t.Context(), disk))
	b.Config.Playbook = playbook
	_, err = ReportTo(t.Context(), disk, filepath.Join(dir, "report"))
	require.NoError(t, err)
	assert.Equal(t, before, documents(t, filepath.Join(dir, "report")), "the stages one by one")
	told, err := report.Saved(filepath.Join(dir, "report"))
	require.NoError(t, err)
	assert.Equal(t, bill, told.SBOM)

	require.NoError(t, b.SparsifyTo(t.Context(), disk, disk+".2"))
	_, err = ReportTo(t.Context(), disk+".2", filepath.Join(dir, "other"))
	require.NoError(t, err)
	assert.NoFileExists(t, filepath.Join(dir, "other", sbom.SPDXFile), "nobody looked into that disk")

	g.inventory = sbom.Inventory{None: "it has an rpm database"}
	_, err = b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, report.SBOM{None: "it has an rpm database"}, saved(t, b).SBOM)
	assert.NoFileExists(t, filepath.Join(out, sbom.CycloneDXFile), "it would be of another disk")
	metadata.Accept, g.pack.Accept = nil, nil
	assert.Equal(t, metadata, g.pack, "the image is the same")
}
