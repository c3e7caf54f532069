package hygiene

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// entry is a name in the guest's tree.
type entry struct {
	path string // absolute, clean
	mode uint32 // as in stat(2): type and permissions
	size int64  // in bytes, of a regular file
	// inode is its number in the volume that it was read from, where debugfs did.
	inode uint32
}

// The types in an entry's mode.
const (
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeSymlink = 0o120000
)

func (e entry) regular() bool { return e.mode&typeMask == typeRegular }
func (e entry) dir() bool     { return e.mode&typeMask == typeDir }

// in is the entry where its volume is mounted.
func (e entry) in(mount string) entry {
	e.path = join(mount, e.path)
	return e
}

const (
	// maxEntries bounds what is kept of a disk in memory. A full desktop has
	// half a million.
	maxEntries = 8 << 20
	// maxNames bounds the bytes of all their paths; a full desktop's have 50 MiB.
	maxNames = 256 << 20
	// maxKept bounds the content of one file that a rule reads as a whole.
	// What stands behind it in a longer one is searched, but not read.
	maxKept = 1 << 20
	// maxKeptAll bounds the content of all those files. A full desktop's, which
	// are its packages' lists, have 50 MiB.
	maxKeptAll = 128 << 20
	// maxStatus bounds dpkg's list of packages, which is kept whole or not used.
	// A full desktop's has 8 MiB.
	maxStatus = 32 << 20
)

// The files that say what system it is, and what is installed.
const (
	dpkgStatus = "/var/lib/dpkg/status"
	osRelease  = "/etc/os-release" // often a link to usrRelease (os-release(5))
	usrRelease = "/usr/lib/os-release"
)

// tree is all that the rules look at.
type tree struct {
	Options
	rules    []rule
	p        progress.Reporter
	method   string // Debugfs or Libguestfs
	volumes  []volume
	entries  map[string]entry
	kept     map[string][]byte // content of files that a rule reads
	keptAll  int               // its bytes
	hits     map[string]hits   // of files, and partitions, in which something was found
	search   *search
	files    int
	bytes    int64
	inBlocks []string // names of secrets that are on the disk, in a file or not
}

func newTree(o Options, p progress.Reporter) *tree {
	return &tree{
		Options: o, p: p, rules: slices.Concat(rules, o.Policy.rules),
		entries: map[string]entry{}, kept: map[string][]byte{}, hits: map[string]hits{},
		search: newSearch(o.Secrets, p),
	}
}

// forget drops all that was added, so that the disk can be read in another way.
func (t *tree) forget() {
	clear(t.entries)
	clear(t.kept)
	clear(t.hits)
	t.keptAll, t.files, t.bytes = 0, 0, 0
}

// add takes an entry, and the content of a regular file, which it reads to
// its end or not at all.
func (t *tree) add(e entry, content io.Reader) error {
	t.entries[e.path] = e
	if content == nil {
		return nil
	}
	t.files++
	t.bytes += e.size
	if most := t.most(e.path); most > 0 {
		head, err := io.ReadAll(io.LimitReader(content, most))
		if err != nil {
			return err
		}
		t.kept[e.path] = head
		t.keptAll += len(head)
		content = io.MultiReader(bytes.NewReader(head), content)
	}
	found, err := t.search.in(content)
	if err != nil {
		return err
	}
	t.took(e.path, found)
	if t.keptAll > maxKeptAll {
		return damaged("the file system", "the files that rules read hold more than 128 MiB")
	}
	return nil
}

// took notes what was found in a file.
func (t *tree) took(file string, found hits) {
	if found.key || len(found.secrets) > 0 {
		t.hits[file] = found
	}
}

// link adds another name of a file, whose content came with the first name
// alone. It is not there any more where only this name makes a rule read it.
func (t *tree) link(e entry, first string) error {
	content, kept := t.kept[first]
	of, known := t.entries[first]
	switch e.size = of.size; {
	case kept:
		t.kept[e.path] = content
	case t.wanted(e.path) && (e.size > 0 || !known):
		return failure.New(fmt.Sprintf("%s cannot be looked into: it is a hard link, and libguestfs sends the content with its other name %s", e.path, first),
			"make it a file of its own in the playbook")
	}
	t.took(e.path, t.hits[first])
	return t.add(e, nil)
}

// most is how much of a file's content is kept, in bytes.
func (t *tree) most(file string) int64 {
	switch {
	case file == dpkgStatus:
		return maxStatus
	case file == osRelease, file == usrRelease, t.wanted(file):
		return maxKept
	}
	return 0
}

// wanted says whether a rule reads the file's content.
func (t *tree) wanted(file string) bool {
	return slices.ContainsFunc(t.rules, func(r rule) bool { return r.reading(file) })
}

// comment begins one, but for a user's number in sudoers(5): #1000 ALL=….
var comment = regexp.MustCompile(`^#(?:[^0-9]|$)`)

// judge finds what is wrong with the lines of files that are kept, without
// comments and blanks. It finds the same in a file once.
func (t *tree) judge(files []pattern, judge func(line string) (detail string, wrong bool)) []Finding {
	var found []Finding
	known := map[Finding]bool{}
	for _, e := range t.matching(files...) {
		for line := range strings.Lines(string(t.kept[e.path])) {
			line = strings.TrimSpace(line)
			if line == "" || comment.MatchString(line) {
				continue
			}
			detail, wrong := judge(line)
			if f := (Finding{Path: e.path, Detail: detail}); wrong && !known[f] {
				known[f] = true
				found = append(found, f)
			}
		}
	}
	return found
}

// matching lists the entries that one of the globs matches, sorted.
func (t *tree) matching(globs ...pattern) []entry {
	var found []entry
	for _, e := range t.entries {
		if matchAny(globs, e.path) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	return found
}

// below says whether file is dir or lies in it.
func below(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// join is the guest's path of a name in a volume. A volume that is not
// mounted has a mount such as "partition 2:", which no rule about a path
// matches.
func join(mount, name string) string {
	if strings.HasPrefix(mount, "/") {
		return path.Join(mount, name)
	}
	return mount + path.Join("/", name)
}
