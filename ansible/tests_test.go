//go:build !toolbox

package ansible_test

import (
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/ansible"
)

func TestEveryPlaybookHasItsChecks(t *testing.T) {
	playbooks, err := fs.Glob(ansible.FS, "playbooks/*.yml")
	require.NoError(t, err)
	require.NotEmpty(t, playbooks)
	for _, playbook := range playbooks {
		name := "tests/" + strings.TrimSuffix(path.Base(playbook), ".yml") + ".yaml"
		raw, err := fs.ReadFile(ansible.FS, name)
		require.NoError(t, err, "%s has no checks", playbook)
		var checks map[string]map[string]map[string]any // resource, name, property
		require.NoError(t, yaml.Unmarshal(raw, &checks), name)
		if name == "tests/refresh.yaml" {
			continue // it runs in images of others' playbooks
		}
		assert.Contains(t, checks["gossfile"], "lab.yaml", "%s does not check what every image promises", name)
	}
}
