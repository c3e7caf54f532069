package pipeline

import (
	"encoding/json"
	"errors"
	"io"
	"os"

	"github.com/netgroup-polito/diskforge/internal/host"
)

const maxJSON = 32 << 20 // bytes: pictures of screens are in it

// readJSON decodes one small regular file. Fields that v does not know are
// those of a later version.
func readJSON(f *os.File, v any) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	b, err := host.ReadAll(f, maxJSON)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON writes v to the file called name, in one piece or not at all.
func writeJSON(name string, mode os.FileMode, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return host.WriteFile(name, mode, func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}
