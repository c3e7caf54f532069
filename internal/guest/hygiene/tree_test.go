package hygiene

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// member is one of an archive as libguestfs sends it: a file, or another name
// of one.
type member struct{ name, content, link string }

// untarred is the tree of an archive.
func untarred(t testing.TB, members ...member) (*tree, error) {
	t.Helper()
	tr := newTree(Options{}, progress.Discard)
	return tr, (&rawDisk{limit: 1 << 40}).untar(archive(members), tr)
}

func archive(members []member) io.Reader {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		for _, m := range members {
			h := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Size: int64(len(m.content)), Mode: 0o644}
			if m.link != "" {
				h.Typeflag, h.Linkname = tar.TypeLink, m.link
			}
			if archive.WriteHeader(h) != nil {
				return // nobody reads on
			}
			_, _ = io.WriteString(archive, m.content)
		}
		_ = w.CloseWithError(archive.Close())
	}()
	return r
}

func TestAHardLinkOfLibguestfsHidesNothing(t *testing.T) {
	t.Parallel()
	const rule = "me ALL=(ALL) NOPASSWD: ALL\n"
	_, err := untarred(t, member{"./a", rule, ""}, member{"./etc/sudoers.d/me", "", "./a"})
	require.EqualError(t, err, "/etc/sudoers.d/me cannot be looked into: it is a hard link, and libguestfs sends the content with its other name /a: make it a file of its own in the playbook")
	_, err = untarred(t, member{"./etc/sudoers.d/me", "", "./nowhere"})
	require.ErrorContains(t, err, "cannot be looked into")

	tr, err := untarred(t, member{"./etc/sudoers.d/a", rule, ""}, member{"./etc/sudoers.d/me", "", "./etc/sudoers.d/a"},
		member{"./empty", "", ""}, member{"./etc/sudoers.d/empty", "", "./empty"})
	require.NoError(t, err)
	assert.Len(t, nopasswd(tr), 2)
}

func TestAKeyIsFoundUnderEachOfItsNames(t *testing.T) {
	t.Parallel()
	tr, err := untarred(t, member{"./usr/share/doc/sample", pem, ""}, member{"./etc/ssl/key.pem", "", "./usr/share/doc/sample"})
	require.NoError(t, err)
	assert.Equal(t, []Finding{{Path: "/etc/ssl/key.pem", Detail: "holds a private key"}}, privateKeys(tr), "a sample's other name")
}

func TestADiskCannotFillTheMemoryWithWhatRulesRead(t *testing.T) {
	t.Parallel()
	var many []member
	full := strings.Repeat("\x00", maxKept)
	for i := range maxKeptAll/maxKept + 1 {
		many = append(many, member{fmt.Sprintf("./etc/sudoers.d/%d", i), full, ""})
	}
	_, err := untarred(t, many[1:]...)
	require.NoError(t, err)
	_, err = untarred(t, many...)
	require.ErrorContains(t, err, "the files that rules read hold more than 128 MiB")
}

func TestADiskCannotFillTheMemoryWithNames(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*rawDisk{"many": {entries: maxEntries}, "long": {names: maxNames - 3}} {
		err := d.untar(archive([]member{{"./a", "", ""}, {"./b", "", ""}}), newTree(Options{}, progress.Discard))
		require.ErrorContains(t, err, "more than 8 million files, or more than 256 MiB of names", name)
		v := &extVolume{volume: &volume{}, disk: &rawDisk{entries: d.entries, names: d.names}, seen: map[uint32]bool{}}
		_, err = v.directory(bufio.NewReader(strings.NewReader("/12/100644/0/0/name/7/\n\n")), entry{path: "/"})
		require.ErrorContains(t, err, "more than 8 million files", name)
	}
}

func TestManyKeysAmongManyPackagesAreLookedUpOnce(t *testing.T) {
	t.Parallel()
	tr := newTree(Options{}, progress.Discard)
	for i := range 300 {
		var list bytes.Buffer
		for j := range 100 {
			fmt.Fprintf(&list, "0  usr/lib/python3/p%d/%d.py\n", i, j)
			for _, file := range []string{"%d.py", "__pycache__/%d.cpython-313.pyc"} {
				tr.took(fmt.Sprintf("/usr/lib/python3/p%d/"+file, i, j), hits{key: true})
			}
		}
		path := fmt.Sprintf("/var/lib/dpkg/info/p%d.md5sums", i)
		require.NoError(t, tr.add(entry{path: path, mode: typeRegular, size: int64(list.Len())}, &list))
	}
	tr.took("/usr/lib/python3/p1/mine.py", hits{key: true})
	// Key by key, this took hours.
	assert.Equal(t, []Finding{{Path: "/usr/lib/python3/p1/mine.py", Detail: "holds a private key"}}, privateKeys(tr))
}
