// Package engine runs a build in a Dagger engine: the same settings, the same
// stages, in the toolbox container of the Dagger module in ci/. It is a
// client of that module's functions and knows nothing of the stages.
package engine

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"dagger.io/dagger"
	"github.com/dagger/querybuilder"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// Build is one build in an engine.
type Build struct {
	Settings settings.Settings
	Config   settings.Config // what the settings mean
	UI       *ui.UI
	Version  string // of diskforge: the module's, outside a checkout
}

// Variables of the environment that set up the toolbox; without them the
// module's own defaults hold.
var toolboxVariables = map[string]string{
	"DISKFORGE_BASE_IMAGE": "baseImage", // the Debian 13 image that it is made of
	"DISKFORGE_GO_IMAGE":   "goImage",   // the Go image that compiles diskforge and its tools
	"DISKFORGE_APT_MIRROR": "aptMirror", // the mirror of its packages
}

// Run builds the image in the engine that _EXPERIMENTAL_DAGGER_RUNNER_HOST
// names or that Docker runs, writes its OCI layout and its report to OUTPUT_DIR
// and, where a registry is set, pushes it from there.
func (b *Build) Run(ctx context.Context) (pipeline.Result, error) {
	inputs, err := b.inputs(ctx)
	if err != nil {
		return pipeline.Result{}, err
	}
	module, err := reference(b.Version)
	if err != nil {
		return pipeline.Result{}, err
	}
	if err := os.MkdirAll(b.Config.OutputDir, 0o755); err != nil {
		return pipeline.Result{}, err
	}
	file, err := os.Create(filepath.Join(b.Config.OutputDir, "dagger.log"))
	if err != nil {
		return pipeline.Result{}, err
	}
	defer file.Close()
	b.warn()
	s := b.UI.Stage("dagger")
	result, err := interruptible(ctx, func() (pipeline.Result, error) {
		// All of the engine's progress goes into the file, what stages say also to the user.
		said := &text.Splitter{Most: 4 << 10, Line: func(line string) {
			if what := activity(line); what != "" {
				s.Activity(what)
			}
		}}
		return b.session(ctx, module, inputs, s, io.MultiWriter(file, said))
	})
	s.End(result.Reference, err)
	return result, explain(err, file.Name())
}

// interruptible returns when run does, or when ctx ends: the client waits for
// minutes then. The engine stops by itself when this process has ended.
func interruptible(ctx context.Context, run func() (pipeline.Result, error)) (result pipeline.Result, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		result, err = run()
	}()
	select {
	case <-done:
		return result, err
	case <-ctx.Done():
		return pipeline.Result{}, context.Cause(ctx)
	}
}

// session connects to the engine, has the image built, and takes it out.
func (b *Build) session(ctx context.Context, module string, inputs inputs, s *ui.Stage, log io.Writer) (result pipeline.Result, err error) {
	if err := answers(ctx); err != nil {
		return result, unreachable(err)
	}
	client, err := dagger.Connect(ctx, dagger.WithLogOutput(log),
		dagger.WithEnvironmentVariable("DAGGER_PROGRESS", "plain"), dagger.WithEnvironmentVariable("NO_COLOR", "1"))
	if err != nil {
		return result, unreachable(err)
	}
	defer client.Close()
	s.Activity("loading the module " + module)
	if err := client.ModuleSource(module).AsModule().Serve(ctx); err != nil {
		return result, failure.Wrap(err, "the Dagger module "+module+" cannot be loaded", "")
	}
	image, err := b.image(client, inputs)
	if err != nil {
		return result, err
	}
	// Report.html, report.json, summary.md and the SBOM.
	if _, err := new(dagger.Directory).WithGraphQLQuery(image.Select("report")).Export(ctx, b.Config.OutputDir); err != nil {
		return result, err
	}
	result.Layout = pipeline.Layout(b.Config.OutputDir, b.Config.ImageName)
	if err := exportLayout(ctx, image, result.Layout); err != nil {
		return result, err
	}
	packed, err := oci.Load(result.Layout)
	if err != nil {
		return result, err
	}
	result.Reference, result.Digest = "oci:"+result.Layout+"@"+packed.Digest, packed.Digest
	if b.Config.Outputs != "" {
		if _, err := new(dagger.Directory).WithGraphQLQuery(image.Select("files")).Export(ctx, b.Config.OutputDir); err != nil {
			return result, err
		}
	}
	if !b.publishes() {
		return result, nil
	}
	return result, image.Select("publish").Bind(&result.Reference).Execute(ctx)
}

func (b *Build) publishes() bool { return b.Config.Reference != "" && b.Config.Push }

// image is the image in the module's words. The registry's password travels as
// a secret, and is read as the host's push reads it.
func (b *Build) image(client *dagger.Client, in inputs) (*querybuilder.Selection, error) {
	q := client.QueryBuilder().Select("diskforge")
	for variable, argument := range toolboxVariables {
		if v := os.Getenv(variable); v != "" {
			q = q.Arg(argument, v)
		}
	}
	if b.publishes() {
		q = q.Select("withRegistry").Arg("host", b.Config.TargetRegistry).Arg("insecure", b.Config.RegistryInsecure)
		if b.Config.RegistryUser != "" {
			credentials, err := pipeline.RegistryOptions(b.Config, b.Version)
			if err != nil {
				return nil, err
			}
			q = q.Arg("user", b.Config.RegistryUser).Arg("pass", client.SetSecret("registry-password", credentials.Password))
		}
		if b.Config.CAFile != "" {
			q = q.Arg("caFile", client.Host().File(b.Config.CAFile))
		}
	}
	q = q.Select("build")
	for name, value := range in.arguments(client) {
		q = q.Arg(name, value)
	}
	return q, nil
}

// exportLayout writes the image's OCI layout to a directory of this host, whole
// or not at all.
func exportLayout(ctx context.Context, image *querybuilder.Selection, layout string) error {
	part := layout + ".part"
	defer os.RemoveAll(part)
	if err := os.MkdirAll(part, 0o755); err != nil { // Dagger makes folders for their owner alone
		return err
	}
	directory := new(dagger.Directory).WithGraphQLQuery(image.Select("layout"))
	if _, err := directory.Export(ctx, part, dagger.DirectoryExportOpts{Wipe: true}); err != nil {
		return err
	}
	if err := os.RemoveAll(layout); err != nil {
		return err
	}
	return os.Rename(part, layout)
}

// answers asks an engine that is named by its socket or its TCP address
// whether it is there: Dagger's client tries for ten minutes.
func answers(ctx context.Context) error {
	network, address, _ := strings.Cut(os.Getenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST"), "://")
	if network != "unix" && network != "tcp" {
		return nil
	}
	dialer := net.Dialer{Timeout: 15 * time.Second}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// unreachable is the error of an engine that does not answer.
func unreachable(err error) error {
	where := os.Getenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST")
	if where == "" {
		where = "in Docker"
	} else {
		where = "at " + where
	}
	said := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return &failure.Error{
		What: "no Dagger engine answers " + where, Err: err, Lines: said[max(0, len(said)-5):],
		Try: "start Docker, or name an engine in _EXPERIMENTAL_DAGGER_RUNNER_HOST, or build on this host with --engine host",
	}
}

// explain gives an error of the engine the form of diskforge's own. What the
// module says of a failed stage is the line that is wanted, and below it the
// evidence.
func explain(err error, log string) error {
	if err == nil {
		return nil
	}
	if _, ok := failure.In(err); ok {
		return err
	}
	message, _, _ := strings.Cut(err.Error(), " [traceparent:")
	what, evidence, _ := strings.Cut(message, "\n")
	f := &failure.Error{What: functions.ReplaceAllString(what, ""), Log: log, Err: err}
	for line := range strings.Lines(evidence) {
		f.Lines = append(f.Lines, strings.TrimPrefix(strings.TrimRight(line, "\r\n"), "  | "))
	}
	return f
}

// functions is how the engine names where an error was.
var functions = regexp.MustCompile(`^(?:input: )?(?:diskforge(?:\.\w+)+ )?`)

// said is what a stage of diskforge said, in a line of Dagger's plain progress:
// "14  : ┆ [20.1s] | 09:12:01 INFO starting the guest stage=provision …".
var said = regexp.MustCompile(`\] \| \d\d:\d\d:\d\d (?:INFO|WARN|ERRO) (.*\S)`)

// activity is what a stage said in the line, or "".
func activity(line string) string {
	if m := said.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return ""
}

// errNoModule says where the module may come from.
var errNoModule = failure.New("this diskforge was not released, and there is no checkout of it here: the Dagger module is not known",
	"run it in a checkout, or install a release: go install github.com/netgroup-polito/diskforge@latest")

// reference names the Dagger module: that of the checkout around the working
// directory, else that of the release that this program is.
func reference(version string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if isModule(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if !strings.HasPrefix(version, "v") || strings.ContainsAny(version, "-+") { // a commit's, not a release's
		return "", errNoModule
	}
	return "github.com/netgroup-polito/diskforge@" + version, nil
}

// isModule says whether dir is a checkout of diskforge.
func isModule(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "dagger.json"))
	if err != nil || !strings.Contains(string(b), `"name": "diskforge"`) {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "ci", "dagger.gen.go"))
	return err == nil
}
