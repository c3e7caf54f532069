package disk

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Method is how the space of deleted files is given back (SPARSIFY).
type Method string

// The methods. Whatever the method, the disk is rewritten once, without
// blocks of zeroes and with the compression that was asked for.
const (
	// Auto is Trim where the guest trimmed its disk, else VirtSparsify where
	// that is installed, else None with a warning.
	Auto Method = "auto"
	// Trim relies on the guest having trimmed its filesystems.
	Trim Method = "trim"
	// VirtSparsify trims the filesystems in libguestfs' appliance, on a copy.
	VirtSparsify Method = "virt-sparsify"
	// None leaves what deleted files held in the disk.
	None Method = "none"
)

// Compression is the compression of a qcow2 image's clusters (QCOW2_COMPRESSION).
type Compression string

// The compressions. QEMU 5.1 and later read Zstd where they are built with
// it; every QEMU reads Zlib.
const (
	Zstd          Compression = "zstd"
	Zlib          Compression = "zlib"
	NoCompression Compression = "none"
)

// SparsifyOptions are the choices of Sparsify. The zero value is not valid.
type SparsifyOptions struct {
	Method      Method
	Compression Compression
	// Base is the absolute path of the backing file that the input may have,
	// or empty. The output has none in any case.
	Base string
	// Trimmed says that the guest trimmed its disk before it was closed.
	Trimmed bool
	// LibguestfsEnv is added to virt-sparsify's environment.
	LibguestfsEnv []string
}

// SparsifyResult says what was done.
type SparsifyResult struct {
	Method Method // the one that was used, never Auto
	Before Info
	After  Info
}

// Sparsify makes the qcow2 image out from the disk image in, which it only
// reads. The same data in the guest's disk gives the same bytes each time.
// A failure leaves neither out nor a temporary file.
func Sparsify(ctx context.Context, in, out string, o SparsifyOptions, to progress.Reporter) (SparsifyResult, error) {
	before, err := o.inspect(ctx, in)
	if err != nil {
		return SparsifyResult{}, err
	}
	if same(in, out) {
		return SparsifyResult{}, failure.New("the output is the input itself: "+out, "choose another output")
	}
	method, err := choose(o, to)
	if err != nil {
		return SparsifyResult{}, err
	}
	target, err := host.Create(out, 0o644)
	if err != nil {
		return SparsifyResult{}, fmt.Errorf("creating the output: %w", err)
	}
	defer target.Discard()
	source := image{in, before.Format}
	if method == VirtSparsify {
		scratch, err := os.MkdirTemp(filepath.Dir(out), "virt-sparsify-*")
		if err != nil {
			return SparsifyResult{}, err
		}
		defer os.RemoveAll(scratch)
		if source, err = virtSparsify(ctx, source, scratch, o, to); err != nil {
			return SparsifyResult{}, err
		}
	}
	if err := convert(ctx, source, target.Name(), o.Compression, before.DataSize, to); err != nil {
		return SparsifyResult{}, err
	}
	after, err := Inspect(ctx, target.Name())
	if err != nil {
		return SparsifyResult{}, err
	}
	if err := target.Commit(); err != nil {
		return SparsifyResult{}, err
	}
	return SparsifyResult{Method: method, Before: before, After: after}, nil
}

// inspect looks at what is converted: an overlay together with its base.
func (o SparsifyOptions) inspect(ctx context.Context, in string) (Info, error) {
	before, err := inspectOver(ctx, in, o.Base)
	if err != nil || o.Base == "" {
		return before, err
	}
	base, err := Inspect(ctx, o.Base)
	before.FileSize += base.FileSize
	before.DataSize += base.DataSize
	return before, err
}

func same(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

const notTrimmed = "the disk was not trimmed: what deleted files held stays in it"

// choose returns the method to use.
func choose(o SparsifyOptions, to progress.Reporter) (Method, error) {
	const program = "virt-sparsify"
	_, missing := host.Look(program)
	switch {
	case o.Method == Auto && o.Trimmed:
		return Trim, nil
	case o.Method == Auto && missing == nil:
		return VirtSparsify, nil
	case o.Method == Auto:
		to.Warn(notTrimmed + "; " + program + " (apt-get install " + host.Package(program) + ") would free it")
		return None, nil
	case o.Method == Trim && !o.Trimmed:
		to.Warn(notTrimmed + "; SPARSIFY=auto or virt-sparsify would free it")
	case o.Method == VirtSparsify && missing != nil:
		return "", failure.New(program+" is not installed", "apt-get install "+host.Package(program)+", or set SPARSIFY=auto")
	}
	return o.Method, nil
}

// image is a disk image with its stated format.
type image struct{ path, format string }

// convert writes the image source to the existing file target as qcow2,
// compressed as asked for. There is one coroutine that writes, in order (no
// -W): the bytes must be the same each time.
func convert(ctx context.Context, source image, target string, c Compression, size int64, to progress.Reporter) error {
	options := "compat=1.1"
	args := []string{"convert", "-p", "-f", source.format, "-O", FormatQCOW2}
	switch c {
	case Zstd:
		args, options = append(args, "-c"), options+",compression_type=zstd"
	case Zlib:
		args = append(args, "-c") // the type's name is unknown to QEMU before 5.1
	}
	args = append(args, "-o", options)
	for _, path := range []string{source.path, target} {
		// Absolute: a relative one with a colon in it ("nbd:…") would be a protocol to QEMU.
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		args = append(args, abs)
	}
	err := host.Run(ctx, host.Cmd{Program: "qemu-img", Args: args, Stdout: percent(size, to)})
	return explain(ctx, err, filepath.Dir(target))
}

// virtSparsify copies the image to scratch and trims the copy's filesystems
// in libguestfs' appliance. The other way of virt-sparsify, filling all free
// space with zeroes, takes four times as long and as much space as the disk
// is large. The copy is not compressed: one compression pass in all.
func virtSparsify(ctx context.Context, source image, scratch string, o SparsifyOptions, to progress.Reporter) (image, error) {
	disk := image{filepath.Join(scratch, "disk.qcow2"), FormatQCOW2}
	to.Activity("copying the disk for virt-sparsify")
	if err := convert(ctx, source, disk.path, NoCompression, 0, progress.Discard); err != nil {
		return image{}, err
	}
	to.Activity("starting virt-sparsify")
	err := host.RunAppliance(ctx, host.Cmd{
		Program: "virt-sparsify",
		Args:    []string{"--in-place", "--format", FormatQCOW2, disk.path},
		Env:     append(host.Env("LIBGUESTFS_TMPDIR="+scratch), o.LibguestfsEnv...),
		OnLine:  func(line string) { to.Activity("virt-sparsify: " + phase(line)) },
	})
	if err != nil && ctx.Err() == nil {
		err = failure.Wrap(err, "virt-sparsify failed",
			"SPARSIFY=none does without it; libguestfs-test-tool says more (libguestfs needs a readable /boot/vmlinuz*)")
	}
	return disk, explain(ctx, err, scratch)
}

// phase returns a line of virt-sparsify without its clock ("[  12.3] ").
func phase(line string) string {
	if _, rest, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(line, "[") {
		return rest
	}
	return line
}

// explain turns a failed program's error into what a person can act on.
func explain(ctx context.Context, err error, dir string) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	tail := strings.Join(host.Tail(err), "\n")
	switch {
	case host.DiskFull(err):
		return failure.Wrap(err, "no space left in "+dir, "free some there, or write to a larger disk, with OUTPUT_DIR or --output")
	case strings.Contains(tail, "Failed to get"):
		return failure.Wrap(err, "the disk is in use by another process", "power the virtual machine off first")
	case strings.Contains(tail, "compression_type") || strings.Contains(tail, "compression type"):
		return failure.Wrap(err, "this qemu-img does not know zstd", "set QCOW2_COMPRESSION=zlib")
	}
	return err
}

// percent reads the progress meter of qemu-img, "    (12.34/100%)\r", and tells
// how many of size bytes that is.
func percent(size int64, to progress.Reporter) io.Writer {
	return &text.Splitter{Most: 64, Ends: "\r\n", Line: func(meter string) {
		var done float64
		if _, err := fmt.Sscanf(meter, " (%f/", &done); err == nil {
			to.Bytes(int64(done/100*float64(size)), size)
		}
	}}
}
