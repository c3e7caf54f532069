package fleet

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// record says that an image is complete, and from what.
type record struct {
	Image  string    `json:"image"`
	Inputs string    `json:"inputs"`           // digest of all that it was made from
	Parent string    `json:"parent,omitempty"` // digest of the image that it started from
	Time   time.Time `json:"time"`             // when it was complete
	Result Result    `json:"result"`
}

// recordFile lies in the top of the work directory, where what a killed run
// left half-written is cleared.
func (f *fleet) recordFile(e *Entry) string {
	return f.dir.Path("image-" + filepath.Base(Dir("", e.Name)) + ".json")
}

func (f *fleet) save(e *Entry, parent, r Result) error {
	if !host.ValidDigest(r.Digest) {
		return fmt.Errorf("%s: its digest %q is none", e.Name, r.Digest)
	}
	return writeJSON(f.recordFile(e), 0o600, record{Image: e.Name, Inputs: e.Inputs, Parent: parent.Digest, Time: time.Now().UTC(), Result: r})
}

// load returns the record of an image if its result could be used again. One
// that cannot be read is no record: the image is built again.
func (f *fleet) load(e *Entry) (record, bool) {
	text, err := os.ReadFile(f.recordFile(e))
	if err != nil {
		return record{}, false
	}
	r, usable, err := parseRecord(text, e)
	if err != nil {
		f.to.Warn(e.Name, "its record is unreadable: "+err.Error())
	}
	return r, usable
}

// parseRecord reads a record, and says whether the entry could use it.
func parseRecord(text []byte, e *Entry) (r record, usable bool, err error) {
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, false, err
	}
	same := r.Image == e.Name && e.Inputs != "" && r.Inputs == e.Inputs && host.ValidDigest(r.Result.Digest)
	return r, same && !r.Time.Before(e.NotBefore) && r.Result.Digest != e.Known.Digest, nil
}

func writeJSON(name string, mode os.FileMode, v any) error {
	return host.WriteFile(name, mode, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	})
}

// imageName is what can be a repository's name and, with its slashes replaced,
// a directory's.
var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$`)

// check refuses entries of which two would write to one place.
func check(entries []*Entry, outputDir string) error {
	seen, dirs := map[*Entry]bool{nil: true}, map[string]string{}
	for _, e := range entries {
		dir := Dir(outputDir, e.Name)
		base := filepath.Base(dir)
		switch {
		case !imageName.MatchString(e.Name) || base == workName || strings.HasPrefix(base, summaryName):
			return failure.New(fmt.Sprintf("an image cannot be called %q", e.Name), "give it another name")
		case dirs[dir] != "":
			return failure.New(fmt.Sprintf("the images %s and %s would both be made in %s", dirs[dir], e.Name, dir), "give one of them another name")
		case !seen[e.Parent]:
			return fmt.Errorf("the parent %q of %q does not stand before it", e.Parent.Name, e.Name)
		case e.Action == Build && exists(filepath.Join(dir, "oci-layout")):
			return failure.New(dir+" holds the image of a single build", "set OUTPUT_DIR to another directory, or move the image away")
		}
		seen[e], dirs[dir] = true, e.Name
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
