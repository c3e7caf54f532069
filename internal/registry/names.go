package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

const (
	// pageSize is how many names a page of a list is asked to have. More than
	// the registry allows is an error in some (docker-registry's
	// PAGINATION_NUMBER_INVALID), so it is the lowest limit that is known.
	pageSize = 100
	// What a list may have at most. They stop a registry that never ends; no
	// real one comes near.
	mostPages = 1000
	mostNames = 100_000
)

// allTags lists the tags of the repository.
func (a *access) allTags(ctx context.Context) ([]string, error) {
	tags, _, err := a.list(ctx, fmt.Sprintf("%s?n=%d", a.path("/tags/list"), pageSize), checkTagForm)
	return tags, err
}

// tags lists the tags of images: those of referrers are no images' names. A
// repository that does not exist has none and is not there.
func (a *access) tags(ctx context.Context) (tags []string, there bool, err error) {
	tags, there, err = a.list(ctx, fmt.Sprintf("%s?n=%d", a.path("/tags/list"), pageSize), checkTagForm)
	return slices.DeleteFunc(tags, referrersTag.MatchString), there, err
}

// list reads the names of a list page by page, following the links of the
// registry: only to the registry itself, and not for ever. Where there is no
// first page, there is no such list; one that breaks off later is there and an
// error.
func (a *access) list(ctx context.Context, first string, check func(string) error) (all []string, there bool, err error) {
	broken := func(how, try string) ([]string, bool, error) {
		return nil, true, failure.New(fmt.Sprintf("registry %s's list for %s %s", a.repo.RegistryStr(), a.repo.RepositoryStr(), how), try)
	}
	seen := map[string]bool{}
	for at := first; at != ""; {
		if seen[at] || len(seen) == mostPages || len(all) > mostNames {
			return broken("does not come to the end", "name the repositories instead of their prefix")
		}
		seen[at] = true
		var names []string
		var next string
		found, err := a.look(ctx, func() error {
			page, links, err := a.page(ctx, at)
			if err != nil {
				return err
			}
			there = true
			if names, err = parseNames(page, check); err == nil {
				next, err = follow(a.url(at), links)
			}
			return err
		})
		switch {
		case err != nil || !there:
			return nil, there, err
		case !found:
			return broken("breaks off: a page of it is not there", "try again: it may have changed meanwhile")
		}
		all, at = append(all, names...), next
	}
	return all, true, nil
}

// page reads a page, and its links to others.
func (a *access) page(ctx context.Context, at string) (page []byte, links []string, err error) {
	resp, err := a.send(ctx, http.MethodGet, a.url(at), nil, sameHost, http.StatusOK)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	page, err = io.ReadAll(resp.Body)
	return page, resp.Header.Values("Link"), err
}

// parseNames reads a page of tags, of repositories or of Harbor's repositories.
func parseNames(page []byte, check func(string) error) ([]string, error) {
	var list struct {
		Tags         []string `json:"tags"`
		Repositories []string `json:"repositories"`
	}
	var harbor []struct {
		Name string `json:"name"` // with the project's
	}
	if json.Unmarshal(page, &harbor) != nil && json.Unmarshal(page, &list) != nil {
		return nil, errors.New("what it sends is no list")
	}
	names := append(list.Tags, list.Repositories...)
	for _, repository := range harbor {
		names = append(names, repository.Name)
	}
	for _, n := range names {
		if err := check(n); err != nil {
			return nil, fmt.Errorf("its list has the name %q, which cannot be: %w", n, err)
		}
	}
	return names, nil
}

// webLink is one link of a Link header (RFC 8288): its target and parameters.
var (
	webLink = regexp.MustCompile(`<([^<>]*)>([^<]*)`)
	relNext = regexp.MustCompile(`;\s*rel="?next"?\s*(;|,|$)`)
)

// follow returns the path of the next page where the page at links to it, or
// nothing. Harbor has a link to the previous page before it. Registries behind a
// proxy often name another scheme than the one they are reached by: only the
// host must be the same.
func follow(at string, header []string) (string, error) {
	for _, line := range header {
		for _, link := range webLink.FindAllStringSubmatch(line, -1) {
			if !relNext.MatchString(link[2]) || link[1] == "" {
				continue
			}
			page, err := url.Parse(at)
			if err != nil {
				return "", err
			}
			next, err := page.Parse(link[1])
			if err != nil {
				return "", errors.New("its link to the next page is no URL")
			}
			if next.Host != page.Host {
				return "", fmt.Errorf("the next page is said to be at another host, %s", next.Host)
			}
			return next.RequestURI(), nil
		}
	}
	return "", nil
}
