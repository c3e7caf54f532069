// Package depcheck_test holds the boundaries of docs/ARCHITECTURE.md: which
// package may import which, and what the program is made of.
package depcheck_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/netgroup-polito/diskforge"

// floors are the packages below internal/, those that know most first: a
// package may import what stands on a later line only.
var floors = [][]string{
	{"cli"},
	{"fleet/render", "fleet/starter", "fleet/outdated"},
	{"engine", "fleet"},
	{"fleet/catalogue"},
	{"pipeline"},
	{"contract", "guest/provision", "guest/verify", "guest/hygiene"}, // stages know nothing of one another
	{"guest/vm", "guest/playbook", "registry", "testkit"},
	{"image/oci", "base"},
	{"image/attest", "image/disk", "image/sbom", "httpclient", "ui", "settings", "report"},
	{"host"},
	{"text"},
	{"arch", "failure", "progress"},
}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Standard   bool
	Module     *struct{ Path string }
}

// list runs go list with these arguments.
func list(t *testing.T, args ...string) (all []pkg) {
	t.Helper()
	c := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,Imports,Standard,Module"}, args...)...)
	c.Dir = "../.."
	out, err := c.Output()
	require.NoError(t, err)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			require.NotEmpty(t, all)
			return all
		} else {
			require.NoError(t, err)
		}
		all = append(all, p)
	}
}

func room(path string) string { return strings.TrimPrefix(path, module+"/internal/") }

// floor is the line of floors on which a room stands, or -1.
func floor(room string) int {
	return slices.IndexFunc(floors, func(on []string) bool { return slices.Contains(on, room) })
}

func TestAPackageImportsOnlyWhatStandsBelowIt(t *testing.T) {
	seen := 0
	for _, p := range list(t, "./internal/...") {
		if len(p.GoFiles) == 0 {
			continue // tests alone
		}
		from := room(p.ImportPath)
		require.GreaterOrEqual(t, floor(from), 0, "%s is in no line of floors, nor in docs/ARCHITECTURE.md", from)
		for _, imported := range p.Imports {
			if to := room(imported); to != imported {
				assert.Greater(t, floor(to), floor(from), "%s imports %s, which does not stand below it", from, to)
			}
		}
		seen++
	}
	want := 0
	for _, on := range floors {
		want += len(on)
	}
	assert.Equal(t, want, seen, "floors names a package that is gone")
}

func TestOnlyCommandsKnowTheirCommandLine(t *testing.T) {
	for _, p := range list(t, "./internal/...") {
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "github.com/spf13/") {
				assert.Equal(t, "cli", room(p.ImportPath), imported)
			}
		}
	}
}

// TestWhatTalksToServersStartsNoProgram holds for what handles images and
// registries; credential helpers are go-containerregistry's.
func TestWhatTalksToServersStartsNoProgram(t *testing.T) {
	for _, p := range list(t, "./internal/registry", "./internal/httpclient", "./internal/contract", "./internal/image/oci") {
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					x, _ := s.X.(*ast.Ident)
					starts := x != nil && (x.Name == "host" && slices.Contains([]string{"Run", "Start", "Output"}, s.Sel.Name) ||
						x.Name == "exec" && strings.HasPrefix(s.Sel.Name, "Command"))
					assert.False(t, starts, "%s/%s starts a program", p.ImportPath, name)
				}
				return true
			})
		}
	}
}

// TestOnlyTheTableNamesAnArchitecture leaves out examples, and the settings' own table.
func TestOnlyTheTableNamesAnArchitecture(t *testing.T) {
	named := regexp.MustCompile(`(?i)amd64|x86_64|arm64|aarch64|q35|ttyS0|ttyAMA0|OVMF|AAVMF`)
	for _, p := range list(t, ".", "./internal/...") {
		for _, name := range p.GoFiles {
			if at := room(p.ImportPath); at == "arch" || at == "testkit" || at+"/"+name == "settings/settings.go" {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING && !strings.Contains(s.Value, "https://") {
					assert.NotRegexp(t, named, s.Value, "%s/%s: internal/arch has that", p.ImportPath, name)
				}
				return true
			})
		}
	}
}

// TestTheProgramIsMadeOfThese makes a new dependency a decision.
func TestTheProgramIsMadeOfThese(t *testing.T) {
	modules := map[string]bool{}
	for _, p := range list(t, "-deps", ".") {
		if !p.Standard && p.Module != nil {
			modules[p.Module.Path] = true
		}
	}
	for _, never := range []string{"github.com/stretchr/testify", "pgregory.net/rapid", "github.com/chromedp/chromedp", "github.com/chromedp/cdproto", "github.com/santhosh-tekuri/jsonschema/v6"} {
		assert.False(t, modules[never], "%s is for tests only", never)
	}
}
