package outdated

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Refresh says which images are refreshed, and how.
type Refresh struct {
	Security bool     // only where a security update is pending
	Most     int      // refreshes of one original; then a build is due
	Moving   []string // tags that move to the refresh where the image has them
	Session  *registry.Session
}

// Do refreshes one of the images that Look returned, as b builds, and returns the reference
// of the new image. The cause of its error is pipeline.ErrCurrent where nothing is pending.
func (r Refresh) Do(ctx context.Context, b pipeline.Build, i Image) (string, error) {
	host, path, _ := strings.Cut(i.Repository, "/")
	prefix, name := "", path
	if slash := strings.LastIndex(path, "/"); slash >= 0 {
		prefix, name = path[:slash], path[slash+1:]
	}
	from := i.Repository + "@" + i.Digest
	switch {
	case i.Error != "":
		return "", errors.New(i.Error)
	case i.Revoked != "":
		return "", failure.New(from+" "+i.Revoked, "build it anew")
	case i.Unknown == "" && len(i.Security) == 0 && (r.Security || i.Others == 0):
		return "", pipeline.ErrCurrent
	case i.Refreshes >= r.Most:
		return "", failure.New(fmt.Sprintf("%s was refreshed %d times since a playbook made it", from, i.Refreshes), "build it anew, or raise --most")
	}
	var err error
	lasting := settings.Settings{}
	for _, name := range pipeline.Lasting {
		if value := i.entry.Settings[name]; value != "" {
			lasting[name] = value
		}
	}
	b.Settings = lasting.With(b.Settings.Only("refresh")).With(map[string]string{
		"TARGET_REGISTRY": host, "REGISTRY_PREFIX": prefix, "IMAGE_NAME": name,
		"ISO_URL": "oci://" + from, "ANSIBLE_PLAYBOOK": pipeline.RefreshPlaybook, "OUTPUT_DIR": fleet.Dir(b.Config.OutputDir, path),
	})
	if b.Config, err = pipeline.Parse(b.Settings, pipeline.NeedBase, pipeline.NeedPlaybook, pipeline.NeedTarget); err != nil {
		return "", err
	}
	suffix := ""
	if i.index != nil {
		suffix = "-" + i.Architecture
		b.Config.ImageTag, b.Config.Reference = b.Config.ImageTag+suffix, b.Config.Reference+suffix
	}
	original := i.entry.Original
	if original.Refreshes == 0 {
		original = i.entry.AsOriginal()
	}
	made, err := b.Refresh(ctx, original, r.Security)
	if err != nil {
		return "", err
	}
	return made.Reference, r.move(ctx, i.Repository+"@"+made.Digest, i.Tags, suffix)
}

// move gives a new image, or index, those of the moving tags that the former one has.
func (r Refresh) move(ctx context.Context, image string, had []string, suffix string) error {
	var moving []string
	for _, tag := range r.Moving {
		if slices.Contains(had, tag+suffix) {
			moving = append(moving, tag+suffix)
		}
	}
	if moving == nil {
		return nil
	}
	return r.Session.Tag(ctx, image, moving...)
}

// Index makes the index that has the image anew where that, or another of its images, was
// refreshed, and returns its reference; empty where nothing is to be done. Made are the
// references of refreshes by the digests of what they refreshed; those of an index that is
// made are taken out. The tag is that of the day, where none is given.
func (r Refresh) Index(ctx context.Context, b pipeline.Build, i Image, made map[string]string) (reference string, err error) {
	if made[i.Digest] == "" || i.index == nil {
		return "", nil
	}
	var parts []registry.Part
	for _, digest := range i.index.Parts {
		parts = append(parts, registry.Part{Reference: cmp.Or(made[digest], i.Repository+"@"+digest)})
		delete(made, digest)
	}
	if reference = i.Repository + ":" + b.Config.ImageTag; b.Config.ImageTag == "" {
		if reference, err = r.Session.FreeTag(ctx, i.Repository+":"+time.Now().UTC().Format("20060102")); err != nil {
			return "", err
		}
	}
	if reference, err = b.Index(ctx, reference, parts); err == nil {
		_, digest, _ := strings.Cut(reference, "@")
		err = r.move(ctx, i.Repository+"@"+digest, i.index.Tags, "")
	}
	return reference, err
}
