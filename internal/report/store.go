package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// The names of a saved report's files.
const (
	PageFile = "report.html"
	DataFile = "report.json"
)

// maxJSON bounds report.json, in bytes. The largest that a clean report can
// become is a little less.
const maxJSON = 256 << 20

// WriteJSON writes the report as indented JSON. The same report is the same
// text.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r.clean())
}

// Read reads what WriteJSON wrote, of at most 256 MiB. Another schema is
// refused.
func Read(from io.Reader) (*Report, error) {
	b, err := host.ReadAll(from, maxJSON)
	if err != nil {
		return nil, failure.Wrap(err, "reading the report", "")
	}
	var r Report
	switch err := json.Unmarshal(b, &r); {
	case r.Schema != Schema && (err == nil || r.Schema != 0): // what another schema holds, it may hold as it likes
		return nil, failure.New(fmt.Sprintf("the report has schema %d, this diskforge reads schema %d", r.Schema, Schema), "use the diskforge that wrote it")
	case err != nil:
		return nil, failure.Wrap(err, "this is no report of diskforge", "give the report.json beside an image")
	}
	return r.clean(), nil
}

// Saved reads the report that Save wrote into dir.
func Saved(dir string) (*Report, error) {
	f, err := os.Open(filepath.Join(dir, DataFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(f)
}

// Save writes report.html and report.json into dir, each in one piece or not
// at all, and returns the page's path.
func (r *Report) Save(dir string) (page string, err error) {
	page = filepath.Join(dir, PageFile)
	if err := host.WriteFile(filepath.Join(dir, DataFile), 0o644, r.WriteJSON); err != nil {
		return "", err
	}
	return page, host.WriteFile(page, 0o644, r.WriteHTML)
}
