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

var update = flag.Bool("update", false, "write the table of settings into docs/settings.md")

// settingsTable is the table of docs/settings.md.
var settingsTable = regexp.MustCompile(`(?s)(\| variable \| default \| meaning \|\n\|---\|---\|---\|\n).*?(\n\n)`)

func TestTheDocumentsListEverySettingWithItsDefault(t *testing.T) {
	const file = "../../docs/settings.md"
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	var rows []string
	for _, f := range settings.Fields() {
		def := ""
		if f.Default != "" {
			def = "`" + f.Default + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s |", f.Env, def, strings.ReplaceAll(f.Help, "|", `\|`)))
	}
	want := settingsTable.ReplaceAllString(string(page), "${1}"+strings.ReplaceAll(strings.Join(rows, "\n"), "$", "$$")+"${2}")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(want), 0o644))
		return
	}
	assert.Equal(t, want, string(page), "go test ./internal/settings -update")
}
