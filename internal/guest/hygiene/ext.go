package hygiene

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// errNotNative is the error of a file system that debugfs does not show as the
// guest would see it: its journal holds changes that are not yet in its tables,
// or it has features that this host's debugfs is too old for.
var errNotNative = errors.New("debugfs cannot read the file system")

const (
	extRoot = 2 // the root directory's inode
	// maxDepth bounds nested directories; Linux cannot name what lies deeper
	// than 4096 bytes of path.
	maxDepth = 2048
	// bigFile is the length from which a file is read by its extents: it may be
	// sparse, and its holes are not worth the time.
	bigFile  = 64 << 20
	maxBlock = 64 << 10 // the largest block of ext4, in bytes
)

// extVolume is an ext2, ext3 or ext4 file system that debugfs reads.
type extVolume struct {
	*volume
	disk  *rawDisk
	block int64           // bytes
	found []entry         // with their paths from the volume's root
	seen  map[uint32]bool // directories by inode: each has one place
}

// walkExt adds all files of the disk's volumes to the tree.
func (d *rawDisk) walkExt(ctx context.Context, t *tree) error {
	var volumes []*extVolume
	for i := range t.volumes {
		v := &extVolume{disk: d, volume: &t.volumes[i], seen: map[uint32]bool{}}
		if !v.ext() {
			continue
		}
		d.p.Activity("listing the files of " + v.String())
		if err := v.list(ctx); err != nil {
			return err
		}
		volumes = append(volumes, v)
	}
	at, err := mountsOfExt(ctx, volumes, t.volumes)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.mount = at[v.partition]; v.mount == "" {
			v.mount = v.String() + ":"
			// mke2fs makes the one that may be there.
			v.unmounted = slices.ContainsFunc(v.found, func(e entry) bool { return e.path != "/lost+found" })
		}
		d.p.Activity("reading the files of " + v.String())
		if err := v.read(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// mountsOfExt finds the root by its /etc/passwd, and where its fstab mounts the
// others, by their partitions.
func mountsOfExt(ctx context.Context, volumes []*extVolume, all []volume) (map[int]string, error) {
	i := slices.IndexFunc(volumes, func(v *extVolume) bool { return v.entry("/etc/passwd") != nil })
	if i < 0 {
		return nil, nil // a caller finds that there is no system
	}
	var fstab []byte
	root := volumes[i]
	if e := root.entry("/etc/fstab"); e != nil && e.regular() && e.size <= maxKept {
		var err error
		if fstab, err = root.ask(ctx, fmt.Sprintf("cat <%d>", e.inode)); err != nil {
			return nil, err
		}
	}
	at := mounts(fstab, all)
	maps.DeleteFunc(at, func(_ int, mount string) bool { return mount == "/" })
	at[root.partition] = "/"
	return at, nil
}

func (v *extVolume) entry(path string) *entry {
	if i := slices.IndexFunc(v.found, func(e entry) bool { return e.path == path }); i >= 0 {
		return &v.found[i]
	}
	return nil
}

func (v *extVolume) damaged(why string) error {
	return damaged(fmt.Sprintf("the %s file system of %s", v.kind, v), why)
}

// debugfs runs debugfs with the commands and hands its output to read. It
// opens the file system read-only. Whatever it complains of makes the file
// system a damaged one: a gate must not pass what it could not see.
func (v *extVolume) debugfs(ctx context.Context, commands []string, read func(*bufio.Reader) error) error {
	c, err := limited(v.disk.dir, "debugfs", "-f", "-", fmt.Sprintf("%s?offset=%d", rawName, v.start))
	if err != nil {
		return err
	}
	complaint := ""
	c.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	c.OnLine = func(line string) {
		if complaint == "" && !strings.HasPrefix(line, "debugfs 1.") {
			complaint = line
		}
	}
	err = stream(ctx, c, host.Run, read)
	switch {
	case strings.Contains(complaint, "unsupported feature(s)"):
		return errNotNative
	case complaint != "":
		return v.damaged(complaint)
	}
	return err
}

// ask runs one command of debugfs and returns its output, behind a line that
// repeats the command.
func (v *extVolume) ask(ctx context.Context, command string) (out []byte, err error) {
	err = v.debugfs(ctx, []string{command}, func(r *bufio.Reader) (err error) {
		out, err = host.ReadAll(r, 2*maxKept)
		return err
	})
	return bytes.TrimRight(out, "\x00"), err
}

// each runs a command of debugfs for each of the files, and hands its output to
// use, which reads it to its end.
func (v *extVolume) each(ctx context.Context, command string, files []entry, use func(entry, *bufio.Reader) error) error {
	if len(files) == 0 {
		return nil
	}
	commands := make([]string, len(files))
	for i, e := range files {
		commands[i] = fmt.Sprintf("%s <%d>", command, e.inode)
	}
	return v.debugfs(ctx, commands, func(out *bufio.Reader) error {
		for i, e := range files {
			if err := expect(out, "debugfs: "+commands[i]+"\n"); err != nil {
				return err
			}
			if err := use(e, out); err != nil {
				return err
			}
		}
		return nil
	})
}

// expect reads the line with which debugfs repeats a command. Zeroes before it
// belong to the last file: debugfs fills one that lies in its inode up to 60 bytes.
func expect(out *bufio.Reader, want string) error {
	line, err := out.ReadSlice('\n')
	if err == nil && strings.TrimLeft(string(line), "\x00") != want {
		err = fmt.Errorf("debugfs answered %q where %q was expected", line, want)
	}
	return err
}

var blockSize = regexp.MustCompile(`(?m)^Block size: +(\d+)$`)

// list reads the superblock and finds all names, with one run of debugfs for
// each level of the tree.
func (v *extVolume) list(ctx context.Context) error {
	super, err := v.ask(ctx, "show_super_stats -h")
	if err != nil {
		return err
	}
	if strings.Contains(string(super), "needs_recovery") {
		v.disk.unclean = true
		return errNotNative
	}
	if m := blockSize.FindSubmatch(super); m != nil {
		v.block, _ = strconv.ParseInt(string(m[1]), 10, 32)
	}
	if v.block <= 0 || v.block > maxBlock {
		return v.damaged("it has no block size")
	}
	level := []entry{{inode: extRoot, path: "/", mode: typeDir}}
	for depth := 0; len(level) > 0; depth++ {
		if depth == maxDepth {
			return v.damaged("its directories are nested too deep")
		}
		var next []entry
		err := v.each(ctx, "ls -p", level, func(dir entry, out *bufio.Reader) error {
			dirs, err := v.directory(out, dir)
			next = append(next, dirs...)
			return err
		})
		if err != nil {
			return err
		}
		level = next
	}
	return nil
}

// debugfs lists a name as /inode/mode/uid/gid/name/size/, without a size for
// directories. A name may have line ends in it.
var listed = regexp.MustCompile(`(?s)^/(\d+)/(\d{6})/\d+/\d+/(.*)/(\d*)/$`)

// maxListed is longer than any name and its numbers.
const maxListed = 1 << 10

// directory takes the names of one directory, up to the empty line behind
// them, and returns its directories.
func (v *extVolume) directory(out *bufio.Reader, dir entry) ([]entry, error) {
	var dirs []entry
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
		// Room without an inode is what lost+found has.
		if m[1] == "0" || m[3] == "." || m[3] == ".." {
			continue
		}
		e, err := v.parse(dir.path, m)
		if err != nil {
			return nil, err
		}
		if e.dir() {
			dirs = append(dirs, e)
		}
		if err := v.disk.count(e.path); err != nil {
			return nil, err
		}
		v.found = append(v.found, e)
	}
}

// parse makes an entry of what listed matched.
func (v *extVolume) parse(dir string, m []string) (entry, error) {
	name := m[3]
	if name == "" || strings.Contains(name, "/") {
		return entry{}, v.damaged(fmt.Sprintf("%q in %s is no name", name, dir))
	}
	inode, errInode := strconv.ParseUint(m[1], 10, 32)
	mode, errMode := strconv.ParseUint(m[2], 8, 32)
	size, errSize := strconv.ParseInt("0"+m[4], 10, 64)
	if err := errors.Join(errInode, errMode, errSize); err != nil {
		return entry{}, v.damaged(err.Error())
	}
	e := entry{inode: uint32(inode), path: join(dir, name), mode: uint32(mode), size: size}
	if e.dir() {
		if v.seen[e.inode] || e.inode == extRoot {
			return entry{}, v.damaged("the directory " + e.path + " is in two places")
		}
		v.seen[e.inode] = true
	}
	return e, nil
}

// read adds the volume's files to the tree: first those without content, then
// the others in one run of debugfs, then the big ones.
func (v *extVolume) read(ctx context.Context, t *tree) error {
	var small, big []entry
	var total int64
	for _, e := range v.found {
		switch {
		case e.regular() && e.size >= bigFile:
			big = append(big, e)
		case e.regular() && e.size > 0:
			small = append(small, e)
			total += e.size
		default:
			if err := t.add(e.in(v.mount), nil); err != nil {
				return err
			}
		}
	}
	if total > v.disk.limit {
		return v.damaged("its files are longer than it can hold")
	}
	add := func(e entry, content io.Reader) error { return t.add(e.in(v.mount), content) }
	if err := v.cat(ctx, small, add); err != nil {
		return err
	}
	raw, err := os.Open(v.disk.path())
	if err != nil {
		return err
	}
	defer raw.Close()
	for _, e := range big {
		if err := v.readBig(ctx, e, raw, add); err != nil {
			return err
		}
	}
	return nil
}

// cat hands the content of each file to use.
func (v *extVolume) cat(ctx context.Context, files []entry, use func(entry, io.Reader) error) error {
	return v.each(ctx, "cat", files, func(e entry, out *bufio.Reader) error {
		content := &io.LimitedReader{R: out, N: e.size}
		err := use(e, content)
		if err == nil && content.N > 0 {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

// readBig reads a long file by its extents, straight from the disk, without
// holes and without what was only reserved. One that is mapped block by block,
// as in ext2 and ext3, has none.
func (v *extVolume) readBig(ctx context.Context, e entry, raw io.ReaderAt, use func(entry, io.Reader) error) error {
	var parts []io.Reader
	err := v.debugfs(ctx, []string{fmt.Sprintf("dump_extents -l <%d>", e.inode)}, func(out *bufio.Reader) error {
		extents, err := v.parseExtents(out, e)
		for _, x := range extents {
			parts = append(parts, io.NewSectionReader(raw, v.start+x.start, x.length))
		}
		return err
	})
	switch {
	case err != nil && strings.Contains(err.Error(), "extent block maps") && e.size <= v.size:
		return v.cat(ctx, []entry{e}, use)
	case err != nil:
		return err
	}
	return use(e, io.MultiReader(parts...))
}

// An extent as debugfs prints it: "Level Entries Logical Physical Length
// Flags", where a physical range without an end is a level's index.
var extent = regexp.MustCompile(`^ *\d+/ *\d+ +\d+/ *\d+ +\d+ - +\d+ +(\d+) - +\d+ +(\d+) (.*)$`)

// span is a part of a volume, in bytes.
type span struct{ start, length int64 }

// parseExtents reads debugfs' list of a file's extents.
func (v *extVolume) parseExtents(list io.Reader, e entry) ([]span, error) {
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
		if left -= count * v.block; count == 0 || left < 0 || start*v.block > v.size-count*v.block {
			return nil, v.damaged(e.path + " is longer than the disk")
		}
		all = append(all, span{start * v.block, count * v.block})
	}
	return all, lines.Err()
}
