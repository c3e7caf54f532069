package settings_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

var update = flag.Bool("update", false, "write the table of settings into the README")

// settingsTable is the README's table.
var settingsTable = regexp.MustCompile(`(?s)(\| variable \| default \| meaning \|\n\|---\|---\|---\|\n).*?(\n\n)`)

func TestTheREADMEListsEverySettingWithItsDefault(t *testing.T) {
	const file = "../../README.md"
	readme, err := os.ReadFile(file)
	require.NoError(t, err)
	var rows []string
	for _, f := range settings.Fields() {
		def := ""
		if f.Default != "" {
			def = "`" + f.Default + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |", f.Env, def, strings.ReplaceAll(f.Help, "|", `\|`)))
	}
	want := settingsTable.ReplaceAllString(string(readme), "${1}"+strings.ReplaceAll(strings.Join(rows, "\n"), "$", "$$")+"${2}")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		return
	}
	assert.Equal(t, want, string(readme), "go test ./internal/settings -update")
}
