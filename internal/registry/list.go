package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
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
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
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
	// Parts are the digests of the images of an index.
	Parts []string `json:"parts,omitempty"`
}

// Ours says whether diskforge made the image.
func (e Entry) Ours() bool { return e.Disk != "" }

var listing = purpose{
	public: true,
	doing:  "listing", do: "list",
	right:   "ask for the right, or name the repositories themselves",
	missing: "it has no such list: name the repositories themselves",
	where:   "check TARGET_REGISTRY",
}

// Repositories lists the repositories at and below a prefix, REGISTRY or
// REGISTRY/PATH, by name: by Harbor's own API where it is Harbor, which keeps
// the registry's list (_catalog) for its administrators, and by that list
// elsewhere. A repository of the very name of the prefix is found also where
// there is no list; a list that breaks off is an error.
func (s *Session) Repositories(ctx context.Context, prefix string) ([]string, error) {
	host, path, err := splitPrefix(prefix)
	if err != nil {
		return nil, err
	}
	registry, err := name.NewRegistry(host, nameOptions(host, s.options.Insecure)...)
	if err != nil {
		return nil, failure.Wrap(err, fmt.Sprintf("%q is no registry", host), "")
	}
	itself, err := s.itself(ctx, registry, path)
	if err != nil {
		return nil, err
	}
	all, there, err := s.below(ctx, registry, path)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && (there || !itself):
		return nil, err
	case itself:
		all = append(all, path)
	}
	for i := range all {
		all[i] = host + "/" + all[i]
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// itself says whether the prefix is a repository.
func (s *Session) itself(ctx context.Context, registry name.Registry, path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	w, err := s.to(ctx, registry.Repo(path), reading, transport.PullScope)
	if err != nil {
		return false, err
	}
	_, there, err := w.tags(ctx)
	return there, err
}

// splitPrefix takes REGISTRY or REGISTRY/PATH apart.
func splitPrefix(prefix string) (host, path string, err error) {
	host, path, _ = strings.Cut(strings.TrimRight(prefix, "/"), "/")
	err = checkHost(host)
	switch {
	case strings.Contains(prefix, "://"):
		err = errors.New("leave out http:// or https://")
	case err == nil && path != "":
		err = checkPath(path)
	}
	if err != nil {
		return "", "", badReference(fmt.Sprintf("%q is no registry and prefix", prefix), err.Error())
	}
	return host, path, nil
}

// below lists the repositories below a path by the registry's own means, where
// there are such.
func (s *Session) below(ctx context.Context, registry name.Registry, path string) (all []string, there bool, err error) {
	if registry.RegistryStr() == ghcr {
		return nil, false, failure.New(ghcr+" has no list of repositories", "name them: "+ghcr+"/OWNER/NAME …")
	}
	project, _, _ := strings.Cut(path, "/")
	harbor, err := s.harbor(ctx, registry.Repo(cmp.Or(project, "repositories")), listing)
	if err != nil {
		return nil, false, err
	}
	if harbor != nil {
		all, there, err = harbor.repositories(ctx, project)
	} else {
		all, there, err = s.catalog(ctx, registry)
	}
	return slices.DeleteFunc(all, func(repository string) bool {
		return path != "" && repository != path && !strings.HasPrefix(repository, path+"/")
	}), there, err
}

// catalog reads the registry's own list of repositories.
func (s *Session) catalog(ctx context.Context, registry name.Registry) (all []string, there bool, err error) {
	const list = "_catalog"
	scope := registry.Scope(transport.CatalogScope)
	w, err := s.way(ctx, registry.Repo(list), listing, scope, func(c *client) func(context.Context) (http.RoundTripper, error) {
		return func(ctx context.Context) (http.RoundTripper, error) { return c.signedFor(ctx, c.guard, scope) }
	})
	if err != nil {
		return nil, false, err
	}
	first := w.address("/v2/" + list)
	first.RawQuery = fmt.Sprintf("n=%d", pageSize)
	there, err = w.pages(ctx, first, func(page []byte) error {
		var list struct {
			Repositories []string `json:"repositories"`
		}
		if err := json.Unmarshal(page, &list); err != nil {
			return errNoList
		}
		all, err = addNames(all, list.Repositories, checkPath)
		return err
	})
	if err == nil && !there {
		err = failure.New("registry "+registry.RegistryStr()+" has no list of repositories", "name the repositories themselves")
	}
	return all, there, err
}

// Entries lists the images of a repository, REGISTRY/PATH, that have a tag, the
// newest first: the distribution API knows of no others. A repository that does
// not exist has none.
func (s *Session) Entries(ctx context.Context, repository string) ([]Entry, error) {
	host, path, err := splitPrefix(repository)
	if err == nil && path == "" {
		err = failure.New(fmt.Sprintf("%q is no repository", repository), "name one as REGISTRY/REPOSITORY")
	}
	if err != nil {
		return nil, err
	}
	repo, err := name.NewRepository(host+"/"+path, nameOptions(host, s.options.Insecure)...)
	if err != nil {
		return nil, failure.Wrap(err, fmt.Sprintf("%q is no repository", repository), "")
	}
	w, err := s.to(ctx, repo, reading, transport.PullScope)
	if err != nil {
		return nil, err
	}
	names, _, err := w.tags(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return w.entries(ctx, host+"/"+path, slices.Compact(names))
}

// entries reads the images of tags and brings the tags of one digest together.
// Of a manifest only what an Entry tells is kept.
func (w *way) entries(ctx context.Context, repository string, tags []string) ([]Entry, error) {
	read := make([]listed, len(tags))
	err := w.each(ctx, w.named(tags), func(i int, d *remote.Descriptor) (err error) {
		if d != nil { // else it was deleted meanwhile
			read[i], err = entry(w.repo.Tag(tags[i]), d)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	at := map[string]int{}
	all := []Entry{}
	for i, e := range read {
		if e.Digest == "" {
			continue
		}
		if known, ok := at[e.Digest]; ok {
			all[known].Tags = append(all[known].Tags, tags[i])
			continue
		}
		if e.dated != nil {
			if e.Built, err = w.created(ctx, *e.dated); err != nil {
				return nil, err
			}
		}
		e.Repository, e.Tags = repository, []string{tags[i]}
		at[e.Digest] = len(all)
		all = append(all, e.Entry)
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return b.Built.Compare(a.Built) })
	return all, nil
}

// listed is an entry, with the config that has its date where the manifest has
// none.
type listed struct {
	Entry
	dated *v1.Descriptor
}

// manifest is what images and indexes have in common.
type manifest struct {
	Config      *v1.Descriptor    `json:"config"`
	Layers      []v1.Descriptor   `json:"layers"`
	Manifests   []v1.Descriptor   `json:"manifests"`
	Annotations map[string]string `json:"annotations"`
}

// entry reads what a manifest tells. One that is nothing that we know tells
// only its own size.
func entry(tag name.Tag, d *remote.Descriptor) (listed, error) {
	e := listed{Entry: Entry{Size: int64(len(d.Manifest)), Digest: d.Digest.String()}}
	var m manifest
	if json.Unmarshal(d.Manifest, &m) != nil {
		return e, nil
	}
	blobs := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, blob := range blobs {
		e.Size += min(max(0, blob.Size), math.MaxInt64-e.Size) // a manifest may claim anything
	}
	if n := len(m.Manifests); n > mostParts {
		return e, failure.New(fmt.Sprintf("%s is an index of %d images, which is absurd", tag, n), "")
	}
	for _, part := range m.Manifests {
		e.Parts = append(e.Parts, part.Digest.String())
	}
	a := m.Annotations
	e.Inputs, e.Disk, e.Base = clean(a[oci.AnnotationInputs]), clean(a[oci.AnnotationDisk]), clean(a["org.opencontainers.image.base.digest"])
	if e.Built = moment(a[oci.AnnotationBuilt]); e.Built.IsZero() {
		e.Built = moment(a["org.opencontainers.image.created"])
	}
	if e.Built.IsZero() && m.Config != nil && m.Config.Digest != (v1.Hash{}) {
		e.dated = &v1.Descriptor{Size: m.Config.Size, Digest: m.Config.Digest}
	}
	return e, nil
}

// clean leaves an annotation out that is no digest: it goes to a terminal.
func clean(digest string) string {
	if !digestPattern.MatchString(digest) {
		return ""
	}
	return strings.Clone(digest) // without the manifest that it stands in
}

// created reads when an image was made from its config, as most images that
// others make have no annotations. A config that is not there or not
// understood tells nothing.
func (w *way) created(ctx context.Context, config v1.Descriptor) (time.Time, error) {
	var c struct {
		Created string `json:"created"`
	}
	if config.Size > maxJSON {
		return time.Time{}, nil
	}
	_, err := w.look(ctx, func(signed http.RoundTripper) error {
		blob, err := remote.Layer(w.repo.Digest(config.Digest.String()), w.over(ctx, signed)...)
		if err != nil {
			return err
		}
		content, err := blob.Compressed()
		if err != nil {
			return err
		}
		defer content.Close()
		text, err := io.ReadAll(io.LimitReader(content, maxJSON))
		_ = json.Unmarshal(text, &c)
		return err
	})
	return moment(c.Created), err
}

// harborAPI is the API of a Harbor (api/v2.0/swagger.yaml in goharbor/harbor).
// Its errors have the form of the registry's.
type harborAPI struct{ *way }

// harbor returns the API of the registry of repo where that is Harbor, or nil.
// The repository is named in errors.
func (s *Session) harbor(ctx context.Context, repo name.Repository, what purpose) (*harborAPI, error) {
	w, err := s.way(ctx, repo, what, "harbor "+repo.RepositoryStr(), func(c *client) func(context.Context) (http.RoundTripper, error) {
		return func(ctx context.Context) (http.RoundTripper, error) {
			next := transport.NewUserAgent(c.guard, c.userAgent)
			found, err := transport.Ping(ctx, repo.Registry, next)
			if err != nil {
				return nil, err
			}
			return &withPassword{c, found.Insecure, next}, nil
		}
	})
	if err != nil {
		return nil, err
	}
	// getPing: "does not require any authentication".
	pong := false
	_, err = w.look(ctx, func(signed http.RoundTripper) error {
		resp, err := ask(ctx, &http.Client{Transport: signed, CheckRedirect: noRedirect}, http.MethodGet, w.address("/api/v2.0/ping").String())
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		pong = resp.StatusCode == http.StatusOK && strings.Trim(string(text), "\"\n") == "Pong"
		return err
	})
	if err != nil || !pong {
		return nil, err
	}
	return &harborAPI{w}, nil
}

// withPassword sends the login with requests to the registry's own host, by
// the scheme that works there.
type withPassword struct {
	*client
	plain bool // it speaks HTTP
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *withPassword) RoundTrip(req *http.Request) (*http.Response, error) {
	login, err := t.auth.Authorization()
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	if req.URL.Host == t.repo.RegistryStr() {
		req.URL.Scheme = "https"
		if t.plain {
			req.URL.Scheme = "http"
		}
		if login.Password != "" {
			req.SetBasicAuth(login.Username, login.Password)
		}
	}
	return t.next.RoundTrip(req)
}

// repositories lists those of a project or, without one, all that the login may
// see (listRepositories, listAllRepositories).
func (h *harborAPI) repositories(ctx context.Context, project string) (all []string, there bool, err error) {
	path := "/api/v2.0/repositories"
	if project != "" {
		path = "/api/v2.0/projects/" + url.PathEscape(project) + "/repositories"
	}
	first := h.address(path)
	first.RawQuery = fmt.Sprintf("page=1&page_size=%d", pageSize)
	there, err = h.pages(ctx, first, func(page []byte) error {
		var list []struct {
			Name string `json:"name"` // with the project's
		}
		if err := json.Unmarshal(page, &list); err != nil {
			return errNoList
		}
		names := make([]string, len(list))
		for i, r := range list {
			names[i] = r.Name
		}
		var err error
		all, err = addNames(all, names, checkPath)
		return err
	})
	if err == nil && !there {
		err = failure.New(fmt.Sprintf("Harbor at %s has no project %s for %s", h.repo.RegistryStr(), project, h.who()), "check the name, and the login's role in the project")
	}
	return all, there, err
}
