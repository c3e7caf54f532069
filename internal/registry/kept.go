package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// keptFile lies beside a disk that was fetched, with the image that it came
// out of. So who has the disk needs the registry no more, nor its password.
const keptFile = "image.json"

// keptImage is an image as its registry gave it.
type keptImage struct {
	From     string // REGISTRY/REPOSITORY[:TAG] under which it was asked for
	Manifest []byte
	Config   []byte
}

// keep writes down which image a disk came out of.
func (i *Image) keep(ctx context.Context, from, dir string, p progress.Reporter) error {
	held, err := host.LockDir(ctx, dir, "waiting for another process that takes out the same disk", p)
	if err == nil {
		defer held.Close()
		err = host.WriteFile(filepath.Join(dir, keptFile), 0o600, func(w io.Writer) error {
			return json.NewEncoder(w).Encode(keptImage{from, i.Manifest, i.Config})
		})
	}
	if err != nil && ctx.Err() == nil {
		return failure.Wrap(err, "cannot write down which image the base's disk came out of", "check CACHE_DIR")
	}
	return err
}

// kept is the disk of an image that was fetched before and is as it was: the
// one with the digest or, without one, the last from the same tag that has the
// wanted inputs.
func (o FetchOptions) kept(ctx context.Context, from, digest string, p progress.Reporter) (Fetched, bool) {
	for _, file := range lastFirst(filepath.Join(o.CacheDir, "sha256-*", keptFile)) {
		k, stored, err := readKept(file)
		if err != nil || digest != "" && stored.Digest != digest || digest == "" && (k.From != from || o.Want.Inputs == "") {
			continue
		}
		stored.Name = from
		if disk, err := stored.Extract(ctx, o.Want, o.CacheDir, p); err == nil {
			return Fetched{disk, from + "@" + stored.Digest}, true
		}
	}
	return Fetched{}, false
}

// lastFirst lists files by when they were written.
func lastFirst(pattern string) []string {
	files, _ := filepath.Glob(pattern) // it fails for a bad pattern only: then none is kept
	written := func(file string) time.Time {
		info, err := os.Stat(file)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(files, func(a, b string) int { return written(b).Compare(written(a)) })
	return files
}

// readKept reads what keep has written.
func readKept(file string) (k keptImage, s oci.Stored, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return k, s, err
	}
	if err = json.Unmarshal(text, &k); err != nil {
		return k, s, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(k.Manifest))
	s = oci.Stored{Digest: digest.String(), Manifest: k.Manifest, Config: k.Config}
	s.Open = func(v1.Descriptor) (io.ReadCloser, error) { return nil, os.ErrNotExist } // only the disk is kept
	return k, s, err
}
