package pipeline

import (
	"cmp"
	"context"
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

// baseImage takes the base out of a containerdisk, in a registry or a layout.
func (b *Build) baseImage(ctx context.Context, p progress.Reporter) (origin, error) {
	image := b.Config.BaseImage
	want := oci.Want{Digest: image.Digest, Inputs: image.Inputs}
	cache := first(b.BaseDir, filepath.Join(b.Config.CacheDir, "images"))
	var disk oci.Extracted
	var name string
	if image.Layout != "" {
		var err error
		if disk, err = oci.Extract(ctx, image.Layout, want, cache, p); err != nil {
			return origin{}, err
		}
		name = filepath.Base(image.Layout) + "@" + disk.Manifest
	} else {
		options, err := b.RegistryOptions()
		if err != nil {
			return origin{}, err
		}
		fetched, err := registry.Fetch(ctx, image.Reference, registry.FetchOptions{Options: options, Want: want, Wait: b.Config.BaseTimeout, CacheDir: cache}, p)
		if err != nil {
			return origin{}, err
		}
		disk, name = fetched.Extracted, fetched.Reference
	}
	path, err := filepath.Abs(disk.Path)
	guest, known := playbook.GuessGuest(append(disk.Hints, name)...)
	return origin{
		Path: path, Format: disk.Format, Name: name, Digest: disk.Digest, Manifest: disk.Manifest,
		Inputs:  cmp.Or(image.Inputs, image.Digest),
		Created: disk.Created, Guest: guest, Known: known,
	}, err
}
