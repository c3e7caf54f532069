// Diskforge turns a cloud image and an Ansible playbook into a KubeVirt
// containerdisk in a registry.
package main

import (
	"os"

	"github.com/netgroup-polito/diskforge/internal/cli"
	"github.com/netgroup-polito/diskforge/internal/host"
)

func main() {
	// Where it cannot be hidden, cli warns before a playbook runs.
	_ = host.HideEnvironment()
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
