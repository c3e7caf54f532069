package pipeline

import (
	"errors"
	"os"
	"path/filepath"
)

// Forget deletes what the stage made and its record, the record first: a
// result is never there without its output. A stage without a record made
// nothing.
func (d *Dir) Forget(stage string) error {
	r, err := d.read(stage)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.root.Remove(filepath.Join("records", stage+".json")); err != nil {
		return err
	}
	if err := d.root.Remove(r.Output); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // two stages may name the same output
	}
	return nil
}
