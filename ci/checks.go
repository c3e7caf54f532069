package main

import (
	"context"

	"dagger/diskforge/internal/dagger"
)

// workbench is the Go image with what linting and testing need of Debian, and
// the project.
func (m *Diskforge) workbench() *dagger.Container {
	habits := m.Source.Filter(dagger.DirectoryFilterOpts{Include: []string{".ci", "Taskfile.yml"}})
	return m.golang().
		WithEnvVariable("DISKFORGE_TOOLS_DIR", toolsDir).
		WithDirectory("/src", habits).
		WithWorkdir("/src").
		WithExec([]string{".ci/task", "packages"}).
		WithDirectory(toolsDir, m.tools()).
		WithDirectory("/src", m.Source).
		WithExec([]string{"sh", "-euc", "git init -q && git add -A"}) // what is linted are git's files
}

// Lint looks at everything that people edit: formatting, vet, staticcheck, shellcheck, ansible-lint, pinned modules.
// +check
func (m *Diskforge) Lint(ctx context.Context) error {
	_, err := m.workbench().WithExec([]string{".ci/task", "lint"}).Sync(ctx)
	return err
}

// Unit runs the unit tests.
// +check
func (m *Diskforge) Unit(ctx context.Context) error {
	// The tests of full disks mount small ones.
	_, err := m.workbench().WithExec([]string{".ci/task", "unit"}, dagger.ContainerWithExecOpts{InsecureRootCapabilities: true}).Sync(ctx)
	return err
}

// Templates validates the Packer template with the pinned Packer, and the playbooks with the toolbox's Ansible.
// +check
func (m *Diskforge) Templates(ctx context.Context) error {
	if _, err := m.workbench().WithExec([]string{"go", "test", "./packer"}).Sync(ctx); err != nil {
		return err
	}
	box, err := m.Toolbox()
	if err != nil {
		return err
	}
	_, err = box.WithUser(user).WithWorkdir(playbooks).
		WithExec([]string{"sh", "-euc", "exec ansible-playbook --syntax-check -i localhost, playbooks/*.yml"}).Sync(ctx)
	return err
}
