package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

const (
	parallelLists = 4    // repositories that are read at a time
	mostParts     = 1000 // images of an index
)

// Entry is an image in a repository, with all the tags that name it.
type Entry struct {
	Repository string   `json:"repository"` // REGISTRY/PATH
	Tags       []string `json:"tags"`       // by name; those of referrers are left out
	Digest     string   `json:"digest"`     // of the manifest, "sha256:…"
	Size       int64    `json:"size"`       // of the manifest and its blobs, in bytes
	// Built is when its playbook had run or, where that is not known, when it
	// was made; zero where neither is.
	Built  time.Time `json:"built,omitzero"`
	Inputs string    `json:"inputs,omitempty"` // digest of all that it was made from
	// Disk is the digest of the disk in it. Only diskforge's images have one.
	Disk string `json:"disk,omitempty"`
	Base string `json:"base,omitempty"` // digest of what it was made from
	// BaseName is the reference of the image that it was made from, where that is one.
	BaseName string `json:"baseName,omitempty"`
	// Settings are those that a refresh of it needs, unchecked.
	Settings map[string]string `json:"settings,omitempty"`
	// Original is what it is a refresh of; zero where it is none.
	Original oci.Original `json:"original,omitzero"`
	// Parts are the digests of the images of an index.
	Parts []string `json:"parts,omitempty"`

	// ancestors are what it was made from, as REGISTRY/REPOSITORY@DIGEST, as far as they may be
	// images: its base and, of a refresh, its original and that one's base.
	ancestors []string
	stated    string // name of its base, unchecked
}

// AsOriginal is the image as the original of its refreshes.
func (e Entry) AsOriginal() oci.Original {
	return oci.Original{Inputs: e.Inputs, Built: e.Built, Digest: e.Digest, Base: e.Base, BaseName: e.stated}
}

// Ours says whether diskforge made the image, or the index.
func (e Entry) Ours() bool { return e.Disk != "" || len(e.Parts) > 0 && e.Inputs != "" }

// Architecture is the one that an image of ours is for.
func (e Entry) Architecture() string {
	if of := e.Settings["ARCHITECTURE"]; slices.Contains(arch.Names(), of) {
		return of
	}
	return arch.Default
}

// Name is the shortest whole name of the image.
func (e Entry) Name() string {
	if len(e.Tags) > 0 {
		return e.Repository + ":" + e.Tags[0]
	}
	return e.Repository + "@" + e.Digest
}

// Repository is a repository with its images, or why it could not be read.
type Repository struct {
	Name    string // REGISTRY/PATH; the prefix where that could not be listed
	Entries []Entry
	Err     error
}

// Newest are the newest images of ours, one for each architecture, the newest first.
func (r Repository) Newest() (all []Entry) {
	seen := map[string]bool{}
	for _, e := range r.Entries { // Entries sorted them
		if e.Disk != "" && !seen[e.Architecture()] {
			seen[e.Architecture()] = true
			all = append(all, e)
		}
	}
	return all
}

// List reads the repositories at and below the prefixes, by name. What cannot be
// read, and a prefix without any, says so in its Err and stops nothing; List's
// own error is that of the context.
func (s *Session) List(ctx context.Context, prefixes []string) ([]Repository, error) {
	var all []Repository
	for _, prefix := range prefixes {
		names, err := s.Repositories(ctx, prefix)
		if err == nil && len(names) == 0 {
			err = failure.New("no repository at or below "+prefix, "")
		}
		if err != nil {
			all = append(all, Repository{Name: prefix, Err: err})
		}
		for _, repository := range names {
			all = append(all, Repository{Name: repository})
		}
	}
	slices.SortStableFunc(all, func(a, b Repository) int { return strings.Compare(a.Name, b.Name) })
	all = slices.CompactFunc(all, func(a, b Repository) bool { return a.Name == b.Name })
	var group errgroup.Group
	group.SetLimit(parallelLists)
	for i := range all {
		if all[i].Err != nil {
			continue
		}
		group.Go(func() error {
			all[i].Entries, all[i].Err = s.Entries(ctx, all[i].Name)
			return nil
		})
	}
	_ = group.Wait() // each error has its place
	return all, context.Cause(ctx)
}

// Repositories lists the repositories at and below a prefix, REGISTRY or
// REGISTRY/PATH, by name: by Harbor's own API where it is Harbor, which keeps
// the registry's list (_catalog) for its administrators, and by that list
// elsewhere. A repository of the very name of the prefix is found also where
// there is no list; a list that breaks off is an error.
func (s *Session) Repositories(ctx context.Context, prefix string) ([]string, error) {
	registry, path, err := splitPrefix(prefix)
	if err != nil {
		return nil, err
	}
	itself := false
	if path != "" {
		a := s.access(registry.Repo(path), reading)
		if _, itself, err = a.tags(ctx); err != nil {
			return nil, err
		}
	}
	all, there, err := s.catalog(ctx, registry, path)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && (there || !itself):
		return nil, err
	case itself:
		all = append(all, path)
	}
	all = slices.DeleteFunc(all, func(repository string) bool {
		return path != "" && repository != path && !strings.HasPrefix(repository, path+"/")
	})
	at, _, _ := strings.Cut(prefix, "/")
	for i := range all {
		all[i] = at + "/" + all[i]
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// CheckPrefix says whether a prefix can be one: REGISTRY or REGISTRY/PATH. Nobody is asked.
func CheckPrefix(prefix string) error {
	_, _, err := splitPrefix(prefix)
	return err
}

// splitPrefix takes REGISTRY or REGISTRY/PATH apart.
func splitPrefix(prefix string) (registry name.Registry, path string, err error) {
	at, path, _ := strings.Cut(strings.TrimRight(prefix, "/"), "/")
	if err = checkHost(at); err == nil && path != "" {
		err = checkPath(path)
	}
	if err == nil {
		registry, err = name.NewRegistry(at)
	}
	if err != nil {
		return registry, "", badReference(fmt.Sprintf("%q is no registry and prefix", prefix), err.Error())
	}
	return registry, path, nil
}

// catalog lists repositories by the registry's own means: at least those at and
// below the path.
func (s *Session) catalog(ctx context.Context, registry name.Registry, path string) (all []string, there bool, err error) {
	if registry.RegistryStr() == ghcr {
		return nil, false, failure.New(ghcr+" has no list of repositories", "name them: "+ghcr+"/OWNER/NAME …")
	}
	project, _, _ := strings.Cut(path, "/")
	a, err := s.harbor(ctx, registry.Repo(cmp.Or(project, "repositories")), listing)
	first, at := "", registry.RegistryStr()
	none := failure.New("registry "+at+" has no list of repositories", "name the repositories themselves")
	switch {
	case err != nil:
		return nil, false, err
	case a == nil:
		first = fmt.Sprintf("/v2/_catalog?n=%d", pageSize)
		a = s.access(registry.Repo("_catalog"), listing)
	case project == "": // listAllRepositories: all that the login may see
		first = fmt.Sprintf("/api/v2.0/repositories?page=1&page_size=%d", pageSize)
	default: // listRepositories
		first = fmt.Sprintf("/api/v2.0/projects/%s/repositories?page=1&page_size=%d", url.PathEscape(project), pageSize)
		none = failure.New(fmt.Sprintf("Harbor at %s has no project %s for %s", at, project, a.who()),
			"check the name, and the login's role in the project")
	}
	if all, there, err = a.list(ctx, first, checkPath); err == nil && !there {
		err = none
	}
	return all, there, err
}

// harbor returns the access to the API of the registry of repo where that is
// Harbor (api/v2.0/swagger.yaml in goharbor/harbor), or nil. Its errors have the
// form of the registry's.
func (s *Session) harbor(ctx context.Context, repo name.Repository, what purpose) (*access, error) {
	what.harbor = true
	a := s.access(repo, what)
	pong := false
	_, err := a.look(ctx, func() error { // getPing: "does not require any authentication"
		resp, err := a.send(ctx, http.MethodGet, a.url("/api/v2.0/ping"), nil, noRedirect)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		pong = resp.StatusCode == http.StatusOK && strings.Trim(string(text), "\"\n") == "Pong"
		return err
	})
	if err != nil || !pong {
		return nil, err
	}
	return a, nil
}

// Entries lists the images of a repository, REGISTRY/PATH, that have a tag, the
// newest first: the distribution API knows of no others. A repository that does
// not exist has none.
func (s *Session) Entries(ctx context.Context, repository string) ([]Entry, error) {
	registry, path, err := splitPrefix(repository)
	if err == nil && path == "" {
		err = failure.New(fmt.Sprintf("%q is no repository", repository), "name one as REGISTRY/REPOSITORY")
	}
	if err != nil {
		return nil, err
	}
	a := s.access(registry.Repo(path), reading)
	tags, _, err := a.tags(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	read, err := each(ctx, a, tags, func(tag name.Tag, d *remote.Descriptor) (Entry, error) {
		e, err := entry(tag, d.Digest.String(), d.Manifest)
		if err == nil && e.Built.IsZero() {
			e.Built, err = a.created(ctx, d)
		}
		return e, err
	})
	if err != nil {
		return nil, err
	}
	at := map[string]int{} // by digest
	all := []Entry{}
	for i, e := range read {
		known, ok := at[e.Digest]
		switch {
		case e.Digest == "": // it was deleted meanwhile
		case ok:
			all[known].Tags = append(all[known].Tags, tags[i])
		default:
			e.Repository, e.Tags = strings.TrimRight(repository, "/"), []string{tags[i]}
			at[e.Digest] = len(all)
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return b.Built.Compare(a.Built) })
	return all, nil
}

// entry reads what a manifest tells, and keeps no more of it. One that is
// nothing that we know tells only its own size.
func entry(ref name.Reference, imageDigest string, raw []byte) (Entry, error) {
	e := Entry{Repository: ref.Context().Name(), Size: int64(len(raw)), Digest: imageDigest}
	var m struct { // what images and indexes have in common
		Config      *v1.Descriptor    `json:"config"`
		Layers      []v1.Descriptor   `json:"layers"`
		Manifests   []v1.Descriptor   `json:"manifests"`
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return e, nil //nolint:nilerr // anything may be stored under a tag
	}
	blobs := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, blob := range blobs {
		e.Size += min(max(0, blob.Size), math.MaxInt64-e.Size) // a manifest may claim anything
	}
	if n := len(m.Manifests); n > mostParts {
		return e, failure.New(fmt.Sprintf("%s is an index of %d images, of which at most %d are read", ref, n, mostParts), "")
	}
	for _, part := range m.Manifests {
		e.Parts = append(e.Parts, part.Digest.String())
	}
	digest := func(annotation string) string {
		if value := m.Annotations[annotation]; host.ValidDigest(value) { // else it may be anything, and goes to a terminal
			return strings.Clone(value) // without the manifest that it stands in
		}
		return ""
	}
	e.Inputs, e.Disk = digest(oci.AnnotationInputs), digest(oci.AnnotationDisk)
	e.Base = digest(oci.AnnotationBaseDigest)
	if original := oci.OriginalOf(m.Annotations); original.Refreshes > 0 {
		e.Original = original
	}
	_ = json.Unmarshal([]byte(m.Annotations[oci.AnnotationSettings]), &e.Settings)
	if base := m.Annotations[oci.AnnotationBaseName]; CheckStored(base) == nil {
		e.BaseName = strings.Clone(base)
	}
	e.stated = strings.Clone(oci.BaseName(m.Annotations))
	repo := ref.Context()
	for _, one := range []string{parentOf(repo, e.Base, e.stated), parentOf(repo, e.Original.Base, e.Original.BaseName)} {
		if one != "" {
			e.ancestors = append(e.ancestors, one)
		}
	}
	if original := e.Original.Digest; original != "" {
		e.ancestors = append(e.ancestors, repo.Digest(original).String())
	}
	e.Built = cmp.Or(moment(m.Annotations[oci.AnnotationBuilt]), moment(m.Annotations[oci.AnnotationCreated]))
	return e, nil
}

// created reads when an image was made from its config, as most images that
// others make have no annotations. A config that is not there or not
// understood tells nothing.
func (a *access) created(ctx context.Context, d *remote.Descriptor) (time.Time, error) {
	m, err := v1.ParseManifest(bytes.NewReader(d.Manifest))
	if err != nil || m.Config.Digest.Algorithm != "sha256" || m.Config.Size < 0 || m.Config.Size > maxJSON {
		return time.Time{}, nil //nolint:nilerr // one that is not understood
	}
	var c struct {
		Created string `json:"created"`
	}
	_, err = a.look(ctx, func() error {
		text, err := a.read(ctx, m.Config)
		_ = json.Unmarshal(text, &c)
		return err
	})
	return moment(c.Created), err
}
