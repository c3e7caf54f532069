package main

import (
	"context"
	"strings"

	"dagger/diskforge/explain"
	"dagger/diskforge/internal/dagger"
)

// workbench is the Go image with what linting and testing need of Debian, and
// the project.
func (m *Diskforge) workbench(ctx context.Context) (*dagger.Container, error) {
	compiled, err := m.compile(ctx)
	if err != nil {
		return nil, err
	}
	habits := m.Source.Filter(dagger.DirectoryFilterOpts{Include: []string{".ci", "Taskfile.yml"}})
	return m.golang().
		WithEnvVariable("DISKFORGE_TOOLS_DIR", toolsDir).
		WithDirectory("/src", habits).
		WithWorkdir("/src").
		WithExec([]string{".ci/task", "packages"}).
		WithDirectory(toolsDir, m.tools(compiled)).
		WithDirectory("/src", m.Source).
		WithExec([]string{"sh", "-euc", "git init -q && git add -A"}), nil // what is linted are git's files
}

// Lint looks at everything that people edit: formatting, vet, staticcheck, shellcheck, ansible-lint, pinned modules.
// +check
func (m *Diskforge) Lint(ctx context.Context) error {
	return m.check(ctx, dagger.ContainerWithExecOpts{}, ".ci/task", "lint")
}

// check runs a command on the workbench.
func (m *Diskforge) check(ctx context.Context, opts dagger.ContainerWithExecOpts, command ...string) error {
	bench, err := m.workbench(ctx)
	if err != nil {
		return err
	}
	return checked(ctx, bench, opts, command...)
}

// checked runs a command, whose error names what it found.
func checked(ctx context.Context, in *dagger.Container, opts dagger.ContainerWithExecOpts, command ...string) error {
	_, err := in.WithExec(command, opts).Sync(ctx)
	return why(err, func(e *dagger.ExecError) string {
		return explain.Task(strings.Join(command, " "), e.Stdout+"\n"+e.Stderr, e.ExitCode)
	})
}

// Unit runs the unit tests.
// +check
func (m *Diskforge) Unit(ctx context.Context) error {
	// The tests of full disks mount small ones.
	return m.check(ctx, dagger.ContainerWithExecOpts{InsecureRootCapabilities: true}, ".ci/task", "unit")
}

// Templates validates the Packer template with the pinned Packer, and the playbooks with the toolbox's Ansible.
// +check
func (m *Diskforge) Templates(ctx context.Context) error {
	if err := m.check(ctx, dagger.ContainerWithExecOpts{}, "go", "test", "./packer"); err != nil {
		return err
	}
	box, err := m.Toolbox(ctx)
	if err != nil {
		return err
	}
	return checked(ctx, box.WithUser(user).WithWorkdir(playbooks), dagger.ContainerWithExecOpts{},
		"sh", "-euc", "exec ansible-playbook --syntax-check -i localhost, playbooks/*.yml")
}
