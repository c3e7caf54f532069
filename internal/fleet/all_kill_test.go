package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// The environment in which the test binary builds a catalogue instead of
// running tests, and kills itself.
const (
	envCatalogue = "DISKFORGE_TEST_CATALOGUE" // its folder
	envSettings  = "DISKFORGE_TEST_SETTINGS"  // JSON
	envKillAt    = "DISKFORGE_TEST_KILL_AT"   // image and point
)

// allVictim builds until it kills itself.
func allVictim(dir string) error {
	env := map[string]string{}
	if err := json.Unmarshal([]byte(os.Getenv(envSettings)), &env); err != nil {
		return err
	}
	shown := ui.New(io.Discard, false)
	defer shown.Close()
	all, err := read(dir, env, shown)
	if err != nil {
		return err
	}
	m := &maker{stop: func(_ context.Context, image, point string) error {
		if image+" "+point == os.Getenv(envKillAt) {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}}
	all.BuildWith(m.run)
	_, err = all.Run(context.Background())
	return errors.Join(err, errors.New("it was not killed"))
}

// kill builds in a process that is killed at a point.
func (s *site) kill(at string) {
	s.t.Helper()
	settings, err := json.Marshal(s.env)
	require.NoError(s.t, err)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), envCatalogue+"="+s.dir, envSettings+"="+string(settings), envKillAt+"="+at)
	said, err := c.CombinedOutput()
	require.Error(s.t, err)
	require.Equal(s.t, -1, c.ProcessState.ExitCode(), string(said))
}

// stop builds until the context ends at a point.
func (s *site) stop(at string) {
	s.t.Helper()
	ctx, cancel := context.WithCancelCause(s.t.Context())
	stopped := errors.New("stopped by the test")
	_, err := s.all(&maker{stop: func(_ context.Context, image, point string) error {
		if image+" "+point == at {
			cancel(stopped)
		}
		return nil
	}}).Run(ctx)
	require.ErrorIs(s.t, err, stopped)
}

func TestARunThatWasEndedAnywhereGoesOnToTheSameEnd(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	ends := map[string]func(*site, string){"killed": (*site).kill, "stopped": (*site).stop}
	points := []string{"debian push", "lab pack", "exam end", "debian provision", "debian pack", "debian end", "lab provision", "lab push"}
	if testing.Short() {
		points = points[:3]
	}
	for _, at := range points {
		for how, end := range ends {
			t.Run(how+" at "+at, func(t *testing.T) {
				t.Parallel()
				s, m := newSite(t, familyCatalogue), &maker{}
				s.env["TARGET_REGISTRY"], s.env["REGISTRY_PREFIX"] = host, how+"-"+strings.ReplaceAll(at, " ", "-")
				end(s, at)
				s.run(m)
				image, point, _ := strings.Cut(at, " ")
				if again := m.taken(); point == "push" || point == "end" {
					assert.NotContains(t, again, image, "it was complete")
				} else {
					assert.Contains(t, again, image)
				}
				for name, said := range s.said() {
					assert.Equal(t, "skip: unchanged", said, name)
				}
				s.run(m) // which also cleans up behind what was killed after its push
				assertClean(t, s.env["OUTPUT_DIR"])
			})
		}
	}
}
