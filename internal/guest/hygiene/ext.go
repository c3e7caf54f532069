package hygiene

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// errNotNative is the error of a file system that debugfs does not show as the
// guest would see it: its journal holds changes that are not yet in its tables,
// or it has features that this host's debugfs is too old for.
var errNotNative = errors.New("debugfs cannot read the file system")

// unsupported is what debugfs says of such features.
const unsupported = "unsupported feature(s)"

const (
	extRoot = 2 // the root directory's inode
	// maxDepth bounds nested directories; Linux cannot name what lies deeper
	// than 4096 bytes of path.
	maxDepth = 2048
	// bigFile is the length from which a file is read by its extents: it may be
	// sparse, and its holes are not worth the time.
	bigFile = 64 << 20
)

// extVolume is an ext2, ext3 or ext4 file system that debugfs reads.
type extVolume struct {
	disk *opened
	volume
	mount string
	found []extEntry
	seen  map[uint32]bool // directories by inode: each has one place
}

type extEntry struct {
	inode uint32
	path  string // from the volume's root
	mode  uint32
	size  int64
}

// walkExt adds all files of the disk's volumes to the tree.
func (d *opened) walkExt(ctx context.Context, all []volume, t *tree) ([]FileSystem, error) {
	var volumes []*extVolume
	for _, v := range all {
		if !v.ext() {
			continue
		}
		d.p.Activity("listing the files of " + v.String())
		ext := &extVolume{disk: d, volume: v, seen: map[uint32]bool{}, mount: v.String() + ":"}
		if err := ext.list(ctx); err != nil {
			return nil, err
		}
		volumes = append(volumes, ext)
	}
	if err := mountAll(ctx, volumes); err != nil {
		return nil, err
	}
	var systems []FileSystem
	for _, v := range volumes {
		if !v.mounted() && !v.empty() {
			t.unmounted = append(t.unmounted, v.volume)
		}
		d.p.Activity("reading the files of " + v.String())
		if err := v.read(ctx, t); err != nil {
			return nil, err
		}
		systems = append(systems, FileSystem{Type: v.kind, Mount: v.mount, Partition: v.partition})
	}
	return systems, nil
}

// mountAll finds the root by its /etc/passwd, and where its fstab mounts the
// others.
func mountAll(ctx context.Context, volumes []*extVolume) error {
	var plain []volume
	for _, v := range volumes {
		plain = append(plain, v.volume)
	}
	for _, root := range volumes {
		if _, ok := root.entry("/etc/passwd"); !ok {
			continue
		}
		root.mount = "/"
		fstab, err := root.content(ctx, "/etc/fstab")
		if err != nil {
			return err
		}
		at := mounts(fstab, plain)
		for _, v := range volumes {
			if mount, ok := at[v.partition]; ok && v != root && mount != "/" {
				v.mount = mount
			}
		}
		return nil
	}
	return nil // a caller finds that there is no system
}

func (v *extVolume) mounted() bool { return strings.HasPrefix(v.mount, "/") }

// empty says whether the volume has nothing but what mke2fs made.
func (v *extVolume) empty() bool {
	return !slices.ContainsFunc(v.found, func(e extEntry) bool { return e.path != "/lost+found" })
}

func (v *extVolume) entry(path string) (extEntry, bool) {
	i := slices.IndexFunc(v.found, func(e extEntry) bool { return e.path == path })
	if i < 0 {
		return extEntry{}, false
	}
	return v.found[i], true
}

// content reads one small file; one that is not there is empty.
func (v *extVolume) content(ctx context.Context, path string) ([]byte, error) {
	e, ok := v.entry(path)
	if !ok || e.mode&typeMask != typeRegular || e.size > maxKept {
		return nil, nil
	}
	var b []byte
	err := v.cat(ctx, []extEntry{e}, func(_ extEntry, content io.Reader) (err error) {
		b, err = io.ReadAll(content)
		return err
	})
	return b, err
}

// debugfs runs debugfs with the commands and hands its output to read. It
// opens the file system read-only. Whatever it complains of makes the file
// system a damaged one: a gate must not pass what it could not see.
func (v *extVolume) debugfs(ctx context.Context, commands []string, read func(*bufio.Reader) error) error {
	c, err := limited(v.disk.dir, "debugfs", "-f", "-", rawName+"?offset="+strconv.FormatInt(v.start, 10))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var complaint string
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	c.OnLine = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if complaint == "" && !strings.HasPrefix(line, "debugfs 1.") {
			complaint = line
		}
	}
	err = stream(ctx, c, host.Run, read)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	mu.Lock()
	defer mu.Unlock()
	switch {
	case strings.Contains(complaint, unsupported):
		return errNotNative
	case complaint != "":
		return damaged(fmt.Sprintf("the %s file system of %s", v.kind, v), complaint)
	}
	return err
}

// expect reads the line with which debugfs repeats a command. Zeroes before it
// belong to the last file: debugfs fills one that lies in its inode up to 60 bytes.
func expect(out *bufio.Reader, cmd string) error {
	want := "debugfs: " + cmd + "\n"
	for {
		b, err := out.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			break
		}
	}
	if err := out.UnreadByte(); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("debugfs answered %q where %q was expected", got, want)
	}
	return nil
}

// list finds all names, one run of debugfs for each level of the tree.
func (v *extVolume) list(ctx context.Context) error {
	if err := v.checkClean(ctx); err != nil {
		return err
	}
	level := []extEntry{{inode: extRoot, path: "/", mode: typeDir}}
	for depth := 0; len(level) > 0; depth++ {
		if depth == maxDepth {
			return v.damaged("its directories are nested too deep")
		}
		var next []extEntry
		cmds := make([]string, len(level))
		for i, dir := range level {
			cmds[i] = fmt.Sprintf("ls -p <%d>", dir.inode)
		}
		err := v.debugfs(ctx, cmds, func(out *bufio.Reader) error {
			for i, dir := range level {
				if err := expect(out, cmds[i]); err != nil {
					return err
				}
				dirs, err := v.directory(out, dir)
				if err != nil {
					return err
				}
				next = append(next, dirs...)
			}
			return nil
		})
		if err != nil {
			return err
		}
		level = next
	}
	return nil
}

func (v *extVolume) damaged(why string) error {
	return damaged(fmt.Sprintf("the %s file system of %s", v.kind, v), why)
}

func (v *extVolume) checkClean(ctx context.Context) error {
	var features string
	err := v.debugfs(ctx, []string{"feature"}, func(out *bufio.Reader) error {
		b, err := io.ReadAll(out)
		features = string(b)
		return err
	})
	if err == nil && strings.Contains(features, "needs_recovery") {
		return errNotNative
	}
	return err
}

// debugfs lists a name as /inode/mode/uid/gid/name/size/, without a size for
// directories. A name may have line ends in it.
var listed = regexp.MustCompile(`(?s)^/(\d+)/(\d{6})/\d+/\d+/(.*)/(\d*)/$`)

// maxListed is longer than any name and its numbers.
const maxListed = 1 << 10

// directory takes the names of one directory, up to the empty line behind
// them, and returns its directories.
func (v *extVolume) directory(out *bufio.Reader, dir extEntry) ([]extEntry, error) {
	var dirs []extEntry
	var text string
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			return nil, err
		}
		if text == "" && line == "\n" {
			return dirs, nil
		}
		text += line
		m := listed.FindStringSubmatch(strings.TrimSuffix(text, "\n"))
		if m == nil {
			if len(text) > maxListed {
				return nil, v.damaged("a name in " + dir.path + " is too long")
			}
			continue
		}
		text = ""
		e, err := v.parse(dir.path, m)
		if err != nil {
			return nil, err
		}
		if e.path == "" {
			continue
		}
		if e.mode&typeMask == typeDir {
			dirs = append(dirs, e)
		}
		if err := v.disk.count(e.path); err != nil {
			return nil, err
		}
		v.found = append(v.found, e)
	}
}

// parse makes an entry of what listed matched. "." and ".." give none, and
// neither does room without an inode, which lost+found has.
func (v *extVolume) parse(dir string, m []string) (extEntry, error) {
	name := m[3]
	if name == "." || name == ".." || m[1] == "0" {
		return extEntry{}, nil
	}
	if name == "" || strings.Contains(name, "/") {
		return extEntry{}, v.damaged(fmt.Sprintf("%q in %s is no name", name, dir))
	}
	inode, errInode := strconv.ParseUint(m[1], 10, 32)
	mode, errMode := strconv.ParseUint(m[2], 8, 32)
	e := extEntry{inode: uint32(inode), path: join(dir, name), mode: uint32(mode)}
	var errSize error
	if m[4] != "" {
		e.size, errSize = strconv.ParseInt(m[4], 10, 64)
	}
	if err := errors.Join(errInode, errMode, errSize); err != nil {
		return extEntry{}, v.damaged(err.Error())
	}
	if e.mode&typeMask == typeDir {
		if v.seen[e.inode] || e.inode == extRoot {
			return extEntry{}, v.damaged("the directory " + e.path + " is in two places")
		}
		v.seen[e.inode] = true
	}
	return e, nil
}

// read adds the volume's files to the tree: first those without content, then
// the others in one run of debugfs, then the big ones.
func (v *extVolume) read(ctx context.Context, t *tree) error {
	var small, big []extEntry
	var total int64
	for _, e := range v.found {
		regular := e.mode&typeMask == typeRegular
		switch {
		case regular && e.size >= bigFile:
			big = append(big, e)
		case regular && e.size > 0:
			small = append(small, e)
			total += e.size
		default:
			if err := t.add(v.place(e), nil); err != nil {
				return err
			}
		}
	}
	if total > v.disk.limit {
		return v.damaged("its files are longer than it can hold")
	}
	if err := v.cat(ctx, small, func(e extEntry, content io.Reader) error { return t.add(v.place(e), content) }); err != nil {
		return err
	}
	return v.readBig(ctx, big, t)
}

func (v *extVolume) place(e extEntry) entry {
	return entry{path: join(v.mount, e.path), mode: e.mode, size: e.size}
}

// cat hands the content of each file to use.
func (v *extVolume) cat(ctx context.Context, files []extEntry, use func(extEntry, io.Reader) error) error {
	if len(files) == 0 {
		return nil
	}
	cmds := make([]string, len(files))
	for i, e := range files {
		cmds[i] = fmt.Sprintf("cat <%d>", e.inode)
	}
	return v.debugfs(ctx, cmds, func(out *bufio.Reader) error {
		for i, e := range files {
			if err := expect(out, cmds[i]); err != nil {
				return err
			}
			content := &io.LimitedReader{R: out, N: e.size}
			if err := use(e, content); err != nil {
				return err
			}
			if content.N > 0 {
				return io.ErrUnexpectedEOF
			}
		}
		return nil
	})
}

// An extent as debugfs tells it: "Level Entries Logical Physical Length
// Flags", where a physical range without an end is a level's index.
var extent = regexp.MustCompile(`^ *\d+/ *\d+ +\d+/ *\d+ +\d+ - +\d+ +(\d+) - +\d+ +(\d+) (.*)$`)

// readBig reads long files by their extents, straight from the disk, without
// holes and without what was only reserved.
func (v *extVolume) readBig(ctx context.Context, files []extEntry, t *tree) error {
	if len(files) == 0 {
		return nil
	}
	raw, err := os.Open(v.disk.path())
	if err != nil {
		return err
	}
	defer raw.Close()
	block, err := v.blockSize(ctx)
	if err != nil {
		return err
	}
	for _, e := range files {
		parts, err := v.extents(ctx, e, raw, block)
		if err != nil && strings.Contains(err.Error(), noExtents) && e.size <= v.size {
			err = v.cat(ctx, []extEntry{e}, func(e extEntry, content io.Reader) error { return t.add(v.place(e), content) })
		} else if err == nil {
			err = t.add(v.place(e), io.MultiReader(parts...))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// noExtents is what debugfs complains of for a file that is mapped block by
// block, as in ext2 and ext3.
const noExtents = "extent block maps"

var blockSizeLine = regexp.MustCompile(`(?m)^Block size: +(\d+)$`)

func (v *extVolume) blockSize(ctx context.Context) (int64, error) {
	var size int64
	err := v.debugfs(ctx, []string{"show_super_stats -h"}, func(out *bufio.Reader) error {
		b, err := io.ReadAll(out)
		if m := blockSizeLine.FindSubmatch(b); m != nil {
			size, _ = strconv.ParseInt(string(m[1]), 10, 32)
		}
		return err
	})
	if err == nil && (size <= 0 || size > maxBlock) {
		err = v.damaged("it has no block size")
	}
	return size, err
}

func (v *extVolume) extents(ctx context.Context, e extEntry, raw io.ReaderAt, block int64) ([]io.Reader, error) {
	var parts []io.Reader
	err := v.debugfs(ctx, []string{fmt.Sprintf("dump_extents -l <%d>", e.inode)}, func(out *bufio.Reader) error {
		all, err := v.parseExtents(out, e, block)
		for _, x := range all {
			parts = append(parts, io.NewSectionReader(raw, v.start+x.start, x.length))
		}
		return err
	})
	return parts, err
}

// span is a part of a volume, in bytes.
type span struct{ start, length int64 }

// parseExtents reads debugfs' list of a file's extents, in blocks of at most
// maxBlock bytes.
func (v *extVolume) parseExtents(list io.Reader, e extEntry, block int64) ([]span, error) {
	var all []span
	left := v.size
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		m := extent.FindStringSubmatch(lines.Text())
		if m == nil || strings.Contains(m[3], "Uninit") {
			continue
		}
		start, errStart := strconv.ParseInt(m[1], 10, 47)
		count, errCount := strconv.ParseInt(m[2], 10, 32)
		if err := errors.Join(errStart, errCount); err != nil {
			return nil, err
		}
		if left -= count * block; count == 0 || left < 0 || start*block > v.size-count*block {
			return nil, v.damaged(e.path + " is longer than the disk")
		}
		all = append(all, span{start * block, count * block})
	}
	return all, lines.Err()
}

// maxBlock is the largest block of ext4, in bytes.
const maxBlock = 64 << 10
