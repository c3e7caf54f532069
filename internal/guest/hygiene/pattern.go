package hygiene

import (
	"regexp"
	"strings"
)

// pattern is a glob for paths in the guest: * and ? stay within one name, **
// reaches over any number of directories.
type pattern struct {
	prefix, suffix string // literal text at its ends, compared first: it is fast
	re             *regexp.Regexp
}

func glob(text string) pattern {
	first, last := strings.IndexAny(text, "*?"), strings.LastIndexAny(text, "*?")
	if first < 0 {
		first, last = len(text), -1
	}
	quoted := strings.NewReplacer(`/\*\*/`, `/(?:.*/)?`, `\*\*`, `.*`, `\*`, `[^/]*`, `\?`, `[^/]`).Replace(regexp.QuoteMeta(text))
	return pattern{text[:first], text[last+1:], regexp.MustCompile(`(?s)^` + quoted + `$`)}
}

func globs(texts ...string) []pattern {
	var all []pattern
	for _, t := range texts {
		all = append(all, glob(t))
	}
	return all
}

func (p pattern) match(path string) bool {
	return strings.HasPrefix(path, p.prefix) && strings.HasSuffix(path, p.suffix) && p.re.MatchString(path)
}

func matchAny(all []pattern, path string) bool {
	for _, p := range all {
		if p.match(path) {
			return true
		}
	}
	return false
}
