//go:build toolbox

// Package ansible finds the playbooks that diskforge brings along, in the
// toolbox container.
package ansible

import "os"

// FS is the tree that the toolbox container keeps as plain files. There the
// program carries no playbooks, so that a changed one makes a new last layer
// and not another program.
var FS = os.DirFS("/usr/local/share/diskforge/ansible")
