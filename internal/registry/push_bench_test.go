package registry_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// The benchmarks measure processes of their own, so that the peak of memory is
// that of the work alone: this program again, with the work in the variable.
const workVariable = "DISKFORGE_TEST_WORK"

var works = map[string]func(arguments []string) error{
	"pack and push": func(a []string) error {
		if _, err := oci.Pack(context.Background(), a[0], a[1], metadata, progress.Discard); err != nil {
			return err
		}
		_, err := registry.Push(context.Background(), a[1], a[2], registry.Options{}, progress.Discard)
		return err
	},
	"push": func(a []string) error {
		_, err := registry.Push(context.Background(), a[0], a[1], registry.Options{}, progress.Discard)
		return err
	},
	// What the command crane append -f TAR -t REF does.
	"crane append": func(a []string) error {
		image, err := crane.Append(empty.Image, a[0])
		if err != nil {
			return err
		}
		return crane.Push(image, a[1])
	},
}

func TestMain(m *testing.M) {
	work, ok := works[os.Getenv(workVariable)]
	if !ok {
		os.Exit(testkit.Run(m))
	}
	err := work(os.Args[1:])
	mib, errPeak := testkit.PeakMiB()
	if err = errors.Join(err, errPeak); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(mib)
}

// measured does the work in a process and returns how long it took and the
// peak of its resident memory in MiB, which the process prints.
func measured(b *testing.B, work string, arguments ...string) (seconds, peak float64) {
	c := exec.Command(os.Args[0], arguments...)
	c.Env = append(os.Environ(), workVariable+"="+work, "DOCKER_CONFIG="+b.TempDir())
	start := time.Now()
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	seconds = time.Since(start).Seconds()
	require.NoError(b, err, "%s", said.String())
	_, err = fmt.Sscan(string(out), &peak)
	require.NoError(b, err, "%s", out)
	return seconds, peak
}

// benchDisk makes a compressed qcow2 with data behind its last cluster up to
// the size in MiB, which QEMU ignores: random, as compressed data looks, or a
// hole, for sizes whose making would take longer than the benchmark.
func benchDisk(b *testing.B, mib int64, random bool) string {
	raw, disk := filepath.Join(b.TempDir(), "raw"), filepath.Join(b.TempDir(), "disk.qcow2")
	require.NoError(b, os.WriteFile(raw, make([]byte, 1<<20), 0o600))
	text, err := os.OpenFile(raw, os.O_WRONLY, 0)
	require.NoError(b, err)
	for range 8 << 10 {
		_, err = text.WriteString("a line that compresses well, again and again and again and again and again and again and again and again and again, and so on\n")
		require.NoError(b, err)
	}
	require.NoError(b, text.Close())
	out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, disk).CombinedOutput()
	require.NoError(b, err, "%s", out)
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	require.NoError(b, err)
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	require.NoError(b, err)
	if random {
		_, err = io.CopyN(f, rand.NewChaCha8([32]byte{}), mib<<20-end)
		require.NoError(b, err)
	}
	require.NoError(b, f.Truncate(mib<<20))
	return disk
}

// tarOf makes the tar that a person would give to crane append.
func tarOf(b *testing.B, disk string) string {
	path := filepath.Join(b.TempDir(), "disk.tar")
	out, err := os.Create(path)
	require.NoError(b, err)
	defer out.Close()
	in, err := os.Open(disk)
	require.NoError(b, err)
	defer in.Close()
	info, err := in.Stat()
	require.NoError(b, err)
	w := tar.NewWriter(out)
	require.NoError(b, w.WriteHeader(&tar.Header{Name: "disk/disk.qcow2", Mode: 0o444, Uid: 107, Gid: 107, Size: info.Size()}))
	_, err = io.Copy(w, in)
	require.NoError(b, err)
	require.NoError(b, w.Close())
	return path
}

// BenchmarkDiskToRegistry compares disk → layout → registry with crane append
// of the same tar to the same registry: the ratio should be at most 1.
func BenchmarkDiskToRegistry(b *testing.B) {
	disk := benchDisk(b, 512, true)
	archive := tarOf(b, disk)
	host, _ := testkit.StartRegistry(b, testkit.RegistryOptions{})
	var ours, theirs, again, peak, theirPeak float64
	for i := 0; b.Loop(); i++ {
		layout := filepath.Join(b.TempDir(), "layout")
		ref := fmt.Sprintf("%s/ours/%d:v1", host, i)
		s, p := measured(b, "pack and push", disk, layout, ref)
		ours, peak = ours+s, max(peak, p)
		s, _ = measured(b, "push", layout, ref)
		again += s
		s, p = measured(b, "crane append", archive, fmt.Sprintf("%s/theirs/%d:v1", host, i))
		theirs, theirPeak = theirs+s, max(theirPeak, p)
	}
	n := float64(b.N)
	b.ReportMetric(ours/n, "s-ours")
	b.ReportMetric(theirs/n, "s-crane-append")
	b.ReportMetric(ours/theirs, "ours/crane")
	b.ReportMetric(again/n, "s-push-again")
	b.ReportMetric(peak, "MiB-peak")
	b.ReportMetric(theirPeak, "MiB-peak-crane")
}

// BenchmarkMemory packs and pushes a disk of 4 GiB: the peak should be under
// 64 MiB. A raw disk goes through zstd, a compressed qcow2 does not.
func BenchmarkMemory(b *testing.B) {
	raw := filepath.Join(b.TempDir(), "disk.raw")
	require.NoError(b, os.WriteFile(raw, append(make([]byte, 510), 0x55, 0xAA), 0o600))
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	require.NoError(b, err)
	_, err = f.Seek(1<<20, io.SeekStart)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{}), 256<<20)
	require.NoError(b, err)
	require.NoError(b, f.Truncate(4<<30))
	require.NoError(b, f.Close())
	for what, disk := range map[string]string{"plain": benchDisk(b, 4<<10, false), "zstd": raw} {
		b.Run(what, func(b *testing.B) {
			host, _ := testkit.StartRegistry(b, testkit.RegistryOptions{})
			var peak float64
			for i := 0; b.Loop(); i++ {
				_, p := measured(b, "pack and push", disk, filepath.Join(b.TempDir(), "layout"), fmt.Sprintf("%s/memory/%d:v1", host, i))
				peak = max(peak, p)
			}
			b.ReportMetric(peak, "MiB-peak")
		})
	}
}
