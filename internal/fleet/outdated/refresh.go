package outdated

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	original := i.entry.Original
	if original.Refreshes == 0 {
		original.Inputs, original.Built = i.entry.Inputs, i.entry.Built
	}
	made, err := b.Refresh(ctx, original, r.Security)
	if err != nil {
		return "", err
	}
	moving := slices.DeleteFunc(slices.Clone(r.Moving), func(tag string) bool { return !slices.Contains(i.Tags, tag) })
	if len(moving) > 0 {
		err = r.Session.Tag(ctx, i.Repository+"@"+made.Digest, moving...)
	}
	return made.Reference, err
}
