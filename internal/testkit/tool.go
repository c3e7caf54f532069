package testkit

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Tool is the path of a program that the Go module in a folder pins. It is compiled
// where it is not in Go's cache, which takes up to minutes.
func Tool(t testing.TB, module, name string) string {
	t.Helper()
	c := exec.Command("go", "-C", module, "tool", "-n", name)
	c.Stderr = os.Stderr
	out, err := c.Output()
	require.NoError(t, err, "go tool -n %s in %s", name, module)
	return strings.TrimSpace(string(out))
}
