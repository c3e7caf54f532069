package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// layoutWriter makes a layout beside its destination and moves it there when
// it is complete. What a killed process left beside it is cleared by the next.
type layoutWriter struct {
	dir     string   // the destination
	partial string   // what is written to, and removed in the end; empty where it became the destination
	lock    *os.File // the directory partial, locked while we live
}

func newLayoutWriter(ctx context.Context, dir string) (*layoutWriter, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, failure.Wrap(err, "cannot find the layout's directory", "")
	}
	if err := mayReplace(dir); err != nil {
		return nil, err
	}
	parent, name := filepath.Split(dir)
	w := &layoutWriter{dir: dir, partial: filepath.Join(parent, "."+name+".partial")}
	if err := w.claim(ctx); err != nil {
		return nil, w.explain(err)
	}
	return w, nil
}

// mayReplace refuses what Pack must not delete: everything but nothing, an
// empty directory and a layout with at most one image and no other files.
func mayReplace(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(dir); err == nil {
			return failure.New(dir+" is a broken symbolic link", "remove it")
		}
		return nil
	case err != nil:
		return failure.Wrap(err, "cannot use "+dir+" for the layout", "name a directory that does not exist yet")
	case len(entries) == 0:
		return nil
	}
	foreign := func(why string) error {
		return failure.New(dir+" "+why+", so it is not replaced", "name another directory, or remove it")
	}
	for _, e := range entries {
		switch e.Name() {
		case layoutFile, indexFile, "blobs":
		default:
			return foreign(fmt.Sprintf("has %q in it", e.Name()))
		}
	}
	index, err := readIndex(dir)
	if err != nil {
		return foreign("is no OCI layout")
	}
	if len(index.Manifests) > 1 {
		return foreign("has several images in it")
	}
	return nil
}

// claim makes and locks the partial directory, without waiting for another who
// has it, and empties it. The lock ends with the process, so that what is left of
// a killed one is nobody's.
func (w *layoutWriter) claim(ctx context.Context) error {
	if err := os.MkdirAll(w.partial, 0o755); err != nil {
		return err
	}
	now, stop := context.WithCancelCause(ctx)
	stop(failure.New("another diskforge is packing into "+w.dir, "wait for it, or name another directory"))
	lock, err := host.LockDir(now, w.partial, "", progress.Discard)
	if err != nil {
		return err
	}
	w.lock = lock
	left, err := os.ReadDir(w.partial)
	for _, e := range left {
		err = errors.Join(err, os.RemoveAll(filepath.Join(w.partial, e.Name())))
	}
	if err = errors.Join(err, os.MkdirAll(filepath.Dir(w.blob("x")), 0o755)); err != nil {
		w.discard()
	}
	return err
}

// blob is the path of a blob.
func (w *layoutWriter) blob(hex string) string {
	return filepath.Join(w.partial, "blobs", "sha256", hex)
}

// writeImage writes config, manifest and index and returns the manifest's
// digest.
func (w *layoutWriter) writeImage(m Metadata, l writtenLayer) (v1.Hash, error) {
	config, err := w.writeJSON(types.OCIConfigJSON, m.config(l.diffID))
	if err != nil {
		return v1.Hash{}, err
	}
	manifest, err := w.writeJSON(types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        config,
		Layers:        []v1.Descriptor{l.Descriptor},
		Annotations:   m.annotations(l.disk.String()),
	})
	if err != nil {
		return v1.Hash{}, err
	}
	manifest.Annotations = m.indexAnnotations()
	manifest.Platform = &v1.Platform{OS: "linux", Architecture: m.Architecture}
	index, err := json.MarshalIndent(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests:     []v1.Descriptor{manifest},
	}, "", "  ")
	if err != nil {
		return v1.Hash{}, err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(w.partial, layoutFile), []byte(`{"imageLayoutVersion":"`+layoutVersion+`"}`), 0o644),
		os.WriteFile(filepath.Join(w.partial, indexFile), append(index, '\n'), 0o644),
	)
	return manifest.Digest, err
}

// writeJSON writes v as a blob and returns its descriptor.
func (w *layoutWriter) writeJSON(mediaType types.MediaType, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Size: size, Digest: digest}, os.WriteFile(w.blob(digest.Hex), b, 0o644)
}

// commit brings the layout to stable storage and moves it to its destination;
// one that was there is gone then.
func (w *layoutWriter) commit(ctx context.Context) error {
	err := filepath.WalkDir(w.partial, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = host.Sync(path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := w.swap(); err != nil {
		return err
	}
	return host.Sync(filepath.Dir(w.dir))
}

// swap puts the new layout in the old one's place in one step, where the file
// system can do that.
func (w *layoutWriter) swap() error {
	// This also replaces an empty directory, which os.Rename does not.
	err := unix.Rename(w.partial, w.dir)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if unix.Renameat2(unix.AT_FDCWD, w.partial, unix.AT_FDCWD, w.dir, unix.RENAME_EXCHANGE) == nil {
			return nil // discard removes the old one, which is partial now
		}
		if err = os.RemoveAll(w.dir); err == nil {
			err = unix.Rename(w.partial, w.dir)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: w.partial, New: w.dir, Err: err}
	}
	w.partial = ""
	return nil
}

// discard removes what is not the layout and gives up the lock.
func (w *layoutWriter) discard() {
	os.RemoveAll(w.partial)
	w.lock.Close()
}

// explain makes a person's error of one of the file system.
func (w *layoutWriter) explain(err error) error {
	if _, ok := failure.In(err); ok || err == nil {
		return err
	}
	if host.DiskFull(err) {
		return failure.Wrap(err, "no room for the layout in "+filepath.Dir(w.dir), "free some, or choose another directory")
	}
	return failure.Wrap(err, "cannot write the layout "+w.dir, "")
}
