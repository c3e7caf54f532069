package cli_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A line that cannot be understood ends with exit code 2 and says in one line
// what was meant, or how to find out.
func TestACommandLineThatCannotBeUnderstoodIsAUsageError(t *testing.T) {
	t.Parallel()
	layout, _ := layoutOf(t)
	for line, words := range map[string]string{
		"biuld":                                     `unknown command "biuld" for "diskforge": did you mean build?`,
		"biuld --iso-url x":                         "did you mean build?",
		"xyzzy":                                     "see diskforge --help",
		"version now":                               "unknown command",
		"build --nonsense":                          "--nonsense",
		"pack disk.qcow2":                           `"output" not set`,
		"plan x.yaml":                               "--catalogue x.yaml",
		"build-all x.yaml":                          "--catalogue x.yaml",
		"inspect http://a.example/b":                "leave out http://",
		"inspect a.example/b":                       "no tag",
		"push " + layout:                            "no address",
		"push nowhere a.example/b":                  "no tag",
		"push nowhere http://a.b/c:1":               "leave out http://",
		"images list http://a.b":                    "leave out http://",
		"images delete a.example/b":                 "no tag",
		"images delete 127.0.0.1:1/b:1 a.example/b": "no tag", // before the first is asked for
		"images tag a.example/lab/b:v1 v2":          "diskforge images list a.example/lab/b --json",
		"images tag a.example/lab/b v2":             "no tag",
		"export nowhere --output= --outputs ova":    "--output is empty",
		"export a.example/b -o out --outputs ova":   "no tag",
		"export nowhere -o out":                     "OUTPUTS: names no file",
		"snapshot --destination a.example/b/c":      "REGISTRY/FOLDER/NAME:TAG",
		"run nowhere -p 8080":                       "give HOST:GUEST",
		"run nowhere -p 8080:80,8080:81":            "given before",
		"run nowhere -p 8080:80 -p 8081:80":         "given before",
	} {
		code, stdout, stderr := run(t, strings.Fields(line)...)
		assert.Equal(t, 2, code, line)
		assert.Empty(t, stdout, line)
		assert.Contains(t, stderr, words, line)
		assert.Equal(t, 1, strings.Count(stderr, "diskforge: "), stderr)
		assert.NotContains(t, stderr, "\t")
	}
}

func TestAPlaybookThatIsNotThereIsAUsageError(t *testing.T) {
	t.Parallel()
	code, _, stderr := run(t, "build", "--base-from-packages", "--ansible-playbook", "nowhere", "--output-dir", t.TempDir(), "--cache-dir", t.TempDir())
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, `there is no playbook "nowhere"`)
}

func TestTheVersionIsACommandAndAFlag(t *testing.T) {
	t.Parallel()
	code, command, _ := run(t, "version")
	require.Zero(t, code)
	code, flag, _ := run(t, "--version")
	require.Zero(t, code)
	assert.Equal(t, command, flag)
	assert.Regexp(t, `^diskforge .*\npacker \d`, flag)
}

func TestASignalIsNamedAsPeopleKnowIt(t *testing.T) {
	t.Parallel()
	for signal, c := range map[syscall.Signal]struct {
		code  int
		words string
	}{
		syscall.SIGTERM: {143, "stopped by SIGTERM\n"},
		syscall.SIGINT:  {130, "stopped by Ctrl-C (SIGINT)\n"},
		syscall.SIGHUP:  {129, "stopped by SIGHUP: the terminal is closed\n"},
	} {
		silent := silence(t)
		var stderr strings.Builder
		child := exec.Command(os.Args[0], "inspect", silent.address+"/lab/ubuntu:v1")
		child.Env = append(os.Environ(), "DISKFORGE_TEST_MAIN=1", "DOCKER_CONFIG="+t.TempDir())
		child.Stderr = &stderr
		require.NoError(t, child.Start())
		select {
		case <-silent.asked:
		case <-time.After(time.Minute):
			t.Error("the registry was never asked")
		}
		require.NoError(t, child.Process.Signal(signal))
		_ = child.Wait()
		assert.Equal(t, c.code, child.ProcessState.ExitCode())
		assert.Contains(t, stderr.String(), c.words)
	}
}

// silent is a registry that never answers.
type silent struct {
	address string
	asked   chan struct{} // closed at the first request
}

func silence(t *testing.T) silent {
	s := silent{asked: make(chan struct{})}
	first := sync.OnceFunc(func() { close(s.asked) })
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		first()
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	s.address = server.Listener.Addr().String()
	return s
}

func TestVerifyOfWhatIsNoDiskSaysSoOnceAndLeavesNothing(t *testing.T) {
	t.Parallel()
	letter := filepath.Join(t.TempDir(), "letter")
	require.NoError(t, os.WriteFile(letter, []byte("Dear Sir\n"), 0o600))
	code, stdout, stderr := run(t, "verify", letter)
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Equal(t, 1, strings.Count(stderr, "it looks like a text file"), stderr)
	left, err := filepath.Glob(filepath.Dir(letter) + "/*")
	require.NoError(t, err)
	assert.Equal(t, []string{letter}, left)
}
