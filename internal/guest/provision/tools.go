package provision

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/arch"
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

var moduleFiles = []string{"go.mod", "go.sum", "tools.go"}

// ToolsDirVariable is the environment variable that names a directory with ready
// binaries (packer, goss, and plugins/ as Packer installs them), as the
// toolbox image has it. Nothing is compiled where it is set.
const ToolsDirVariable = "DISKFORGE_TOOLS_DIR"

// program is one that is compiled.
type program struct {
	name    string
	module  string // whose version it has
	pkg     string // of its main package, within the module
	plugin  string // source address under which Packer looks for a plugin
	ldflags string
	gcflags string
	goarch  string // of a program that runs in guests of another architecture than this host's
}

// quickly is how what mostly waits is compiled: without optimisation, which is a
// quarter of the work on Packer's 2,000 packages.
const quickly = "all=-N -l"

// programs are all; goss, which runs in guests, is the last. A plugin that calls itself a development version is refused
// by Packer where a template asks for the release.
var programs = []program{
	{name: "packer", module: "github.com/hashicorp/packer", gcflags: quickly},
	{name: "packer-plugin-qemu", module: "github.com/hashicorp/packer-plugin-qemu", plugin: "github.com/hashicorp/qemu", gcflags: quickly,
		ldflags: "-X github.com/hashicorp/packer-plugin-qemu/version.VersionPrerelease="},
	{name: "packer-plugin-ansible", module: "github.com/hashicorp/packer-plugin-ansible", plugin: "github.com/hashicorp/ansible", gcflags: quickly,
		ldflags: "-X github.com/hashicorp/packer-plugin-ansible/version.VersionPrerelease="},
	{name: "goss", module: "github.com/goss-org/goss", pkg: "/cmd/goss",
		ldflags: "-X github.com/goss-org/goss/util.Version={version}"},
}

// programsFor are those for guests of an architecture. Where that is not this host's,
// there is one more, for them.
func programsFor(architecture string) []program {
	architecture = arch.Of(architecture).Name
	if architecture == runtime.GOARCH {
		return programs
	}
	foreign := programs[len(programs)-1]
	foreign.goarch = architecture
	return append(slices.Clone(programs), foreign)
}

// file is where the program is in a set: a plugin, where Packer looks for it
// and under the name that tells Packer its version and that of its protocol.
func (p program) file() string {
	if p.goarch != "" {
		return p.name + "-" + p.goarch
	}
	if p.plugin == "" {
		return p.name
	}
	name := fmt.Sprintf("%s_v%s_x5.0_%s_%s", p.name, ToolsVersions()[p.name], runtime.GOOS, runtime.GOARCH)
	return filepath.Join("plugins", p.plugin, name)
}

// Tools are the programs of the tools module: Packer, its plugins for QEMU and
// Ansible, and goss.
type Tools struct {
	Packer    string // path of packer
	PluginDir string // PACKER_PLUGIN_PATH with the plugins installed
	Goss      string // path of goss for guests
	// Versions are the pinned versions, without "v", by program:
	// packer, packer-plugin-qemu, packer-plugin-ansible, goss.
	Versions map[string]string
}

// ToolsVersions are the pinned versions, without "v", by program; not to be
// changed. They are read once: a plan asks for each of its images.
var ToolsVersions = sync.OnceValue(func() map[string]string {
	all := map[string]string{}
	for _, p := range programs {
		m := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(p.module) + ` v(\S+)`).FindSubmatch(source("go.mod"))
		all[p.name] = string(m[1])
	}
	return all
})

// source returns a file of the embedded tools module.
func source(name string) []byte {
	b, err := module.ReadFile("module/" + name + ".txt")
	if err != nil {
		panic(err) // embedded at compile time
	}
	return b
}

// EnsureTools returns the programs for guests of an architecture: those of the directory that
// DISKFORGE_TOOLS_DIR names, or those in the cache, a directory of ours that
// all builds share. Where they are not there yet, it compiles them from sources
// that go.sum pins to the byte; that takes minutes, once, and the go command.
// Two callers at the same time compile once. The error is a *failure.Error.
func EnsureTools(ctx context.Context, cache, architecture string, report progress.Reporter) (Tools, error) {
	if tools, err := ready(cache, architecture); !errors.Is(err, errNotCompiled) {
		return tools, err
	}
	lock, err := host.LockDir(ctx, cache, "waiting for another diskforge that compiles the tools", report)
	if err != nil {
		return Tools{}, failure.Wrap(err, "locking the tools' cache", "set another cache directory")
	}
	defer lock.Close()
	if tools, err := ready(cache, architecture); !errors.Is(err, errNotCompiled) { // compiled while we waited
		return tools, err
	}
	all := programsFor(architecture)
	dir := filepath.Join(cache, toolsKey(all))
	if err := compileTo(ctx, cache, dir, all, report); err != nil {
		return Tools{}, err
	}
	return load(dir, all)
}

// ToolsReady says whether EnsureTools would return at once, without compiling.
func ToolsReady(cache, architecture string) bool {
	_, err := ready(cache, architecture)
	return err == nil
}

var errNotCompiled = errors.New("the tools are not compiled yet")

// ready are the programs that are there, or errNotCompiled.
func ready(cache, architecture string) (Tools, error) {
	all := programsFor(architecture)
	if dir := os.Getenv(ToolsDirVariable); dir != "" {
		tools, err := load(dir, all)
		if err != nil {
			return Tools{}, failure.Wrap(err, fmt.Sprintf("%s=%s has not all the tools", ToolsDirVariable, dir),
				"it needs packer, goss and plugins/ with the qemu and ansible plugins; or unset it")
		}
		return tools, nil
	}
	tools, err := load(filepath.Join(cache, toolsKey(all)), all)
	if err != nil {
		return Tools{}, errNotCompiled
	}
	return tools, nil
}

// toolsKey identifies the programs: it changes when a pinned version does.
func toolsKey(all []program) string {
	h := sha256.New()
	for _, name := range moduleFiles {
		b := source(name)
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	for _, p := range all {
		fmt.Fprintf(h, "%s %s %s%s\n", p.module+p.pkg, p.ldflags, p.gcflags, p.goarch)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// load is the set in dir, complete or an error.
func load(dir string, all []program) (Tools, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Tools{}, err
	}
	for _, p := range all {
		if _, err := exec.LookPath(filepath.Join(dir, p.file())); err != nil {
			return Tools{}, fmt.Errorf("%s is not there or not executable", filepath.Join(dir, p.file()))
		}
	}
	return Tools{
		Packer: filepath.Join(dir, "packer"), PluginDir: filepath.Join(dir, "plugins"), Goss: filepath.Join(dir, all[len(all)-1].file()),
		Versions: ToolsVersions(),
	}, nil
}

// compileTo compiles everything beside dir and moves it there once it is whole.
func compileTo(ctx context.Context, cache, dir string, all []program, report progress.Reporter) error {
	temp, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return failure.Wrap(err, "making room for the tools", "")
	}
	defer os.RemoveAll(temp)
	for _, name := range moduleFiles {
		if err := os.WriteFile(filepath.Join(temp, name), source(name), 0o600); err != nil {
			return failure.Wrap(err, "writing the tools module", "")
		}
	}
	out := filepath.Join(temp, "out")
	log := filepath.Join(cache, "tools.log")
	_ = os.Remove(log)
	switch err := compile(ctx, temp, out, log, all, report); {
	case errors.Is(err, exec.ErrNotFound):
		return failure.Wrap(err, "Packer and its plugins are compiled on this host, which has no Go",
			"install Go from https://go.dev/dl/, or set "+ToolsDirVariable+" to a directory with ready binaries")
	case err != nil:
		proxy := "the proxy in GOPROXY" // whose address may hold credentials
		if os.Getenv("GOPROXY") == "" {
			proxy = "https://proxy.golang.org"
		}
		return &failure.Error{What: fmt.Sprintf("compiling Packer and its plugins: %v", err), Lines: host.Tail(err), Log: log, Err: err,
			Try: "the modules come from " + proxy + "; is it reachable?"}
	}
	_ = os.RemoveAll(dir) // an incomplete set
	if err := os.Rename(out, dir); err != nil {
		return failure.Wrap(err, "keeping the tools", "")
	}
	return nil
}

// reportEvery is after how many packages the progress is reported: a log should
// not have a line for each.
const reportEvery = 100

// compile builds each program into out. Their packages are counted: go build -v
// names each once, and for minutes there is no other sign of life.
func compile(ctx context.Context, src, out, log string, all []program, report progress.Reporter) error {
	done := 0
	for _, p := range all {
		version, file := ToolsVersions()[p.name], filepath.Join(out, p.file())
		report.Activity("compiling " + p.name + " " + version)
		err := host.Run(ctx, host.Cmd{
			Program: "go", Dir: src, Env: append(goEnv(), "GOARCH="+cmp.Or(p.goarch, runtime.GOARCH)), Log: log,
			Args: []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-v", "-gcflags", p.gcflags,
				"-ldflags", "-s -w " + strings.ReplaceAll(p.ldflags, "{version}", version), "-o", file, p.module + p.pkg},
			OnLine: func(line string) {
				if strings.HasPrefix(line, "go: ") {
					return
				}
				if done++; done%reportEvery == 0 {
					report.Activity(fmt.Sprintf("compiling %s %s (%d packages so far)", p.name, version, done))
				}
			},
		})
		if err != nil {
			return err
		}
		if p.plugin == "" {
			continue
		}
		// As packer plugins install does; without it Packer takes the plugin for none.
		sum, err := host.DigestFile(ctx, file, progress.Discard)
		if err == nil {
			sum = strings.TrimPrefix(sum, "sha256:")
			err = os.WriteFile(file+"_SHA256SUM", []byte(sum), 0o644) //nolint:gosec // for whoever runs the tools
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// goEnv adds to the allow-listed environment what steers the go command, and
// fixes what would change its output: plain Go programs, this platform.
func goEnv() []string {
	return append(host.Env(host.Variables(
		"GOPATH", "GOMODCACHE", "GOCACHE", "GOTOOLCHAIN", "GOROOT",
		"GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GONOPROXY", "GOINSECURE", "GOAUTH", "NETRC",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	)...),
		// The compiler's own garbage collection is a sixth of its time at Go's default.
		"CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on", "GOGC=400")
}
