//go:build !toolbox

// Package ansible carries the playbooks that diskforge brings along, so that
// the program builds images without its checkout.
package ansible

import "embed"

// FS holds ansible.cfg, playbooks/, roles/ and tests/ as they stand beside this file.
// A playbook playbooks/NAME.yml is checked in the booted guest by
// tests/NAME.yaml (goss's format).
//
// The prefix all: takes in files whose name begins with a dot or an underscore,
// which embed leaves out otherwise.
//
//go:embed ansible.cfg all:playbooks all:roles all:tests
var FS embed.FS
