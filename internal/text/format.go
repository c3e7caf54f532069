package text

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Size writes bytes the way people read them, in powers of 1024.
func Size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d KiB", (n+1023)/1024)
	}
}

// Span writes a span of time the way people read it, with two units at most.
func Span(d time.Duration) string {
	seconds := int64(d.Round(time.Second).Seconds())
	switch {
	case d.Round(time.Millisecond) < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d.Round(100*time.Millisecond) < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case seconds < 60:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%d min %d s", seconds/60, seconds%60)
	}
	minutes := int64(d.Round(time.Minute).Minutes())
	return fmt.Sprintf("%d h %d min", minutes/60, minutes%60)
}

// Count is a number of things: "1 image", "25 images".
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// URL is a URL without what may be secret in it: the user and password, the
// query, which may be a signature, and the fragment. What is no URL stays.
func URL(s string) string {
	u, err := url.Parse(s)
	scheme, _, isURL := strings.Cut(s, "://")
	switch {
	case err != nil && isURL:
		return scheme + "://…" // where its password ends, nobody knows
	case err != nil || u.Host == "":
		return s
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment = nil, "", false, ""
	return u.String()
}

// Redactor replaces secrets by asterisks, as they are and as they stand in a
// URL's query.
func Redactor(secrets ...string) *strings.Replacer {
	var all []string
	for _, s := range secrets {
		if s != "" {
			all = append(all, s, url.QueryEscape(s))
		}
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var pairs []string
	for _, s := range all {
		pairs = append(pairs, s, "***")
	}
	return strings.NewReplacer(pairs...)
}
