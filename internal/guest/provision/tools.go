// Tools provides the programs of the pinned tools module: Packer, its
// plugins for QEMU and Ansible, and goss. They are compiled once, from sources
// that go.sum pins to the byte, into a cache that all builds share.

package provision

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// The tools module is a module of its own, so that its requirements do not
// mix with ours; go:embed takes no file out of another module. Hence a copy,
// which a test holds equal to the module.
//
//go:generate cp ../../../tools/go.mod module/go.mod.txt
//go:generate cp ../../../tools/go.sum module/go.sum.txt
//go:generate cp ../../../tools/tools.go module/tools.go.txt
//go:embed module
var module embed.FS

// DirVariable is the environment variable that names a directory with ready
// binaries (packer, goss, and plugins/ as Packer installs them), as the
// toolbox image has it. Nothing is compiled where it is set.
const ToolsDirVariable = "DISKFORGE_TOOLS_DIR"

// program is one program of the tools module.
type program struct {
	name    string
	pkg     string // import path of its main package
	module  string // module whose version it has
	plugin  string // source address under which Packer looks for a plugin
	ldflags string
}

// programs are listed in the order in which they are built: the plugins are
// installed by Packer. A plugin that calls itself a development version is
// refused by Packer where a template asks for the release.
var programs = []program{
	{name: "packer", pkg: "github.com/hashicorp/packer", module: "github.com/hashicorp/packer"},
	{name: "packer-plugin-qemu", pkg: "github.com/hashicorp/packer-plugin-qemu", module: "github.com/hashicorp/packer-plugin-qemu",
		plugin: "github.com/hashicorp/qemu", ldflags: "-X github.com/hashicorp/packer-plugin-qemu/version.VersionPrerelease="},
	{name: "packer-plugin-ansible", pkg: "github.com/hashicorp/packer-plugin-ansible", module: "github.com/hashicorp/packer-plugin-ansible",
		plugin: "github.com/hashicorp/ansible", ldflags: "-X github.com/hashicorp/packer-plugin-ansible/version.VersionPrerelease="},
	{name: "goss", pkg: "github.com/goss-org/goss/cmd/goss", module: "github.com/goss-org/goss",
		ldflags: "-X github.com/goss-org/goss/util.Version={version}"},
}

// Set are the programs of the tools module.
type Tools struct {
	Packer    string // path of packer
	PluginDir string // PACKER_PLUGIN_PATH with the plugins installed
	Goss      string // path of goss
	// Versions are the pinned versions, without "v", by program:
	// packer, packer-plugin-qemu, packer-plugin-ansible, goss.
	Versions map[string]string
}

// Options say where the programs are kept.
type ToolsOptions struct {
	// CacheDir is where the programs are kept; each set of versions has its
	// own directory there. It is created, 0700, if need be.
	CacheDir string
	// Dir is a directory with ready binaries; empty means that of the
	// environment variable DISKFORGE_TOOLS_DIR, if it is set.
	Dir string
}

// Ensure returns the programs: those of opts.Dir, or those in the cache, which
// it compiles first where they are not there yet. That takes minutes, once,
// and the go command. Two callers at the same time compile once. The error is
// a *failure.Error.
func EnsureTools(ctx context.Context, opts ToolsOptions, report progress.Reporter) (Tools, error) {
	dir := opts.directory()
	if dir != "" {
		return ready(dir)
	}
	goVersion, err := goVersion(ctx)
	if err != nil {
		// What was compiled by whatever Go is good: only building needs it.
		if set, ok := newest(opts.CacheDir); ok {
			return set, nil
		}
		return Tools{}, err
	}
	dir = filepath.Join(opts.CacheDir, ToolsKey()+"-"+goVersion)
	if set, err := load(dir); err == nil {
		return set, nil
	}
	if err := os.MkdirAll(opts.CacheDir, 0o700); err != nil {
		return Tools{}, failure.Wrap(err, "making the tools' cache", "set another cache directory")
	}
	unlock, err := host.LockFile(ctx, filepath.Join(opts.CacheDir, "tools.lock"), "waiting for another diskforge that compiles the tools", report)
	if err != nil {
		return Tools{}, err
	}
	defer unlock()
	// Someone else may have built it while we waited.
	if set, err := load(dir); err == nil {
		return set, nil
	}
	if err := buildTools(ctx, opts.CacheDir, dir, report); err != nil {
		return Tools{}, err
	}
	return load(dir)
}

// Ready says whether Ensure would return at once, without compiling.
func ToolsReady(opts ToolsOptions) bool {
	if dir := opts.directory(); dir != "" {
		_, err := load(dir)
		return err == nil
	}
	_, ok := newest(opts.CacheDir)
	return ok
}

// directory is the directory with ready binaries, or empty.
func (o ToolsOptions) directory() string {
	if o.Dir != "" {
		return o.Dir
	}
	return os.Getenv(ToolsDirVariable)
}

// Key identifies the programs: it changes when a pinned version does.
func ToolsKey() string {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "tools.go"} {
		b := source(name)
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	for _, p := range programs {
		fmt.Fprintf(h, "%s %s\n", p.pkg, p.ldflags)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// Versions are the pinned versions, without "v", by program.
func ToolsVersions() map[string]string { return maps.Clone(versions()) }

// versions reads them once: a plan asks for each of its images.
var versions = sync.OnceValue(func() map[string]string {
	all := map[string]string{}
	for _, p := range programs {
		m := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(p.module) + ` v(\S+)`).FindSubmatch(source("go.mod"))
		all[p.name] = string(m[1])
	}
	return all
})

// source returns a file of the embedded tools module.
func source(name string) []byte {
	b, err := fs.ReadFile(module, "module/"+name+".txt")
	if err != nil {
		panic(err) // embedded at compile time
	}
	return b
}

// ready is the set in a directory that someone else filled.
func ready(dir string) (Tools, error) {
	set, err := load(dir)
	if err != nil {
		return Tools{}, failure.Wrap(err, fmt.Sprintf("%s=%s has not all the tools", ToolsDirVariable, dir),
			"it needs packer, goss and plugins/ with the qemu and ansible plugins; or unset it")
	}
	return set, nil
}

// load is the set in dir, complete or an error.
func load(dir string) (Tools, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Tools{}, err
	}
	versions := ToolsVersions()
	set := Tools{
		Packer:    filepath.Join(abs, "packer"),
		PluginDir: filepath.Join(abs, "plugins"),
		Goss:      filepath.Join(abs, "goss"),
		Versions:  versions,
	}
	files := []string{set.Packer, set.Goss}
	for _, p := range programs {
		if p.plugin != "" {
			files = append(files, filepath.Join(set.PluginDir, p.plugin, fmt.Sprintf("%s_v%s_x5.0_%s_%s", p.name, versions[p.name], runtime.GOOS, runtime.GOARCH)))
		}
	}
	for _, f := range files {
		if _, err := exec.LookPath(f); err != nil {
			return Tools{}, fmt.Errorf("%s is not there or not executable", f)
		}
	}
	return set, nil
}

// newest is a complete set for our pins in the cache, whatever Go built it.
func newest(cache string) (Tools, bool) {
	dirs, _ := filepath.Glob(filepath.Join(cache, ToolsKey()+"-*"))
	for i := len(dirs) - 1; i >= 0; i-- {
		if set, err := load(dirs[i]); err == nil {
			return set, true
		}
	}
	return Tools{}, false
}

// build compiles everything beside dir and moves it there once it is whole.
func buildTools(ctx context.Context, cache, dir string, report progress.Reporter) (err error) {
	tmp, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return failure.Wrap(err, "making room for the tools", "")
	}
	defer os.RemoveAll(tmp)
	src := filepath.Join(tmp, "src")
	if err := writeModule(src); err != nil {
		return failure.Wrap(err, "writing the tools module", "")
	}
	out := filepath.Join(tmp, "out")
	log := filepath.Join(cache, "tools.log")
	_ = os.Remove(log)
	if err := compile(ctx, src, out, log, report); err != nil {
		return &failure.Error{What: fmt.Sprintf("compiling Packer and its plugins: %v", err), Lines: host.Tail(err), Log: log, Err: err,
			Try: "the modules come from " + proxyHint() + "; is it reachable?"}
	}
	if err := installPlugins(ctx, out, log); err != nil {
		return &failure.Error{What: fmt.Sprintf("installing Packer's plugins: %v", err), Lines: host.Tail(err), Log: log, Err: err}
	}
	_ = os.RemoveAll(dir) // an incomplete set
	if err := os.Rename(out, dir); err != nil {
		return failure.Wrap(err, "keeping the tools", "")
	}
	return nil
}

func writeModule(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"go.mod", "go.sum", "tools.go"} {
		if err := os.WriteFile(filepath.Join(dir, name), source(name), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// tellEvery is after how many packages the progress is told: a log should not
// have a line for each.
const tellEvery = 100

// compile builds each program into out. The number of packages is known
// before (go list), those done are counted (go build -v names each once).
func compile(ctx context.Context, src, out, log string, report progress.Reporter) error {
	env := goEnv()
	report.Activity("fetching the sources of Packer and its plugins")
	total, err := packages(ctx, src, env)
	if err != nil {
		return err
	}
	versions := ToolsVersions()
	done := 0
	for _, p := range programs {
		report.Activity("compiling " + p.name + " " + versions[p.name])
		ldflags := "-s -w " + strings.ReplaceAll(p.ldflags, "{version}", versions[p.name])
		err := host.Run(ctx, host.Cmd{
			Program: "go", Dir: src, Env: env, Log: log,
			Args: []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-v", "-ldflags", ldflags, "-o", filepath.Join(out, p.name), p.pkg},
			OnLine: func(line string) {
				if strings.HasPrefix(line, "go: ") || done >= total {
					return
				}
				if done++; done%tellEvery == 0 {
					report.Activity(fmt.Sprintf("compiling %s %s (package %d of at most %d)", p.name, versions[p.name], done, total))
				}
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// packages counts what has to be compiled, and fetches it.
func packages(ctx context.Context, src string, env []string) (int, error) {
	args := []string{"list", "-mod=readonly", "-deps", "-f", "{{.ImportPath}}"}
	for _, p := range programs {
		args = append(args, p.pkg)
	}
	out, err := host.Output(ctx, host.Cmd{Program: "go", Args: args, Dir: src, Env: env})
	return strings.Count(string(out), "\n"), err
}

// installPlugins lets Packer put the plugins where it looks for them, with
// the checksum files that it wants to see beside them.
func installPlugins(ctx context.Context, out, log string) error {
	for _, p := range programs {
		if p.plugin == "" {
			continue
		}
		binary := filepath.Join(out, p.name)
		err := host.Run(ctx, host.Cmd{
			Program: filepath.Join(out, "packer"), Log: log,
			Args: []string{"plugins", "install", "--path", binary, p.plugin},
			Env: host.Env("CHECKPOINT_DISABLE=1", "PACKER_CONFIG_DIR="+out, "PACKER_CACHE_DIR="+filepath.Join(out, "cache"),
				"PACKER_PLUGIN_PATH="+filepath.Join(out, "plugins")),
		})
		if err != nil {
			return err
		}
		if err := os.Remove(binary); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(out, "cache"))
}

// goVersion is the version of the host's go command, asked for outside any
// module: a go.mod could make it answer for another one.
func goVersion(ctx context.Context) (string, error) {
	out, err := host.Output(ctx, host.Cmd{Program: "go", Args: []string{"env", "GOVERSION"}, Dir: "/", Env: goEnv()})
	if errors.Is(err, exec.ErrNotFound) {
		return "", failure.Wrap(err, "Packer and its plugins are compiled on this host, which has no Go",
			"install Go from https://go.dev/dl/, or set "+ToolsDirVariable+" to a directory with ready binaries")
	}
	if err != nil {
		return "", failure.Wrap(err, "asking Go for its version", "")
	}
	return regexp.MustCompile(`[^\w.-]`).ReplaceAllString(strings.TrimSpace(string(out)), "_"), nil
}

// goEnv adds to the allow-listed environment what steers the go command, and
// fixes what would change its output: plain Go programs, this platform.
func goEnv() []string {
	env := host.Env()
	for _, name := range []string{"GOPATH", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GONOPROXY", "GOINSECURE",
		"GOTOOLCHAIN", "GOROOT", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "GOAUTH", "NETRC"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on")
}

// proxyHint names the module proxy without what it may hold of credentials.
func proxyHint() string {
	if os.Getenv("GOPROXY") == "" {
		return "https://proxy.golang.org"
	}
	return "the proxy in GOPROXY"
}
