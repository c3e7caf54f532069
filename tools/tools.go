//go:build tools

package tools

import (
	_ "github.com/goss-org/goss/cmd/goss"
	_ "github.com/hashicorp/packer"
	_ "github.com/hashicorp/packer-plugin-ansible"
	_ "github.com/hashicorp/packer-plugin-qemu"
)
