// Package outdated says of published images how old they are, whether the image that
// each was made from has a newer one, and which of its packages have updates: by its
// SBOM, which is attached to it, and by what its release's archive has now.
package outdated

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// What is known of the image that one was made from.
const (
	Current    = "current"
	Superseded = "superseded" // its repository has a newer one
	Unknown    = "unknown"    // the base is no image in a registry, or could not be read
)

// Image is the newest image of a repository for an architecture, as machines read it.
type Image struct {
	Repository   string        `json:"repository"` // REGISTRY/PATH; the prefix where that could not be listed
	Architecture string        `json:"architecture,omitempty"`
	Tags         []string      `json:"tags,omitempty"`
	Digest       string        `json:"digest,omitempty"`
	Built        time.Time     `json:"built,omitzero"`
	Days         *int          `json:"days,omitempty"`   // since then; nil where that is not known
	Parent       string        `json:"parent,omitempty"` // Current, Superseded or Unknown
	ParentName   string        `json:"parentName,omitempty"`
	Security     []base.Update `json:"security"` // pending security updates, by source package
	Others       int           `json:"others"`   // packages with other updates
	// Refreshes is how many there were since a playbook made the image.
	Refreshes int `json:"refreshes,omitempty"`
	// Revoked says why it must not be used, where it must not.
	Revoked string `json:"revoked,omitempty"`
	// Unknown is why the updates are not known, Error why the image could not be looked at.
	Unknown string `json:"unknown,omitempty"`
	Error   string `json:"error,omitempty"`

	entry registry.Entry
	index *registry.Entry // of ours that has it, the newest, or nil
	has   sbom.Inventory
}

// Options say whom to ask, and whom to believe.
type Options struct {
	AptMirror, CAFile string
	Key               *attest.Key // whose SBOMs count; nil: everybody's
	Now               time.Time
}

const parallel = 4 // images that are read at a time

// Look looks at the newest images of ours of each repository. What could not be read has
// its Error; the errors of archives, each of which concerns many images, are returned.
func Look(ctx context.Context, s *registry.Session, repositories []registry.Repository, o Options) (all []Image, archives []error, err error) {
	known := &parents{session: s, by: map[string]registry.Repository{}, at: map[string]string{}, away: map[string]error{}}
	for _, r := range repositories {
		known.add(r)
	}
	var group errgroup.Group
	group.SetLimit(parallel)
	all = make([]Image, 0, len(repositories)*len(arch.All))
	for _, r := range repositories {
		if r.Err != nil {
			all = append(all, Image{Repository: r.Name, Security: []base.Update{}, Error: r.Err.Error()})
			continue
		}
		for _, e := range r.Newest() {
			all = append(all, Image{
				Repository: e.Repository, Architecture: e.Architecture(), Tags: e.Tags, Digest: e.Digest, Built: e.Built, ParentName: e.BaseName,
				Security: []base.Update{}, Refreshes: e.Original.Refreshes, entry: e,
			})
			i := &all[len(all)-1] // its place stays: there is room for all
			if !e.Built.IsZero() {
				days := int(max(0, o.Now.Sub(e.Built)).Hours() / 24)
				i.Days = &days
			}
			if n := slices.IndexFunc(r.Entries, func(of registry.Entry) bool { return of.Ours() && slices.Contains(of.Parts, e.Digest) }); n >= 0 {
				i.index = &r.Entries[n]
			}
			i.Parent = known.state(ctx, e)
			group.Go(func() error { i.read(ctx, s, e, o.Key); return nil })
		}
	}
	_ = group.Wait() // each error has its place
	archives = compare(ctx, all, o)
	return all, archives, context.Cause(ctx)
}

// read reads the image's SBOM, and whether it was revoked.
func (i *Image) read(ctx context.Context, s *registry.Session, e registry.Entry, key *attest.Key) {
	err := s.Revoked(ctx, e, key)
	if why, revoked := errors.AsType[registry.Revocation](err); revoked {
		i.Revoked = why.Error()
	} else if err != nil {
		i.Error = err.Error()
		return
	}
	_, attached, broken, err := s.Referrers(ctx, i.Repository+"@"+i.Digest, attest.BundleType)
	switch {
	case errors.Is(err, registry.ErrNoReferrers):
		i.Unknown = "no SBOM: the registry keeps none beside an image"
		return
	case err != nil:
		i.Error = err.Error()
		return
	}
	i.Unknown = "no SBOM: rebuild it, or push it again, with SIGNING_KEY"
	if key != nil {
		i.Unknown = "no SBOM by that key: rebuild it, or push it again, with SIGNING_KEY"
	}
	for _, bundle := range attached {
		said, err := attest.Read(ctx, key, bundle.Content)
		if err != nil || said.PredicateType != attest.SPDX || !said.Of(i.Digest) {
			continue
		}
		has, err := sbom.ReadSPDX(said.Predicate)
		if err == nil && has.Architecture() == "" {
			err = errors.New("it is not of " + strings.Join(arch.Names(), " or "))
		}
		if err == nil {
			i.has, i.Unknown = has, ""
			return
		}
		i.Unknown = "its SBOM tells nothing: " + text.Line(err.Error())
	}
	if broken > 0 {
		i.Error = "what is attached to it cannot be read"
	}
}

// compare finds the updates of all images, and asks each release's archive once.
func compare(ctx context.Context, all []Image, o Options) (failed []error) {
	of := map[base.Release][]*Image{}
	for n := range all {
		if i := &all[n]; len(i.has.Packages) > 0 {
			r := base.Release{System: i.has.System, Version: i.has.Version, Architecture: i.has.Architecture()}
			of[r] = append(of[r], i)
		}
	}
	for r, images := range of {
		var disks []sbom.Inventory
		for _, i := range images {
			disks = append(disks, i.has)
		}
		updates, err := base.FindUpdates(ctx, disks, o.AptMirror, o.CAFile)
		if err != nil && !errors.Is(err, base.ErrNoArchive) {
			failed = append(failed, err)
		}
		for n, i := range images {
			switch {
			case errors.Is(err, base.ErrNoArchive):
				i.Unknown = text.Cut(text.Line(err.Error()), 100)
			case err != nil:
				i.Error = fmt.Sprintf("the archive of %s %s cannot be read", r.System, r.Version)
			default:
				i.Security, i.Others = append(i.Security, updates[n].Security...), len(updates[n].Others)
			}
		}
	}
	return failed
}

// parents are the repositories of the images that others were made from.
type parents struct {
	session *registry.Session
	by      map[string]registry.Repository // by name
	at      map[string]string              // the repository that lists an image, by digest
	away    map[string]error               // registries that did not answer
}

func (k *parents) add(r registry.Repository) {
	k.by[r.Name] = r
	for _, e := range r.Entries {
		for _, digest := range append([]string{e.Digest}, e.Parts...) {
			k.at[digest] = r.Name
		}
	}
}

// state says whether what the image was made from is still the newest of its repository,
// the one that it names or where that is not listed, one that is and has it. Where others
// made that, it is current as long as it has the tag that it had. Of a refresh it is what
// its original was made from.
func (k *parents) state(ctx context.Context, e registry.Entry) string {
	if original := e.Original; original.Refreshes > 0 {
		e.BaseName, e.Base = original.BaseName, original.Base
	}
	name, _, _ := strings.Cut(e.BaseName, "@")
	at, tag := name, ""
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		at, tag = name[:colon], name[colon+1:]
	}
	if _, listed := k.by[at]; !listed {
		at = cmp.Or(k.at[e.Base], at)
	}
	if e.Base == "" || at == "" {
		return Unknown
	}
	r, read := k.by[at]
	if !read {
		r = k.read(ctx, at, e)
	}
	newest := r.Newest()
	if n := slices.IndexFunc(r.Entries, func(e registry.Entry) bool { return slices.Contains(e.Tags, tag) }); newest == nil && n >= 0 {
		newest = r.Entries[n:][:1]
	}
	switch {
	case r.Err != nil || newest == nil:
		return Unknown
	case slices.ContainsFunc(newest, func(parent registry.Entry) bool {
		return parent.Digest == e.Base || slices.Contains(parent.Parts, e.Base)
	}):
		return Current
	}
	return Superseded
}

// read reads a repository that is not listed. Another registry, which only an image names,
// gets no password, and not the time to hold all others up.
func (k *parents) read(ctx context.Context, at string, e registry.Entry) registry.Repository {
	r := registry.Repository{Name: at}
	host, _, _ := strings.Cut(at, "/")
	session := k.session
	if own, _, _ := strings.Cut(e.Repository, "/"); own != host {
		if r.Err = k.away[host]; r.Err != nil {
			return r
		}
		limited, done := context.WithTimeout(ctx, registry.LongestAnswer)
		defer done()
		ctx, session = limited, session.Stranger()
	}
	if r.Entries, r.Err = session.Entries(ctx, at); ctx.Err() != nil {
		k.away[host] = ctx.Err()
	}
	k.by[at] = r
	return r
}
