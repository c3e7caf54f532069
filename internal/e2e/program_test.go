//go:build e2e || nightly

// Package e2e runs the compiled program the way people do, with the real
// QEMU, Packer, Ansible and registry.
package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// What is planted as a secret begins with planted and must never be seen again:
// the registry's password, and a playbook's variable.
const (
	planted        = "planted-e2e-"
	secret         = planted + "PASSWORD"
	secretVariable = planted + "VARIABLE"
)

// careless is another user of the registry, whose password stands on every
// Debian disk, in /usr/lib/os-release.
const careless, carelessSecret = "careless", "https://www.debian.org/support"

// run is one run of a command.
type run struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout bytes.Buffer
	mu     sync.Mutex
	stderr []string
	lines  chan string // stderr's, as they come
	done   chan struct{}
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

func diskforge(t testing.TB) string { return filepath.Join(root(t), "bin", "diskforge") }

// start starts a command in the repository's root. Its environment is ours,
// less every setting that the test does not give.
func start(t testing.TB, env map[string]string, program string, args ...string) *run {
	t.Helper()
	r := &run{t: t, cmd: exec.Command(program, args...), lines: make(chan string, 10000), done: make(chan struct{})}
	r.cmd.Dir = root(t)
	r.cmd.Env = os.Environ()
	for k, v := range env {
		r.cmd.Env = append(r.cmd.Env, k+"="+v)
	}
	r.cmd.Stdout = &r.stdout
	pipe, err := r.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	go r.read(bufio.NewScanner(pipe))
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.done:
		case <-time.After(30 * time.Second):
			_ = r.cmd.Process.Kill()
		}
	})
	return r
}

func (r *run) read(s *bufio.Scanner) {
	defer close(r.done)
	for s.Scan() {
		r.mu.Lock()
		r.stderr = append(r.stderr, s.Text())
		r.mu.Unlock()
		select {
		case r.lines <- s.Text():
		default: // nobody waits for a line any more
		}
	}
	_ = r.cmd.Wait()
}

// await waits for a line of standard error with the words in it.
func (r *run) await(limit time.Duration, words ...string) {
	r.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case line := <-r.lines:
			if containsAll(line, words) {
				return
			}
		case <-r.done:
			r.t.Fatalf("ended before it said %q:\n%s", words, r.errors())
		case <-timeout:
			r.t.Fatalf("did not say %q within %s:\n%s", words, limit, r.errors())
		}
	}
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// wait waits for the end and returns the exit code.
func (r *run) wait(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(limit):
		r.t.Fatalf("still running after %s:\n%s", limit, r.errors())
	}
	if status := r.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return r.cmd.ProcessState.ExitCode()
}

// errors is all of standard error.
func (r *run) errors() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.stderr, "\n")
}

// lastLine is the last line of standard output.
func (r *run) lastLine() string {
	lines := strings.Split(strings.TrimSpace(r.stdout.String()), "\n")
	return lines[len(lines)-1]
}

// process is a process that works on something below a folder.
type process struct {
	pid     int
	command string
}

// processes finds the processes that work in the folder, or whose arguments or
// environment name it.
func processes(path string) []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		command, _ := os.ReadFile(dir + "/cmdline")
		environment, _ := os.ReadFile(dir + "/environ")
		folder, _ := os.Readlink(dir + "/cwd")
		if strings.Contains(folder, path) || bytes.Contains(command, []byte(path)) || bytes.Contains(environment, []byte(path)) {
			found = append(found, process{pid, string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))})
		}
	}
	return found
}

// running is the process of the program that builds in OUTPUT_DIR, by its lock: of
// itself it shows no environment.
func running(program, dir string) []process {
	text, _ := os.ReadFile(filepath.Join(dir, "work", "lock"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if exe != program {
		return nil
	}
	return []process{{pid, program}}
}

// ended waits until nothing works below the folder any more.
func ended(t testing.TB, dir string) {
	t.Helper()
	var left []process
	for range 100 {
		if left = processes(dir); len(left) == 0 {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("still running: %v", left)
}

// listeners are the local addresses of the listening TCP sockets of the
// processes that work on something below the folder.
func listeners(t testing.TB, dir string) []string {
	t.Helper()
	sockets := map[string]bool{}
	for _, p := range processes(dir) {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
		for _, link := range links {
			to, _ := os.Readlink(link)
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	var found []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		require.NoError(t, err)
		for _, line := range strings.Split(string(b), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && sockets[f[9]] {
				found = append(found, f[1])
			}
		}
	}
	return found
}

// onLoopback says whether a local address of /proc/net/tcp is a loopback one.
func onLoopback(address string) bool {
	host, _, _ := strings.Cut(address, ":")
	return strings.HasSuffix(host, "7F") || host == "00000000000000000000000001000000"
}

// files are the regular files below a folder, relative to it.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			found = append(found, rel)
		}
		return err
	})
	require.NoError(t, err)
	return found
}

// holdsSecret names the files below dir that hold a planted secret.
func holdsSecret(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	for _, file := range files(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) { // a link to what a pod has alone
			continue
		}
		require.NoError(t, err)
		if bytes.Contains(b, []byte(planted)) {
			found = append(found, file)
		}
	}
	return found
}

// tree writes a playbook tree with one playbook and returns its folder.
func tree(t testing.TB, playbook string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "course.yml"), []byte(playbook), 0o644))
	return dir
}

// marking is a playbook that leaves one file in /etc.
const marking = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Leave a mark
      ansible.builtin.copy: {content: "made by %[1]s", dest: /etc/%[1]s, mode: "0644"}
`

// childChecks are looked at in the booted guest of a child.
const childChecks = `
file:
  /etc/parent: {exists: true, contents: [made by parent]}
  /etc/%s: {exists: true}
  /etc/%s: {exists: false}
`

// familyTree are the playbooks of a parent and two children, one and two, by their
// paths.
var familyTree = map[string]string{
	"parent.yml":     fmt.Sprintf(marking, "parent"),
	"one.yml":        fmt.Sprintf(marking, "one"),
	"two.yml":        fmt.Sprintf(marking, "two"),
	"tests/one.yaml": fmt.Sprintf(childChecks, "one", "two"),
	"tests/two.yaml": fmt.Sprintf(childChecks, "two", "one"),
}

// fromPackages are the settings of a build on the demo's base.
func fromPackages(out, playbooks string) map[string]string {
	return map[string]string{
		"OUTPUT_DIR": out, "BASE_FROM_PACKAGES": "true", "ANSIBLE_DIR": playbooks, "ANSIBLE_PLAYBOOK": "course",
	}
}

// local are the settings of a base that is a file of this host.
func local(t testing.TB, path string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(content)
	return map[string]string{"ISO_URL": path, "ISO_CHECKSUM": "sha256:" + hex.EncodeToString(sum[:])}
}

// with adds settings to others.
func with(env map[string]string, pairs ...string) map[string]string {
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	return env
}

// errorLines are the lines that say why the program ended.
func errorLines(r *run) string {
	var lines []string
	for line := range strings.Lines(r.errors()) {
		if strings.HasPrefix(line, "diskforge: ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// registry starts Debian's docker-registry with two users, "me" and careless,
// and returns its address.
func registry(t testing.TB) string {
	t.Helper()
	var users []byte
	for user, password := range map[string]string{"me": secret, careless: carelessSecret} {
		line, err := exec.Command("htpasswd", "-Bbn", user, password).Output()
		require.NoError(t, err)
		users = append(users, line...)
	}
	file := filepath.Join(t.TempDir(), "users")
	require.NoError(t, os.WriteFile(file, users, 0o600))
	address, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Htpasswd: file})
	return address
}

// notPublished checks that the registry has no such repository.
func notPublished(t *testing.T, address, image string) {
	t.Helper()
	ref, err := name.NewRepository(address + "/labs/" + image)
	require.NoError(t, err)
	_, err = remote.List(ref, remote.WithAuth(&authn.Basic{Username: "me", Password: secret}))
	assert.ErrorContains(t, err, "NAME_UNKNOWN")
}
