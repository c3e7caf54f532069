package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vektah/gqlparser/v2/gqlerror"

	"dagger/diskforge/explain"
	"dagger/diskforge/internal/dagger"
)

// Where a stage finds what it is given, and leaves what it makes.
const (
	provisionedPath = home + "/provisioned.qcow2"
	diskPath        = home + "/disk.qcow2"
	layoutPath      = home + "/layout"
	reportPath      = home + "/report"
	filesPath       = home + "/files"
	given           = "/run/diskforge/"
	allowPath       = given + "hygiene-allow.yaml"
	varsPath        = given + "extra-vars.yml"
	caPath          = given + "ca.pem"
	vaultPath       = given + "vault-password"
	passPath        = given + "registry-password"
	settingsPath    = given + "settings"
	basePath        = given + "base/"
	layoutBasePath  = given + "base-layout"
	treePath        = given + "ansible"
	cataloguePath   = given + "catalogue"
	parentPath      = given + "parent"
)

// things are files, folders and secrets by where the stages find them.
type things struct {
	dirs  map[string]*dagger.Directory
	files map[string]*dagger.File
	vault *dagger.Secret
}

// mount gives a container what its arguments name, and nothing else: what a
// stage is not given changes nothing of it.
func (t things) mount(c *dagger.Container, args []string) *dagger.Container {
	for _, path := range slices.Sorted(maps.Keys(t.dirs)) {
		if t.dirs[path] != nil && mentions(args, path) {
			c = c.WithMountedDirectory(path, t.dirs[path], dagger.ContainerWithMountedDirectoryOpts{Owner: user})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(t.files)) {
		if t.files[path] != nil && mentions(args, path) {
			c = withFile(c, path, t.files[path])
		}
	}
	if t.vault != nil && mentions(args, vaultPath) {
		c = c.WithMountedSecret(vaultPath, t.vault, dagger.ContainerWithMountedSecretOpts{Owner: user, Mode: 0o400})
	}
	return c
}

// withFile mounts a file that came from outside: its mode may keep it from
// everybody but its owner, so the stages' user becomes that.
func withFile(c *dagger.Container, path string, f *dagger.File) *dagger.Container {
	return c.WithMountedFile(path, f, dagger.ContainerWithMountedFileOpts{Owner: user})
}

// mentions says whether one of the arguments has the text in it.
func mentions(args []string, text string) bool {
	return slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, text) })
}

// reach gives a container the way to the registry and the password, and
// returns the arguments that go with them. What the registry has changes with
// the time: an exec in the container is never taken from the cache.
func (r *Registry) reach(c *dagger.Container) (*dagger.Container, []string) {
	c = now(c)
	if r == nil {
		return c, nil
	}
	if r.Service != nil {
		name, _, _ := strings.Cut(r.Host, ":")
		c = c.WithServiceBinding(name, r.Service)
	}
	if r.Ca != nil {
		c = withFile(c, caPath, r.Ca)
	}
	if r.Pass != nil {
		c = c.WithMountedSecret(passPath, r.Pass, dagger.ContainerWithMountedSecretOpts{Owner: user, Mode: 0o400})
	}
	return c, flagsOf("registry-user", r.User, "registry-pass-file", onlyIf(r.Pass != nil, passPath),
		"registry-insecure", onlyIf(r.Insecure, "true"), "ca-file", onlyIf(r.Ca != nil, caPath))
}

// now has an exec in the container run in any case.
func now(c *dagger.Container) *dagger.Container {
	return c.WithEnvVariable("ASKED", time.Now().UTC().Format(time.RFC3339Nano))
}

// work is an image to be made: what the plan of build or build-all says of it.
type work struct {
	stages      map[string][]string
	box, within *dagger.Container // the toolbox; the same with the playbooks
	things      things
	registry    *Registry // of a base that is a containerdisk
}

// built is a disk that passed its checks.
type built struct {
	disk, record *dagger.File
	log          string // what the stages wrote
	box          *dagger.Container
}

// stagesOf reads the arguments that the program gave for each stage.
func stagesOf(text string) (map[string][]string, error) {
	var all map[string][]string
	return all, json.Unmarshal([]byte(text), &all)
}

// run runs the stages, each with what the one before it made. Nothing but the
// base comes from the stage that may have asked a registry for it: none that
// runs a playbook sees its password.
func (w work) run(ctx context.Context) (*built, error) {
	base, err := w.base(ctx)
	if err != nil {
		return nil, err
	}
	args := append([]string{"provision", "-o", diskPath}, w.stages["provision"]...)
	c := w.things.mount(w.within, args).WithDirectory(cacheDir, base.Directory(cacheDir), dagger.ContainerWithDirectoryOpts{Owner: user})
	provisioned, err := bootStage(ctx, c, args...)
	if err != nil {
		return nil, err
	}
	b := &built{disk: provisioned.File(diskPath), record: provisioned.File(diskPath + ".json"), box: w.box}
	sparse, err := stage(ctx, b.at(w.box, provisionedPath), append([]string{"sparsify", provisionedPath, "-o", diskPath}, w.stages["sparsify"]...)...)
	if err != nil {
		return nil, err
	}
	b.disk, b.record = sparse.File(diskPath), sparse.File(diskPath+".json")
	args = append([]string{"verify", diskPath}, w.stages["verify"]...)
	verified, err := bootStage(ctx, b.mount(w.things.mount(w.within, args)), args...)
	if err != nil {
		return nil, err
	}
	b.record = verified.File(diskPath + ".json")
	b.log, err = transcript(ctx, base, provisioned, sparse, verified)
	return b, err
}

// base makes or fetches the base image, into the cache folder. Making one from
// packages takes root, for mmdebstrap, which uses no cache that another user
// could write to.
func (w work) base(ctx context.Context) (*dagger.Container, error) {
	args := append([]string{"base"}, w.stages["base"]...)
	c := w.things.mount(w.box, args)
	switch {
	case mentions(args, "--base-from-packages=true"):
		return run(ctx, c.WithExec([]string{"chown", "0:0", cacheDir}), append([]string{"diskforge"}, args...), dagger.ContainerWithExecOpts{})
	case mentions(args, "--iso-url=oci://"):
		reached, login := w.registry.reach(c)
		c, args = reached, append(args, login...)
	}
	return stage(ctx, c, args...)
}

// at puts the disk at a path: the disk itself is mounted, for it is large; its
// record is a file that a stage may replace.
func (b *built) at(c *dagger.Container, path string) *dagger.Container {
	return c.WithMountedFile(path, b.disk).WithFile(path+".json", b.record, dagger.ContainerWithFileOpts{Owner: user})
}

func (b *built) mount(c *dagger.Container) *dagger.Container { return b.at(c, diskPath) }

func (b *built) report(ctx context.Context) (*dagger.Directory, error) {
	told, err := stage(ctx, b.mount(b.box), "report", diskPath, "-o", reportPath)
	if err != nil {
		return nil, err
	}
	return told.Directory(reportPath), nil
}

func (b *built) pack(ctx context.Context, args ...string) (*dagger.Container, error) {
	return stage(ctx, b.mount(b.box), append([]string{"pack", diskPath, "-o", layoutPath}, args...)...)
}

// push pushes the layout that a container has, and returns its reference.
func push(ctx context.Context, packed *dagger.Container, to *Registry, address ...string) (string, error) {
	c, login := to.reach(packed)
	pushed, err := stage(ctx, c, slices.Concat([]string{"push", layoutPath}, address, login)...)
	if err != nil {
		return "", err
	}
	stdout, err := pushed.Stdout(ctx)
	return lastLine(stdout), err
}

// unprivileged starts a program as the toolbox's user, without capabilities
// and with no way back to them. An exec that boots a virtual machine is given
// root's, because that is how /dev/kvm gets into it; the program is not.
var unprivileged = []string{
	"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--",
}

// stage runs diskforge in the container as the toolbox's user.
func stage(ctx context.Context, in *dagger.Container, args ...string) (*dagger.Container, error) {
	return run(ctx, in.WithUser(user), append([]string{"diskforge"}, args...), dagger.ContainerWithExecOpts{})
}

// bootStage runs a stage of diskforge that boots a virtual machine.
func bootStage(ctx context.Context, in *dagger.Container, args ...string) (*dagger.Container, error) {
	return run(ctx, in, append(append(unprivileged[:len(unprivileged):len(unprivileged)], "diskforge"), args...),
		dagger.ContainerWithExecOpts{InsecureRootCapabilities: true})
}

func run(ctx context.Context, in *dagger.Container, command []string, opts dagger.ContainerWithExecOpts) (*dagger.Container, error) {
	done, err := in.WithExec(command, opts).Sync(ctx)
	return done, why(err, func(e *dagger.ExecError) string { return explain.Stage(nameOf(command), e.Stderr, e.ExitCode) })
}

// nameOf is the command as a person knows it: diskforge with its stage.
func nameOf(command []string) string {
	if i := slices.Index(command, "diskforge"); i >= 0 && i+1 < len(command) {
		return "diskforge " + command[i+1]
	}
	return command[0]
}

// why is the error with what the exec, or the engine, said of it as its text.
// The exec's exit code stays with it; its output does not, which the caller saw
// while it ran: Dagger's command line would print all of it again.
func why(err error, said func(*dagger.ExecError) string) error {
	if err == nil {
		return nil
	}
	if refusal := explain.Engine(err.Error()); refusal != "" {
		return errors.New(refusal)
	}
	var exec *dagger.ExecError
	if !errors.As(err, &exec) {
		return err
	}
	extensions := map[string]any{}
	maps.Copy(extensions, exec.Extensions())
	extensions["stdout"], extensions["stderr"] = "", ""
	return &gqlerror.Error{Message: said(exec), Extensions: extensions}
}

// transcript is what the stages wrote on standard error, in their order.
func transcript(ctx context.Context, stages ...*dagger.Container) (string, error) {
	var text strings.Builder
	for _, s := range stages {
		written, err := s.Stderr(ctx)
		if err != nil {
			return "", err
		}
		text.WriteString(written)
	}
	return text.String(), nil
}

// flagsOf turns pairs of a flag and its value into arguments. A flag without a
// value is left out: its default is the program's.
func flagsOf(pairs ...string) []string {
	var args []string
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] != "" {
			args = append(args, "--"+pair[0]+"="+pair[1])
		}
	}
	return args
}

func onlyIf(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

// lastLine is the last line of what a stage printed: its result.
func lastLine(stdout string) string {
	text := strings.TrimSpace(stdout)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
