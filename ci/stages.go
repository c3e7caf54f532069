package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/vektah/gqlparser/v2/gqlerror"

	"dagger/diskforge/catalogue"
	"dagger/diskforge/explain"
	"dagger/diskforge/internal/dagger"
)

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

// makeBase makes or fetches a base image. Making one from packages takes root,
// for mmdebstrap.
func makeBase(ctx context.Context, in *dagger.Container, args ...string) (*dagger.Container, error) {
	if catalogue.Mentions(args, "--base-from-packages=true") {
		// Root uses no cache that another user could write to.
		in = in.WithExec([]string{"chown", "0:0", cacheDir})
		return run(ctx, in, append([]string{"diskforge", "base"}, args...), dagger.ContainerWithExecOpts{})
	}
	return stage(ctx, in, append([]string{"base"}, args...)...)
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
