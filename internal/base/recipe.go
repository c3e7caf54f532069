package base

import (
	"archive/tar"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/template"
	"time"

	"github.com/netgroup-polito/diskforge/internal/arch"
)

// recipe holds what makes the image besides the packages' own content:
// their list, the script that runs in the new system, files laid over it. Each is a
// template of an arch.Arch.
//
//go:embed recipe
var recipe embed.FS

// recipeVersion changes when the code that follows the recipe changes what
// comes out of it.
const recipeVersion = 3

// fsUUID is the root file system's UUID; its first eight digits are the disk's
// signature and the EFI system partition's serial number. It is fixed, so that the
// boot loader's configuration, fstab and repeated builds agree; the files in
// recipe/overlay name it.
const fsUUID = "6469736b-666f-4267-8000-6f7267652031"

// Recipe is the digest ("sha256:…") of what the image is made by: the suite,
// the packages' names, what is done with them. It is known before the image
// is, and the packages' versions are not in it.
func (o Options) Recipe() (string, error) {
	o, err := o.complete()
	return "sha256:" + o.digest(), err
}

// digest identifies what o asks for: an image made from the same digest can
// be used again.
func (o Options) digest() string {
	h := sha256.New()
	fmt.Fprintln(h, recipeVersion, o.Suite, o.arch().Name, o.Mirror, size)
	// WalkDir goes in lexical order; an embedded file system has no other errors.
	_ = fs.WalkDir(recipe, "recipe", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			fmt.Fprintf(h, "%s\n%s\n", name, o.recipeFile(name))
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil))
}

func (o Options) arch() arch.Arch { return arch.Of(o.Architecture) }

// recipeFile is a file of the recipe for the image's architecture.
func (o Options) recipeFile(name string) string {
	var b strings.Builder
	t, err := template.ParseFS(recipe, name)
	if err == nil {
		err = t.Execute(&b, o.arch())
	}
	if err != nil {
		panic("base: the program was built without " + name)
	}
	return b.String()
}

func (o Options) packages() []string { return strings.Fields(o.recipeFile("recipe/packages")) }

// writeOverlay writes the files laid over the new system as a tar archive.
func (o Options) writeOverlay(w io.Writer, mtime time.Time) error {
	overlay, err := fs.Sub(recipe, "recipe/overlay")
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	err = fs.WalkDir(overlay, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		h := &tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: mtime}
		body := ""
		if !d.IsDir() {
			body = o.recipeFile("recipe/overlay/" + name)
			h.Name, h.Typeflag, h.Mode, h.Size = name, tar.TypeReg, 0o644, int64(len(body))
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.WriteString(t, body)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}
