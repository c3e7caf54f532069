package cli

import (
	"os"
	"testing"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// TestMain runs the program itself, where a test starts it as a process.
func TestMain(m *testing.M) {
	if os.Getenv("DISKFORGE_TEST_MAIN") != "" {
		os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(testkit.Run(m))
}
