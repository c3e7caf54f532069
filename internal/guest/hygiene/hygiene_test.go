package hygiene_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// options are those of a build as "packer"; what the gate unpacks goes to a
// directory of the test, which must be empty afterwards.
func options(t testing.TB, disk string) hygiene.Options {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { assert.Empty(t, names(t, dir), "the gate left something behind") })
	format := strings.TrimPrefix(filepath.Ext(disk), ".")
	return hygiene.Options{Disk: disk, Format: format, Dir: dir, BuildUser: "packer", Secrets: secrets()}
}

func scan(t testing.TB, disk string) (hygiene.Result, error) {
	t.Helper()
	return hygiene.Scan(t.Context(), options(t, disk), progress.Discard)
}

func TestACleanDiskPasses(t *testing.T) {
	t.Parallel()
	raw := rawDisk(t, cleanTree())
	for _, disk := range []string{raw, qcow2(t, raw)} {
		r, err := scan(t, disk)
		require.NoError(t, err)
		assert.Empty(t, r.Findings)
		assert.Equal(t, hygiene.Debugfs, r.Method)
		assert.Equal(t, []hygiene.FileSystem{{Type: "ext4", Mount: "/", Partition: 1}}, r.FileSystems)
		assert.Equal(t, hygiene.Rules(), r.Rules)
		assert.Positive(t, r.Files)
	}
}

func TestEveryPlantedDefectIsFoundAndNothingElse(t *testing.T) {
	t.Parallel()
	r, err := scan(t, qcow2(t, rawDisk(t, planted())))
	assertDefects(t, r, err)
}

// assertDefects expects the findings of the planted tree.
func assertDefects(t *testing.T, r hygiene.Result, err error) {
	t.Helper()
	assert.ElementsMatch(t, expected(), found(r))
	f, ok := failure.In(err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, fmt.Sprintf("the disk carries %d leftovers of its build", len(defects)), f.What)
	assert.Contains(t, f.Lines, "ssh-host-keys: /etc/ssh/ssh_host_ed25519_key: a host key, which every machine made of this disk would share")
	for _, rule := range hygiene.Rules() {
		if rule.Name == "unmounted" {
			continue // it is about partitions
		}
		assert.True(t, slices.ContainsFunc(r.Findings, func(f hygiene.Finding) bool { return f.Rule == rule.Name }), "nothing was planted for %s", rule.Name)
	}
	said, errJSON := json.Marshal(r)
	require.NoError(t, errJSON)
	for _, secret := range []string{token, password} {
		assert.NotContains(t, string(said)+fmt.Sprint(f.Lines), secret)
	}
}

func TestWhatMke2fsOfNewerSystemsEnablesIsRead(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, planted(), "-O", "metadata_csum_seed,inline_data,64bit,orphan_file")
	r, err := scan(t, disk)
	assertDefects(t, r, err)
}

func TestTheOlderFileSystemsAreRead(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ext2", "ext3"} {
		tree := planted()
		tree["/opt/big"] = file{strings.Repeat("\x00", 65*mib/16) + token, 0}
		disk := rawDisk(t, tree, "-t", kind)
		r, err := scan(t, disk)
		require.Error(t, err)
		assert.Contains(t, found(r), "build-secrets /opt/big")
		assert.Equal(t, kind, r.FileSystems[0].Type)
	}
}

func TestABakedUserMayStayButNotItsPassword(t *testing.T) {
	t.Parallel()
	more := map[string]file{
		"/etc/passwd":            {"packer:x:1000:1000::/home/packer:/bin/sh\n", 0},
		"/etc/shadow":            {"packer:!:20000:::::\n", 0o640},
		"/home/packer/.bashrc":   {"", 0},
		"/var/spool/mail/packer": {"", 0},
	}
	o := options(t, rawDisk(t, with(more)))
	o.BakedUser = true
	_, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.NoError(t, err)

	more["/etc/shadow"] = file{"packer:!$y$j9T$abc$def:20000:::::\n", 0o640}
	o = options(t, rawDisk(t, with(more)))
	o.BakedUser = true
	r, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.Error(t, err)
	assert.Equal(t, []string{"build-user /etc/shadow"}, found(r))
}

func TestAnExcuseLetsItsFindingPassAndAnIdleOneIsTold(t *testing.T) {
	t.Parallel()
	o := options(t, rawDisk(t, with(map[string]file{
		"/etc/ssl/private/ssl-cert-snakeoil.key": {privateKey, 0o640},
		"/var/log/wtmp":                          {"boot", 0},
	})))
	o.Policy.Excuses = []hygiene.Excuse{
		{Rule: "private-keys", Path: "/etc/ssl/private/*.key", Reason: "made anew at first boot"},
		{Rule: "logs", Path: "/var/log/*/wtmp", Reason: "mistyped"},
	}
	var said recorder
	r, err := hygiene.Scan(t.Context(), o, &said)
	require.EqualError(t, err, "the disk carries 1 leftover of its build: correct the playbook, or excuse them with a reason in the allow-list")
	assert.ElementsMatch(t, []string{"private-keys /etc/ssl/private/ssl-cert-snakeoil.key", "logs /var/log/wtmp"}, found(r))
	require.Len(t, r.Unexcused(), 1)
	assert.Equal(t, "logs", r.Unexcused()[0].Rule)
	assert.Equal(t, "made anew at first boot", r.Findings[1].Excused)
	assert.Equal(t, []string{"the allow-list excuses /var/log/*/wtmp for logs, but there is no such finding"}, said.warnings)
}

func TestWhoNeedsNoPasswordIsNamedAndTheImagesOwnUserToldApart(t *testing.T) {
	t.Parallel()
	r, err := scan(t, rawDisk(t, with(map[string]file{
		"/etc/sudoers":                       {"# NOPASSWD\n%sudo   ALL=(ALL:ALL) NOPASSWD:ALL\n", 0o440},
		"/etc/sudoers.d/number":              {"#1000 ALL=(ALL) NOPASSWD: ALL\n", 0o440},
		"/etc/sudoers.d/90-cloud-init-users": {"# User rules for ubuntu\nubuntu ALL=(ALL) NOPASSWD:ALL\n", 0o440},
		"/etc/cloud/cloud.cfg":               {"system_info:\n  distro: ubuntu\n  default_user:\n    # the login user\n    name: ubuntu\n    lock_passwd: True\n", 0},
	})))
	require.Error(t, err)
	var all []string
	for _, f := range r.Findings {
		all = append(all, f.String())
	}
	assert.Equal(t, []string{
		"nopasswd: /etc/sudoers: lets somebody become root without a password: %sudo ALL=(ALL:ALL) NOPASSWD:ALL",
		"nopasswd: /etc/sudoers.d/90-cloud-init-users: the cloud image's own rule for its login user, who becomes root without a password: ubuntu ALL=(ALL) NOPASSWD:ALL",
		"nopasswd: /etc/sudoers.d/number: lets somebody become root without a password: #1000 ALL=(ALL) NOPASSWD: ALL",
	}, all)
}

func TestAFullDiskIsNamedWithItsFolder(t *testing.T) {
	t.Parallel()
	disk := qcow2(t, rawDisk(t, with(map[string]file{"/opt/big": {strings.Repeat("x", 4*mib), 0}})))
	o := options(t, disk)
	o.Dir = testkit.MountTmpfs(t, "1M")
	_, err := hygiene.Scan(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, "no space left in "+o.Dir+" to look into the disk")
}

func TestAMachineIDThatWasNeverMadeMaySaySo(t *testing.T) {
	t.Parallel()
	_, err := scan(t, rawDisk(t, with(map[string]file{"/etc/machine-id": {"uninitialized\n", 0}})))
	require.NoError(t, err)
}

func TestASecretInADeletedFileIsFound(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, with(map[string]file{"/srv/deleted": {strings.Repeat("x", 8000) + token, 0}}))
	debugfs(t, disk, "rm /srv/deleted")
	r, err := scan(t, disk)
	require.Error(t, err)
	assert.Equal(t, []string{"build-secrets blocks outside of files"}, found(r))
}

func TestAShortSecretIsNotSearched(t *testing.T) {
	t.Parallel()
	o := options(t, rawDisk(t, cleanTree()))
	o.Secrets = []hygiene.Secret{{Name: "SHORT", Value: "bin"}, {Name: "UNSET", Value: ""}}
	var said recorder
	_, err := hygiene.Scan(t.Context(), o, &said)
	require.NoError(t, err)
	assert.Equal(t, []string{"the disk is not searched for SHORT, which has fewer than 6 characters"}, said.warnings)
}

func TestABigSparseFileIsReadWithoutItsHoles(t *testing.T) {
	t.Parallel()
	root := folder(t, cleanTree())
	f, err := os.Create(filepath.Join(root, "srv", "sparse"))
	require.NoError(t, err)
	require.NoError(t, f.Truncate(1<<40))
	_, err = f.WriteAt([]byte(token), 1<<39)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	disk := filepath.Join(t.TempDir(), "whole.raw")
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk, "64M")
	r, err := scan(t, disk)
	require.Error(t, err)
	assert.Equal(t, []string{"build-secrets /srv/sparse"}, found(r))
	assert.Equal(t, []hygiene.FileSystem{{Type: "ext4", Mount: "/", Partition: 0}}, r.FileSystems, "a disk without partitions")
}

func TestASmallFileWithHolesIsReadAsItIs(t *testing.T) {
	t.Parallel()
	tree := with(map[string]file{"/srv/holes": {token[:4] + strings.Repeat("\x00", mib) + token[4:], 0}, "/srv/whole": {strings.Repeat("\x00", mib) + token, 0}})
	r, err := scan(t, rawDisk(t, tree))
	require.Error(t, err)
	assert.Equal(t, []string{"build-secrets /srv/whole"}, found(r))
}

func TestPartitionsAreTakenWhereFstabMountsThem(t *testing.T) {
	t.Parallel()
	tree := with(map[string]file{"/etc/fstab": {"# a comment\nLABEL=root / ext4\nLABEL=logs /var/log/ ext4\nUUID=0A0B-0C0D /boot/efi vfat\n", 0}})
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64*mib))
	pipe(t, "label: gpt\nsize=1MiB, type=21686148-6449-6E6F-744E-656564454649\nsize=10MiB, type=L\nsize=10MiB, type=L\nsize=30MiB, type=L\n", "sfdisk", "--quiet", disk)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "logs", "-E", "offset=2097152", "-d", folder(t, map[string]file{"/syslog": {"text", 0}}), disk, "10M")
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "other", "-E", "offset=12582912", "-d", folder(t, map[string]file{"/key": {privateKey, 0}, "/etc/machine-id": {"id", 0}}), disk, "10M")
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "offset=23068672", "-d", folder(t, tree), disk, "30M")
	r, err := scan(t, disk)
	require.Error(t, err)
	assert.Equal(t, []string{"logs /var/log/syslog", "private-keys partition 3:/key", "unmounted partition 3"}, found(r))
	assert.Equal(t, []hygiene.FileSystem{{"ext4", "/var/log", 2}, {"ext4", "partition 3:", 3}, {"ext4", "/", 4}}, r.FileSystems)
}

// twoPartitions is a GPT disk with the tree, and another ext4 partition that
// is called Homes, with those files.
func twoPartitions(t *testing.T, root, homes map[string]file) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64*mib))
	pipe(t, "label: gpt\nstart=2048, size=40MiB, type=L\nsize=10MiB, type=L, name=\"Homes\"\n", "sfdisk", "--quiet", disk)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "offset=1048576", "-d", folder(t, root), disk, "40M")
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "offset=42991616", "-d", folder(t, homes), disk, "10M")
	return disk
}

func TestAPartitionIsFoundByItsPartitionsLabel(t *testing.T) {
	t.Parallel()
	homes := map[string]file{"/packer/.bash_history": {"ls\n", 0}}
	for _, spec := range []string{"PARTLABEL=Homes", `PARTLABEL="Homes"`, "/dev/disk/by-partlabel/Homes"} {
		root := with(map[string]file{"/etc/fstab": {"LABEL=root / ext4\n" + spec + " /home ext4\n", 0}})
		r, err := scan(t, twoPartitions(t, root, homes))
		require.Error(t, err)
		assert.Equal(t, []string{"build-user /home/packer", "shell-history /home/packer/.bash_history"}, found(r), spec)
	}
}

func TestFilesThatNoFstabMountsDoNotPass(t *testing.T) {
	t.Parallel()
	disk := twoPartitions(t, cleanTree(), map[string]file{"/packer": {"", fs.ModeDir | 0o700}})
	r, err := scan(t, disk)
	require.Error(t, err)
	assert.Equal(t, []string{"unmounted partition 2"}, found(r))

	o := options(t, disk)
	o.Policy.Excuses = []hygiene.Excuse{{Rule: "unmounted", Path: "partition 2", Reason: "home.mount mounts it"}}
	_, err = hygiene.Scan(t.Context(), o, progress.Discard)
	require.NoError(t, err)

	_, err = scan(t, twoPartitions(t, cleanTree(), nil))
	require.NoError(t, err, "an empty one")
}

func TestTwoPartitionsAreNotTakenForOnePlace(t *testing.T) {
	t.Parallel()
	root := with(map[string]file{"/etc/fstab": {"LABEL=root / ext4\nPARTLABEL=Homes / ext4\n", 0}})
	r, err := scan(t, twoPartitions(t, root, map[string]file{"/etc/shadow": {"", 0}}))
	require.Error(t, err)
	assert.Equal(t, []string{"unmounted partition 2"}, found(r))
}

// fat is the head of a FAT16 file system of 10 MiB, by which blkid knows it.
func fat() []byte {
	b := make([]byte, 1024)
	copy(b, "\xeb\x3c\x90mkfs.fat\x00\x02\x04\x01\x00\x02\x00\x02\x00\x50\xf8\x14\x00")
	copy(b[0x26:], "\x29\x0d\x0c\x0b\x0aESP        FAT16   ")
	copy(b[0x1fe:], "\x55\xaa\xf8\xff\xff\xff")
	return b
}

// plant writes at a place of the disk.
func plant(t *testing.T, disk string, at int64, content []byte) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(content, at)
	require.NoError(t, errors.Join(err, f.Close()))
}

func TestPartitionsWhoseFilesAreNotReadAreSearchedAsBlocks(t *testing.T) {
	t.Parallel()
	disk := twoPartitions(t, cleanTree(), nil)
	const second = 41 * mib
	for kind, head := range map[string][]byte{"vfat": fat(), "nothing": make([]byte, 1024)} {
		plant(t, disk, second, make([]byte, 10*mib))
		plant(t, disk, second, head)
		_, err := scan(t, disk)
		require.NoError(t, err, kind)

		plant(t, disk, second+5*mib, []byte(privateKey))
		plant(t, disk, second+6*mib, []byte(token))
		for _, disk := range []string{disk, qcow2(t, disk)} {
			r, err := scan(t, disk)
			require.Error(t, err)
			assert.Equal(t, []string{"private-keys partition 2", "build-secrets partition 2"}, found(r), kind)
		}
	}
	plant(t, disk, second, fat())
	assert.Contains(t, tool(t, "blkid", "-p", "--offset", fmt.Sprint(second), disk), `TYPE="vfat"`)
}

func TestAnExtendedPartitionIsNotTakenForBlocksOutsideOfFiles(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	require.NoError(t, os.Truncate(disk, 64*mib))
	pipe(t, "label: dos\nstart=2048, size=60MiB, type=5\nstart=6144, size=40MiB, type=83\n", "sfdisk", "--quiet", disk)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "offset=3145728", "-d", folder(t, cleanTree()), disk, "40M")
	r, err := scan(t, disk)
	require.NoError(t, err, "the keys that packages ship")
	assert.Equal(t, []hygiene.FileSystem{{Type: "ext4", Mount: "/", Partition: 5}}, r.FileSystems)
}

func TestADamagedFileSystemDoesNotPass(t *testing.T) {
	t.Parallel()
	for name, cmd := range map[string]string{
		"a directory in two places": "ln /etc /srv/again",
		"a loop of directories":     "ln / /srv/top",
		"a file's blocks":           "sif /etc/hostname block[5] 0xffffff",
		"a directory's blocks":      "sif /etc block[5] 0xffffff",
		"an extent's magic":         "sif /etc/hostname block[0] 0",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := rawDisk(t, cleanTree())
			debugfs(t, disk, cmd)
			_, err := scan(t, disk)
			f, ok := failure.In(err)
			require.True(t, ok, "%v", err)
			assert.Contains(t, f.What, "the ext4 file system of partition 1 is damaged: ")
		})
	}
}

func TestADiskWithoutASystemDoesNotPass(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, cleanTree())
	debugfs(t, disk, "sif /etc mode 0100644")
	_, err := scan(t, disk)
	require.ErrorContains(t, err, "none of its file systems has /etc/passwd")
}

func TestADirectoryOfGarbageEndsTheScan(t *testing.T) {
	t.Parallel()
	disk := rawDisk(t, cleanTree(), "-O", "^metadata_csum")
	at := strings.TrimSpace(tool(t, "debugfs", "-R", "blocks /etc", disk+"?offset=1048576"))
	var block int64
	_, err := fmt.Sscan(at[strings.LastIndexAny(at, "\n")+1:], &block)
	require.NoError(t, err)
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("\xff\x00../\n", 100)), mib+block*1024)
	require.NoError(t, errors.Join(err, f.Close()))
	_, err = scan(t, disk)
	require.ErrorContains(t, err, "damaged")
}

func TestADiskWithoutAFileSystemIsRefused(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.raw")
	require.NoError(t, os.WriteFile(empty, make([]byte, mib), 0o600))
	_, err := scan(t, empty)
	require.ErrorContains(t, err, "no file system was found")
	o := options(t, empty)
	o.Format = "vmdk"
	_, err = hygiene.Scan(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, `reads qcow2 and raw disks, not "vmdk"`)
}

func TestAMissingProgramIsNamedWithItsPackage(t *testing.T) {
	disk := minixDisk(t)
	onlyPrograms(t, "qemu-img", "prlimit", "blkid", "sfdisk", "debugfs")
	_, err := scan(t, disk)
	require.EqualError(t, err, "guestfish is not installed: apt-get install guestfish")
}

func TestAnEndedScanLeavesNothing(t *testing.T) {
	t.Parallel()
	disk := qcow2(t, rawDisk(t, cleanTree()))
	stop := errors.New("stopped by the test")
	for _, at := range []string{"unpacking the disk", "reading the partition table", "listing the files of partition 1", "reading the files of partition 1", "searching the blocks outside of files"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := hygiene.Scan(ctx, options(t, disk), &recorder{activity: func(what string) {
			if what == at {
				cancel(stop)
			}
		}})
		require.ErrorIs(t, err, stop, at)
	}
}
