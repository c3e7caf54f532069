package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
)

// machine is the disk of one that is captured, beside programs that only have to be there.
func machine(t *testing.T, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range programs {
		require.NoError(t, os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o700))
	}
	t.Setenv("PATH", dir)
	disk := filepath.Join(dir, "lab.vdi")
	require.NoError(t, os.WriteFile(disk, []byte("a machine's disk"), 0o600))
	return disk
}

func TestACapturedMachineGoesTheWayOfABuild(t *testing.T) {
	dir := t.TempDir()
	b, g, _ := wired(t, everything(dir))
	disk := machine(t, "guestfish", "virt-sparsify")
	done, err := b.Capture(t.Context(), disk)
	require.NoError(t, err)
	assert.Equal(t, "registry.example.org/labs/course:v1@sha256:image", done.Reference)
	assert.Equal(t, []string{"import", "generalise", "sparsify", "verify", "pack", "export", "push"}, g.runs)
	captured := dir + "/out/work/captured.qcow2"
	assert.Equal(t, []any{disk, captured, "qcow2", "student", true}, []any{g.imported, g.generalise.Disk, g.generalise.Format, g.generalise.VMUser, g.generalise.BakedUser})
	assert.Equal(t, captured, g.sparsified)
	assert.False(t, g.sparsify.Trimmed, "no guest trimmed it")
	assert.Zero(t, g.verify.VirtualSize, "whether its root grows is not asked")
	assert.Empty(t, g.verify.Checks)
	assert.Equal(t, []string{"lab.vdi", "course", "v1", ""}, []string{g.pack.BaseName, g.pack.Title, g.pack.Version, g.pack.Annotations[oci.AnnotationInputs]})
	assert.Equal(t, "Debian 12", g.pack.Annotations[oci.AnnotationGuest])
	assert.NoFileExists(t, captured)
	assert.Equal(t, "sha256:"+sum("a machine's disk"), g.pack.BaseDigest)
	r, err := report.Saved(dir + "/out")
	require.NoError(t, err)
	assert.Equal(t, "lab.vdi", r.Base.Name)
	assert.Contains(t, r.Checks, report.Check{Group: "capture", Name: "logs", OK: true, Detail: "repaired 2 leftovers of the machine"})
}

func TestWhatACaptureLacksIsSaidBeforeTheDiskIsCopied(t *testing.T) {
	for want, change := range map[string]func(b *Build, disk *string){
		"IMAGE_NAME: is not set":                           func(b *Build, _ *string) { b.Config.ImageName = "" },
		"SOURCE: is empty":                                 func(_ *Build, disk *string) { *disk = "" },
		"stat /nowhere/lab.vdi: no such file or directory": func(_ *Build, disk *string) { *disk = "/nowhere/lab.vdi" },
		"is neither a file nor a block device":             func(_ *Build, disk *string) { *disk = t.TempDir() },
		"apt-get install guestfish":                        func(*Build, *string) { t.Setenv("PATH", t.TempDir()) },
	} {
		b, g, _ := wired(t, everything(t.TempDir()))
		disk := machine(t, "guestfish", "virt-sparsify")
		change(b, &disk)
		_, err := b.Capture(t.Context(), disk)
		require.ErrorContains(t, err, want)
		assert.Empty(t, g.runs)
	}
}

func TestWhatIsWrongInACapturedMachineIsCorrectedThere(t *testing.T) {
	b, g, _ := wired(t, everything(t.TempDir()))
	b.rooms.scan = func(context.Context, hygiene.Options, progress.Reporter) (hygiene.Result, error) {
		return hygiene.Result{}, &failure.Error{What: "the disk carries 1 leftover of its build", Try: "correct the playbook", Lines: []string{"credentials: /home/ada/.netrc"}}
	}
	disk := machine(t, "guestfish", "virt-sparsify")
	_, err := b.Capture(t.Context(), disk)
	require.ErrorContains(t, err, "correct it in the machine, shut that down and capture it again")
	assert.NotContains(t, err.Error(), "playbook")
	assert.NotContains(t, g.runs, "pack")
	b.rooms.scan = g.fakes(t.TempDir()).scan
	g.runs = nil
	_, err = b.Capture(t.Context(), disk)
	require.NoError(t, err)
	assert.Equal(t, []string{"pack", "export", "push"}, g.runs, "the rest was done before")
}
