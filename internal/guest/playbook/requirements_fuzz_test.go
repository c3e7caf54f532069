package playbook

import (
	"path"
	"strings"
	"testing"
)

func FuzzRequirements(f *testing.F) {
	f.Add([]byte("roles:\n- {name: a.b, version: 1.2.3}\ncollections:\n- {name: c.d, version: ==1.0.0}\n"), "roles")
	f.Add([]byte("- {src: https://example.org/x.git, scm: git, name: ../../x, version: v1.0}\n"), "")
	f.Add([]byte("- &a [*a]\n"), "collections")
	f.Fuzz(func(t *testing.T, text []byte, folder string) {
		req, err := parseRequirements(text, folder)
		if err != nil {
			return
		}
		for _, r := range append(req.Roles, req.Collections...) {
			if !pinned.MatchString(r.Version) || strings.HasPrefix(r.Name, "-") || strings.HasPrefix(path.Join("roles", r.Name), "..") {
				t.Fatalf("%+v was taken", r)
			}
		}
	})
}
