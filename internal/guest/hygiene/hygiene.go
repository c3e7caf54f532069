// Package hygiene looks into the disk of a build at rest, before anything is
// published, for what the build left in it: accounts and their keys, the
// identity of the machine that built it, logs, credentials, the build's own
// secrets. What is installed is read in the same pass.
//
// It works as an ordinary user, without KVM, /dev/fuse or a mount. A qcow2 disk
// is unpacked once (qemu-img convert, 1 s for a Debian server), its partitions
// are named by sfdisk and blkid, and ext2, ext3 and ext4 are read by debugfs,
// the file systems' own reference implementation, in a second for the 16,000
// files and 370 MB of such a server. What it cannot read (XFS, Btrfs, LVM, a
// journal to be replayed) is streamed as one tar archive from libguestfs,
// whose virtual machine takes a minute without KVM.
//
// The Go libraries were measured on the same disk and left aside: go-diskfs
// v1.9.4 never ends on a sparse file and takes its numbers from the disk
// without checking them; go-ext4-filesystem needs 20 s and loses what a file
// of more than 41 extents holds.
//
// Not read are the files of a vfat partition that libguestfs does not mount:
// an EFI system partition is searched for private keys and secrets as blocks,
// which also swap and what has no file system are; no rule about a path, such
// as that about random seeds, reaches it. Neither are the files of logical
// volumes that no /etc/fstab mounts.
//
// The disk is untrusted: sizes, names and directory trees are bounded, and the
// programs that read it can neither write a file nor take unbounded memory.
// That the image itself refers to no other file (a backing file, an external
// data file) must have been seen to before, as internal/image/disk does.
package hygiene

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Options say what is looked into, and for what.
type Options struct {
	Disk   string // the disk image
	Format string // its format, "qcow2" or "raw": stated, never probed
	// Dir is where the unpacked disk is kept meanwhile, in a private directory
	// that is always removed. Empty means the system's temporary directory. A
	// qcow2 disk needs room there for its data without compression and holes:
	// what it took before it was compressed, and never more than its virtual
	// size. A raw disk needs none.
	Dir string

	BuildUser string // the account that the build worked as; empty if none
	BakedUser bool   // it stays, with its password locked (BAKE_USER)
	Secrets   []Secret
	Policy    Policy // the site's

	LibguestfsEnv []string // see vm.Verdict
	guestfish     string   // a test's, in place of the real one
	closed        bool     // file systems that were not closed are not read, with libguestfs
}

// Secret is something that the build knew and the disk must not.
type Secret struct {
	Name  string // what findings call it
	Value string // of at least 6 bytes; a shorter one is not searched
}

// Finding is something that must not be on the disk.
type Finding struct {
	Rule   string // its name
	Path   string // in the guest, or what stands for it where there is none
	Detail string // what is wrong with it; never a secret's value
	// Excused is the reason that the allow-list gives, or empty.
	Excused string

	repair string // see look
}

// String is the finding in one line: rule, path and detail.
func (f Finding) String() string { return text.Line(f.Rule + ": " + f.Path + ": " + f.Detail) }

// FileSystem is one that was looked into.
type FileSystem struct {
	Type      string // "ext4"
	Mount     string // where the guest mounts it, or "partition 2:" where it does not
	Partition int    // from 1; 0 where the disk has no partition table
}

// The ways of reading a disk.
const (
	Debugfs    = "debugfs"
	Libguestfs = "libguestfs"
)

// Result is what was found and how.
type Result struct {
	Findings    []Finding // in the order of the rules, then of the paths
	Rules       []Rule    // all that were applied
	Files       int       // regular files that were read
	Method      string    // Debugfs or Libguestfs
	FileSystems []FileSystem
	Inventory   sbom.Inventory // what is installed
}

// Unexcused are the findings that block publishing.
func (r Result) Unexcused() []Finding {
	return slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool { return f.Excused != "" })
}

// Scan applies every rule to the disk. Findings that no excuse covers make an
// *failure.Error with one line each, and the Result is complete all the same.
// Any other error means that the disk could not be looked into.
func Scan(ctx context.Context, o Options, p progress.Reporter) (Result, error) {
	t, err := read(ctx, o, p)
	if err != nil {
		return Result{}, ended(ctx, err)
	}
	r := Result{Rules: named(t.rules), Files: t.files, Method: t.method, Inventory: t.inventory()}
	for _, v := range t.volumes {
		if v.mount != "" {
			r.FileSystems = append(r.FileSystems, FileSystem{Type: v.kind, Mount: v.mount, Partition: v.partition})
		}
	}
	masked := Mask(o.Secrets)
	for _, rule := range t.rules {
		found := rule.apply(t)
		slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Compare(a.Path, b.Path) })
		for _, f := range found {
			f.Rule, f.Path = rule.Name, masked.Replace(f.Path)
			r.Findings = append(r.Findings, f)
		}
	}
	o.Policy.excuse(r.Findings, p)
	return r, verdict(r.Unexcused())
}

// read collects what the rules look at.
func read(ctx context.Context, o Options, p progress.Reporter) (*tree, error) {
	dir, err := os.MkdirTemp(o.Dir, "diskforge-hygiene-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	d := &rawDisk{dir: dir, p: p}
	if err := d.unpack(ctx, o); err != nil {
		return nil, err
	}
	p.Activity("reading the partition table")
	volumes, err := d.volumes(ctx)
	if err != nil {
		return nil, err
	}
	t, err := newTree(o, p), errNotNative
	t.method, t.volumes = Debugfs, volumes
	if native(volumes) {
		err = d.walkExt(ctx, t)
	}
	if o.closed && d.unclean {
		return nil, failure.New("a file system of the disk was not closed: the machine runs, or was switched off", "shut the machine down and capture it again")
	}
	if errors.Is(err, errNotNative) {
		t.forget()
		t.method = Libguestfs
		d.entries, d.names = 0, 0
		err = d.walkGuestfs(ctx, t)
	}
	if err != nil {
		return nil, err
	}
	// Where there is no system, rules about its files would pass for nothing.
	if _, ok := t.entries["/etc/passwd"]; !ok {
		return nil, failure.New("no system was found on the disk: none of its file systems has /etc/passwd", "give a disk with a Linux system")
	}
	return t, d.searchBlocks(ctx, t)
}

// Mask replaces secrets by asterisks, except those that are too short to be told from
// a word: files can be named after them, and errors may quote them.
func Mask(secrets []Secret) *strings.Replacer {
	var values []string
	for _, s := range secrets {
		// What is shown line by line holds no secret of several as a whole.
		for _, value := range append(strings.Split(s.Value, "\n"), s.Value) {
			if value = strings.TrimSpace(value); len(value) >= minSecret {
				values = append(values, value)
			}
		}
	}
	return text.Redactor(values...)
}

// maxLines bounds the error; the Result has every finding.
const maxLines = 50

func verdict(found []Finding) error {
	if len(found) == 0 {
		return nil
	}
	err := failure.New("the disk carries "+text.Count(len(found), "leftover")+" of its build",
		"correct the playbook, or excuse them with a reason in the allow-list")
	for i, f := range found {
		if i == maxLines {
			err.Lines = append(err.Lines, fmt.Sprintf("… and %d more", len(found)-i))
			break
		}
		err.Lines = append(err.Lines, f.String())
	}
	return err
}
