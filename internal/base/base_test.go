package base

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func TestWhatTheRecipeCannotMakeIsRefused(t *testing.T) {
	t.Parallel()
	good := Options{Suite: "bookworm", CacheDir: t.TempDir()}
	tests := map[string]struct {
		change func(*Options)
		err    string
	}{
		"suite":       {func(o *Options) { o.Suite = "jammy" }, `suite "jammy": choose one of bookworm, trixie`},
		"mirror":      {func(o *Options) { o.Mirror = "ftp.debian.org/debian" }, "APT_MIRROR is no http or https address"},
		"apt options": {func(o *Options) { o.Mirror = "http://mirror/debian [trusted=yes]" }, "APT_MIRROR is no http or https address"},
		"password":    {func(o *Options) { o.Mirror = "http://me:secret@mirror/debian" }, "APT_MIRROR holds a user name or password"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := good
			tt.change(&o)
			_, err := Make(t.Context(), o, progress.Discard)
			require.ErrorContains(t, err, tt.err)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
	left, err := os.ReadDir(good.CacheDir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestARecipesDigestFollowsEverythingThatMakesTheImage(t *testing.T) {
	t.Parallel()
	o, err := Options{Suite: "bookworm", CacheDir: "/c"}.complete()
	require.NoError(t, err)
	seen := map[string]bool{o.digest(): true}
	for _, change := range []func(*Options){
		func(o *Options) { o.Suite = "trixie" }, func(o *Options) { o.Mirror = "http://mirror/debian" },
		func(o *Options) { o.Architecture = "arm64" },
	} {
		c := o
		change(&c)
		assert.False(t, seen[c.digest()])
		seen[c.digest()] = true
	}
	c := o
	c.CacheDir = "/elsewhere"
	assert.True(t, seen[c.digest()])
}

func TestTheRecipeNamesOneFileSystemEverywhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"etc/fstab", "boot/grub/grub.cfg", "boot/grub/early.cfg", "boot/efi/EFI/debian/grub.cfg"} {
		assert.Contains(t, Options{}.recipeFile("recipe/overlay/"+name), fsUUID, name)
	}
	serial := strings.ToUpper(fsUUID[:4] + "-" + fsUUID[4:8])
	assert.Contains(t, Options{}.recipeFile("recipe/overlay/etc/fstab"), "UUID="+serial+" ", "as FAT's serial numbers are written")
	assert.Contains(t, Options{}.packages(), "cloud-guest-utils", "it has growpart")
}

func TestTheOverlayIsAReadableArchiveWithOneDate(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	when := time.Unix(1700000000, 0)
	require.NoError(t, Options{}.writeOverlay(&b, when))
	found := map[string]int64{}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		assert.True(t, h.ModTime.Equal(when))
		assert.Zero(t, h.Uid)
		found[h.Name] = h.Mode
	}
	assert.Equal(t, int64(0o644), found["etc/fstab"])
	assert.Equal(t, int64(0o755), found["boot/grub/"])
}

func TestTheRecipeIsForOneArchitecture(t *testing.T) {
	t.Parallel()
	for _, a := range arch.All {
		o, text := Options{Architecture: a.Name}, ""
		require.NoError(t, fs.WalkDir(recipe, "recipe", func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				text += o.recipeFile(name)
			}
			return err
		}))
		for _, other := range arch.All {
			for _, name := range []string{other.Name, other.Console, other.Loader(), "shim" + other.EFI, other.GRUB} {
				assert.Equal(t, other.Name == a.Name, strings.Contains(text, name), "%s in the recipe for %s", name, a.Name)
			}
		}
		for _, bios := range []string{"grub-pc-bin\n", "i386-pc", "\nserial ", "GRUB_SERIAL"} { // UEFI's console is the serial port, too
			assert.Equal(t, a.BIOS, strings.Contains(text, bios), "%s in the recipe for %s", bios, a.Name)
		}
		assert.NotContains(t, text, "{{")
	}
}

func TestPackagesOfAnotherArchitectureTakeAHostThatRunsThem(t *testing.T) {
	programs := t.TempDir()
	for _, name := range tools {
		require.NoError(t, os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"), 0o755))
	}
	o := Options{CacheDir: t.TempDir(), Architecture: "arm64"}
	if runtime.GOARCH == "arm64" {
		o.Architecture = "amd64"
	}
	t.Setenv("PATH", programs)
	require.ErrorContains(t, o.checkHost(t.Context()), "apt-get install arch-test qemu-user-static")
	require.NoError(t, os.WriteFile(filepath.Join(programs, "arch-test"), []byte("#!/bin/sh\n[ $1 = "+o.Architecture+" ]\n"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(programs, "unshare"), []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, o.checkHost(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(programs, "arch-test"), []byte("#!/bin/sh\nexit 1\n"), 0o755))
	require.ErrorContains(t, o.checkHost(t.Context()), "which this host does not")
}

// smallDisk assembles a disk of a small tree with a made-up boot loader.
func smallDisk(t *testing.T, core []byte) (build, error) {
	t.Helper()
	b := build{dir: t.TempDir(), epoch: time.Unix(1700000000, 0), p: progress.Discard}
	grub := b.file("root/boot/grub/i386-pc")
	require.NoError(t, os.MkdirAll(grub, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(grub, "boot.img"), bytes.Repeat([]byte{0xb0}, sector), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(grub, "core.img"), core, 0o644))
	for _, name := range []string{"BOOT/BOOTX64.EFI", "BOOT/grubx64.efi", "debian/grub.cfg"} {
		file := b.file("root/boot/efi/EFI/" + name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(name), 0o644))
		require.NoError(t, os.Chtimes(file, b.epoch, b.epoch))
	}
	return b, b.assemble(t.Context())
}

func TestTheDiskHasBootLoaderPartitionTableAndFileSystemInPlace(t *testing.T) {
	t.Parallel()
	core := bytes.Repeat([]byte{0xc0}, 30000)
	b, err := smallDisk(t, core)
	require.NoError(t, err)
	f, err := os.Open(b.file("disk.raw"))
	require.NoError(t, err)
	defer f.Close()
	head := make([]byte, systemStart)
	_, err = io.ReadFull(f, head)
	require.NoError(t, err)

	assert.Equal(t, bytes.Repeat([]byte{0xb0}, bootCode), head[:bootCode])
	assert.Equal(t, uint32(0x6469736b), binary.LittleEndian.Uint32(head[440:]), "the disk's signature")
	assert.Equal(t, []byte{0x55, 0xaa}, head[510:512])
	entry := head[446:462]
	assert.Equal(t, byte(0x80), entry[0], "bootable")
	assert.Equal(t, byte(0x83), entry[4], "Linux")
	assert.Equal(t, uint32(rootStart/sector), binary.LittleEndian.Uint32(entry[8:]))
	assert.Equal(t, uint32((size-rootStart)/sector), binary.LittleEndian.Uint32(entry[12:]), "to the end: it can grow")
	esp := head[462:478]
	assert.Equal(t, byte(0xef), esp[4], "EFI system partition")
	assert.Equal(t, uint32(systemStart/sector), binary.LittleEndian.Uint32(esp[8:]))
	assert.Equal(t, uint32(systemSize/sector), binary.LittleEndian.Uint32(esp[12:]))
	assert.Equal(t, make([]byte, 32), head[478:510], "no other partition")
	assert.Equal(t, core, head[sector:sector+len(core)])
	assert.Equal(t, make([]byte, systemStart-sector-len(core)), head[sector+len(core):])

	listed, err := exec.Command("mdir", "-b", "-/", "-i", fmt.Sprintf("%s@@%d", b.file("disk.raw"), systemStart), "::").CombinedOutput()
	require.NoError(t, err, "%s", listed)
	dated, err := exec.Command("mdir", "-i", fmt.Sprintf("%s@@%d", b.file("disk.raw"), systemStart), "::").CombinedOutput()
	require.NoError(t, err, "%s", dated)
	assert.Contains(t, string(dated), "EFI          <DIR>     2023-11-14", "the epoch's date, not today's")
	assert.Equal(t, []string{"::/EFI/", "::/EFI/BOOT/", "::/EFI/debian/", "::/EFI/BOOT/BOOTX64.EFI", "::/EFI/BOOT/grubx64.efi", "::/EFI/debian/grub.cfg"},
		strings.Fields(string(listed)))
	left, err := os.ReadDir(b.file("root/boot/efi"))
	require.NoError(t, err)
	assert.Empty(t, left, "it is mounted there")

	disk := fmt.Sprintf("%s?offset=%d", b.file("disk.raw"), rootStart)
	out, err := exec.Command("/usr/sbin/e2fsck", "-fn", disk).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("/usr/sbin/dumpe2fs", "-h", disk).Output()
	require.NoError(t, err)
	_, has, _ := strings.Cut(string(out), "Filesystem features:")
	has, _, _ = strings.Cut(has, "\n")
	assert.ElementsMatch(t, strings.Split(features, ","), strings.Fields(has), "whatever this host's mke2fs has by default")
	out, err = exec.Command("/usr/sbin/blkid", "--probe", "--offset", strconv.Itoa(rootStart), b.file("disk.raw")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), fsUUID)
	assert.NoError(t, b.convert(t.Context()))
	assert.FileExists(t, b.file("disk.qcow2"))
}

func TestTheSameTreeMakesTheSameSystemPartition(t *testing.T) {
	t.Parallel()
	var made [2][]byte
	for i := range made {
		b, err := smallDisk(t, nil)
		require.NoError(t, err)
		f, err := os.Open(b.file("disk.raw"))
		require.NoError(t, err)
		defer f.Close()
		made[i] = make([]byte, rootStart)
		_, err = io.ReadFull(f, made[i])
		require.NoError(t, err)
	}
	assert.True(t, bytes.Equal(made[0], made[1]))
}

func TestABootLoaderThatDoesNotFitBeforeThePartitionIsRefused(t *testing.T) {
	t.Parallel()
	_, err := smallDisk(t, make([]byte, systemStart))
	require.ErrorContains(t, err, "does not fit before the partitions")
}

// published puts an image into a new cache as Make does.
func published(t *testing.T) (Options, Image) {
	t.Helper()
	o, err := Options{Suite: "bookworm", CacheDir: t.TempDir()}.complete()
	require.NoError(t, err)
	file := filepath.Join(o.CacheDir, "new.qcow2")
	require.NoError(t, os.WriteFile(file, []byte("image"), 0o644))
	image, err := o.publish(t.Context(), file, time.Unix(1700000000, 0).UTC())
	require.NoError(t, err)
	return o, image
}

func TestAnImageThatIsThereIsUsedAgain(t *testing.T) {
	t.Parallel()
	o, made := published(t)
	again, err := Make(t.Context(), o, progress.Discard)
	require.NoError(t, err)
	assert.True(t, again.Cached)
	made.Cached = true
	assert.Equal(t, made, again)
}

func TestAnImageWhoseBytesChangedIsNotUsed(t *testing.T) {
	t.Parallel()
	o, made := published(t)
	require.NoError(t, os.WriteFile(made.Path, []byte("imagE"), 0o644))
	_, ok := o.cached(t.Context(), progress.Discard)
	assert.False(t, ok)
	o, made = published(t)
	require.NoError(t, os.Remove(made.Path))
	_, ok = o.cached(t.Context(), progress.Discard)
	assert.False(t, ok)
	o, _ = published(t)
	require.NoError(t, os.WriteFile(o.record(), []byte("{"), 0o644))
	_, ok = o.cached(t.Context(), progress.Discard)
	assert.False(t, ok)
}

func mirror(t *testing.T, have ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i, suite := range have {
			if r.URL.Path == suite+"/InRelease" {
				fmt.Fprintf(w, "-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Debian\nDate: Sat, 0%d Sep 2025 09:11:15 UTC\n", i+1)
				return
			}
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/debian"
}

type warned struct {
	progress.Reporter
	all []string
}

func (w *warned) Warn(m string) { w.all = append(w.all, m) }

func TestTheNewestIndexDatesTheImageAndMissingUpdatesAreToldOf(t *testing.T) {
	t.Parallel()
	m := mirror(t, "/debian/dists/bookworm", "/debian-security/dists/bookworm-security")
	w := &warned{Reporter: progress.Discard}
	lines, date, err := Options{Suite: "bookworm", Mirror: m}.archives(t.Context(), w)
	require.NoError(t, err)
	assert.Equal(t, []string{"deb " + m + " bookworm main", "deb " + m + "-security bookworm-security main"}, lines)
	assert.Equal(t, time.Date(2025, 9, 2, 9, 11, 15, 0, time.UTC), date.UTC())
	require.Len(t, w.all, 1)
	assert.Contains(t, w.all[0], "has no bookworm-updates")
}

func TestAMirrorWithoutTheSuiteIsNamedAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	o := Options{Suite: "trixie", Mirror: mirror(t, "/debian/dists/bookworm"), CacheDir: t.TempDir()}
	_, err := Make(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, "the Debian mirror does not serve trixie")
	assert.Contains(t, err.Error(), o.Mirror)
	onlyLock(t, o.CacheDir)
}

func onlyLock(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range left {
		assert.True(t, strings.HasSuffix(f.Name(), ".lock"), f.Name())
	}
}

func TestAMirrorWhosePackagesCannotBeReadFailsWithAptsLastLinesAndLeavesNothing(t *testing.T) {
	t.Parallel()
	o := Options{Suite: "bookworm", Mirror: mirror(t, "/debian/dists/bookworm"), CacheDir: t.TempDir()}
	stale := filepath.Join(o.CacheDir, ".base-bookworm-1.tmp")
	require.NoError(t, os.Mkdir(stale, 0o700))
	_, err := Make(t.Context(), o, progress.Discard)
	require.ErrorContains(t, err, "Debian's packages could not be installed: mmdebstrap")
	onlyLock(t, o.CacheDir)
}

func TestTheEndOfTheContextEndsTheMakingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	// The mirror serves an index without a signature, then stalls.
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked > 3 {
			cancel(stop)
			<-r.Context().Done()
			return
		}
		fmt.Fprintln(w, "Date: Sat, 06 Sep 2025 09:11:15 UTC")
	}))
	defer s.Close()
	o := Options{Suite: "bookworm", Mirror: s.URL + "/debian", CacheDir: t.TempDir()}
	_, err := Make(ctx, o, progress.Discard)
	require.ErrorIs(t, err, stop)
	onlyLock(t, o.CacheDir)
}

func TestMissingProgramsAreNamedByTheirPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Options{CacheDir: t.TempDir()}.checkHost(t.Context())
	require.ErrorContains(t, err, "apt-get install mmdebstrap")
	assert.Contains(t, err.Error(), "qemu-utils")
}

func FuzzTheDateOfAnIndex(f *testing.F) {
	f.Add("Origin: Debian\nDate: Sat, 06 Sep 2025 09:11:15 UTC\n")
	f.Add("Date:")
	f.Fuzz(func(t *testing.T, s string) {
		if date, err := parseDate(strings.NewReader(s)); err == nil {
			require.Contains(t, s, "Date:")
			require.False(t, date.IsZero() && !strings.Contains(s, "0001"))
		}
	})
}
