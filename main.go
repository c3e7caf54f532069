// Diskforge turns a cloud image and an Ansible playbook into a KubeVirt
// containerdisk in a registry.
package main

import (
	"os"

	"github.com/netgroup-polito/diskforge/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
