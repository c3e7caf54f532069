package fleet_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

var seed = flag.Int64("seed", 0, "of the moments at which runs are killed; 0: another each time")

// The environment in which the test binary runs a fleet instead of tests.
const (
	envOutput = "DISKFORGE_TEST_OUTPUT"
	envLog    = "DISKFORGE_TEST_LOG"
	envSeed   = "DISKFORGE_TEST_SEED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envOutput); dir != "" {
		os.Exit(victim(dir))
	}
	if dir := os.Getenv(envCatalogue); dir != "" {
		fmt.Fprintln(os.Stderr, allVictim(dir))
		os.Exit(1)
	}
	os.Exit(withAnsible(m))
}

// ansible is the PATH with the real Ansible. Tests have one that manages every release.
var ansible = os.Getenv("PATH")

func withAnsible(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ansible")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Setenv("PATH", fakeAnsible(dir, "2.18.1"))
	return testkit.Run(m)
}

// victim runs a fleet until it is done or killed.
func victim(dir string) int {
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err == nil {
		b := &fake{pause: 300 * time.Microsecond, tear: rand.New(rand.NewPCG(seed, 0)), log: os.Getenv(envLog)}
		_, err = fleet.Run(context.Background(), planned(dir, family()), b, fleet.Options{OutputDir: dir, Jobs: 2}, &observer{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// attempt starts a run and kills it after a while, unless it has ended by then.
func attempt(t *testing.T, dir string, seed uint64, patience time.Duration) (finished bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0])
	// The race detector would have a process wait for a second at its end.
	c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", envOutput+"="+filepath.Join(dir, "out"), envLog+"="+filepath.Join(dir, "log"), envSeed+"="+strconv.FormatUint(seed, 10))
	said, err := c.CombinedOutput()
	if c.ProcessState == nil { // its time was over before it began
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return false
	}
	code := c.ProcessState.ExitCode() // -1 of a process that was killed
	require.LessOrEqual(t, code, 0, "it failed: %s", said)
	return code == 0
}

// forever is more than a run takes on the slowest machine.
const forever = 10 * time.Minute

func TestARunThatIsKilledAtAnyMomentGoesOn(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("-seed %d", seed)
	undisturbed := t.TempDir()
	began := time.Now()
	require.True(t, attempt(t, undisturbed, 0, forever))
	usual := time.Since(began) // when no other disturbs it
	want := content(t, undisturbed)
	require.Len(t, want, 3+3+3, "three images, their marks, the lock, the summary, its page")

	runs := uint64(50)
	if testing.Short() {
		runs = 8
	}
	var g errgroup.Group
	g.SetLimit(8) // they wait for the disk more than for a processor
	for i := range runs {
		g.Go(func() error {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				dir, r := t.TempDir(), rand.New(rand.NewPCG(uint64(seed), i))
				patience := func() time.Duration { return time.Duration(r.Int64N(2 * int64(usual))) }
				for p := patience(); attempt(t, dir, r.Uint64(), p); p /= 2 {
					dir = t.TempDir() // it was done before it could be killed
				}
				if r.IntN(2) == 0 {
					attempt(t, dir, r.Uint64(), patience()) // killed once more, or not
				}
				require.True(t, attempt(t, dir, r.Uint64(), forever))
				assert.Equal(t, want, content(t, dir))
				assertNothingTwice(t, dir)
			})
			return nil
		})
	}
	_ = g.Wait()
}

// content returns what a run left: the names of all files, and what is in
// those that have no process number or date in them.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	out := filepath.Join(dir, "out")
	require.NoError(t, fs.WalkDir(os.DirFS(out), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(out, name))
		switch {
		case name == "build-all.json":
			text = ended(t, text)
		case name == "work/lock", name == "index.html": // a process number, a date
			text = nil
		}
		files[name] = strings.TrimSpace(string(text))
		return err
	}))
	return files
}

// ended says of a summary how many images are complete.
func ended(t *testing.T, text []byte) []byte {
	t.Helper()
	var s fleet.Summary
	require.NoError(t, json.Unmarshal(text, &s))
	return fmt.Append(nil, s.Counts[fleet.Done]+s.Counts[fleet.Skipped])
}

// assertNothingTwice checks that no stage began again after it was recorded.
func assertNothingTwice(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err)
	began, recorded := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(string(text)) {
		what, stage, _ := strings.Cut(line, " ")
		if what == "recorded" {
			recorded[stage] = true
			continue
		}
		began[stage] = true
		assert.False(t, recorded[stage], "%s was made again", stage)
	}
	assert.Len(t, began, 9)
}
