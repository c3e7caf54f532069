package hygiene_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

const (
	statusFile = "/var/lib/dpkg/status"
	oneStatus  = "Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n"
)

// TestThePackagesOfADebianAreThoseThatDpkgNames takes this host's list, again
// and again under other names, until it is longer than what a rule reads.
func TestThePackagesOfADebianAreThoseThatDpkgNames(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("this host has no dpkg-query: " + err.Error())
	}
	status, err := os.ReadFile(statusFile)
	require.NoError(t, err)
	long := string(status)
	for i := 1; len(long) <= 2*mib; i++ {
		long += strings.ReplaceAll("\n"+string(status), "\nPackage: ", "\nPackage: copy"+strings.Repeat("y", i)+"-")
	}
	admin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(admin, "status"), []byte(long), 0o600))
	for _, dir := range []string{"info", "updates"} {
		require.NoError(t, os.Mkdir(filepath.Join(admin, dir), 0o700))
	}
	want := map[string]bool{}
	said := tool(t, "dpkg-query", "-W", "--admindir="+admin, "-f", "${db:Status-Status} ${Package} ${Architecture} ${Version} ${source:Package} ${source:Version}\n")
	for line := range strings.Lines(said) {
		state, line, _ := strings.Cut(strings.TrimSpace(line), " ")
		if state != "config-files" && state != "not-installed" {
			want[line] = true
		}
	}
	require.NotEmpty(t, want)

	tree := with(map[string]file{
		statusFile:            {long, 0},
		"/etc/os-release":     {"../usr/lib/os-release", fs.ModeSymlink},
		"/usr/lib/os-release": {"PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_ID=\"12\"\n", 0},
	})
	r, err := hygiene.Scan(t.Context(), options(t, qcow2(t, rawDisk(t, tree))), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, []string{"debian", "12", ""}, []string{r.Inventory.System, r.Inventory.Version, r.Inventory.None})
	got := map[string]bool{}
	for _, p := range r.Inventory.Packages {
		got[strings.Join([]string{p.Name, p.Architecture, p.Version, p.Source, p.SourceVersion}, " ")] = true
	}
	assert.Equal(t, want, got)
	assert.Len(t, r.Inventory.Packages, len(want))
}

func TestADiskWithoutPackagesOfDpkgPassesAndSaysWhyThereAreNone(t *testing.T) {
	t.Parallel()
	for want, more := range map[string]map[string]file{
		"it covers dpkg's packages alone, and the disk has no /var/lib/dpkg/status": {"/var/lib/rpm/rpmdb.sqlite": {"SQLite format 3\x00", 0}},
		"/var/lib/dpkg/status is larger than 32 MiB":                                {statusFile: {oneStatus + strings.Repeat(" x\n", 11*mib), 0}},
		"/var/lib/dpkg/status is empty, no file of its own, or a link":              {statusFile: {"/etc/passwd", fs.ModeSymlink}},
		"/var/lib/dpkg/status cannot be read: line 2: it is no field":               {statusFile: {"Package: a\nno field", 0}},
		"/var/lib/dpkg/status lists no package":                                     {statusFile: {strings.ReplaceAll(oneStatus, "ok installed", "ok config-files"), 0}},
	} {
		r, err := scan(t, rawDisk(t, with(more)))
		require.NoError(t, err, want)
		assert.Equal(t, want, r.Inventory.None)
		assert.Empty(t, r.Inventory.Packages)
	}
}

// TestAnotherNameOfTheListDoesNotStopTheGate: the content of a hard link comes with its
// first name from libguestfs, and with each from debugfs.
func TestAnotherNameOfTheListDoesNotStopTheGate(t *testing.T) {
	t.Parallel()
	tree := folder(t, with(map[string]file{"/aaa": {oneStatus, 0}, "/var/lib/dpkg/info/x.list": {"", 0}}))
	require.NoError(t, os.Link(filepath.Join(tree, "aaa"), filepath.Join(tree, statusFile)))
	path := filepath.Join(t.TempDir(), "tree.tar")
	tool(t, "tar", "--numeric-owner", "--sort=name", "-C", tree, "-cf", path, ".")
	r, err := hygiene.Scan(t.Context(), guestfished(t, minixDisk(t), "cat "+path), progress.Discard)
	require.NoError(t, err)
	assert.Equal(t, "/var/lib/dpkg/status is empty, no file of its own, or a link", r.Inventory.None)

	disk := rawDisk(t, with(map[string]file{"/aaa": {oneStatus, 0}, "/var/lib/dpkg/info/x.list": {"", 0}}))
	debugfs(t, disk, "ln /aaa "+statusFile)
	r, err = scan(t, disk)
	require.NoError(t, err)
	assert.Equal(t, []sbom.Package{{Name: "a", Version: "1", Architecture: "all", Source: "a", SourceVersion: "1"}}, r.Inventory.Packages)
}
