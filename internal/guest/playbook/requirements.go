package playbook

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// install fetches the roles and collections of a file of requirements.
func (s Source) install(ctx context.Context, file string, report progress.Reporter) error {
	name, _ := filepath.Rel(s.Root, file)
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the requirements: %w", err)
	}
	req, err := parseRequirements(b, path.Base(filepath.Dir(file)))
	if err != nil {
		return failure.Wrap(err, name, "pin every role and collection to one version: x.y.z, or a full commit")
	}
	report.Activity("installing the playbook's requirements")
	for _, kind := range []string{"role", "collection"} {
		if kind == "role" && len(req.Roles) == 0 || kind == "collection" && len(req.Collections) == 0 {
			continue
		}
		err := host.Run(ctx, host.Cmd{
			Program: "ansible-galaxy", Args: []string{kind, "install", "-r", file, "-p", s.beside("galaxy", kind+"s")},
			Dir: s.Root, Confined: true, Env: host.Env(append(gitVariables(), s.Env()...)...),
		})
		if err != nil {
			return &failure.Error{What: fmt.Sprintf("installing the %ss of %s: %v", kind, name, err), Lines: host.Tail(err), Err: err,
				Try: "are the versions there, and the server reachable?"}
		}
	}
	return nil
}

// requirements is the content of a requirements.yml.
type requirements struct {
	Roles       []requirement `yaml:"roles"`
	Collections []requirement `yaml:"collections"`
}

// requirement is one role or collection. The short form, a bare name, has no
// version and is refused with all others that have none.
type requirement struct {
	Name    string `yaml:"name"`
	Src     string `yaml:"src"`
	Source  string `yaml:"source"`
	Version string `yaml:"version"`
	Include string `yaml:"include"`
}

// UnmarshalYAML accepts the short form, for the sake of a better error.
func (r *requirement) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		r.Name = n.Value
		return nil
	}
	type plain requirement
	return n.Decode((*plain)(r))
}

// pinned are versions that name one thing: a release, a tag that looks like
// one, a full commit. A branch, a range or "latest" is none.
var pinned = regexp.MustCompile(`^(?:==)?v?[0-9]+(\.[0-9]+)+([-+.][0-9A-Za-z.+-]+)?$|^[0-9a-f]{40}$|^[0-9a-f]{64}$`)

// parseRequirements reads a requirements.yml, in its old form (a list of
// roles, or of collections in a folder of that name) or its new one, and
// refuses what is not pinned.
func parseRequirements(b []byte, folder string) (requirements, error) {
	var req requirements
	var old []requirement
	if err := yaml.Unmarshal(b, &old); err == nil && folder == "collections" {
		req.Collections = old
	} else if err == nil {
		req.Roles = old
	} else if err := yaml.Unmarshal(b, &req); err != nil {
		return req, fmt.Errorf("is no list of roles and collections: %s", text.Line(err.Error()))
	}
	for _, r := range slices.Concat(req.Roles, req.Collections) {
		if err := r.check(); err != nil {
			return req, err
		}
	}
	return req, nil
}

func (r requirement) check() error {
	name := cmp.Or(r.Name, r.Src)
	switch {
	case r.Include != "":
		return fmt.Errorf("includes %q: name its roles here", r.Include)
	case r.Version == "":
		return fmt.Errorf("%q has no version", name)
	case slices.Contains(strings.Split(r.Name, "/"), ".."):
		return fmt.Errorf("%q would be installed outside the folder of roles", name)
	case !pinned.MatchString(r.Version):
		return fmt.Errorf("%q has the version %q, which may mean another one tomorrow", name, r.Version)
	}
	for _, v := range []string{r.Name, r.Src, r.Source} {
		if strings.HasPrefix(v, "-") || strings.Contains(v, "::") || strings.HasPrefix(v, "http://") {
			return fmt.Errorf("%q comes from where nothing may be fetched from", name)
		}
	}
	return nil
}
