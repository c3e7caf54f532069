package playbook_test

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// repository makes a repository like CrownLabs': playbooks deep in it, other
// things beside them, a branch, an annotated tag and a submodule entry.
func repository(t *testing.T) (url, first, second string) {
	t.Helper()
	dir := tree(t, map[string]string{
		"README": "large", "provisioning/virtual-machines/ansible/playbooks/base.yml": play, "provisioning/virtual-machines/other/x": "x", "files/not-ours": "x",
	})
	git(t, dir, "init", "-q", "-b", "master")
	git(t, dir, "config", "uploadpack.allowFilter", "true")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-qm", "first")
	first = git(t, dir, "rev-parse", "HEAD")
	git(t, dir, "tag", "-a", "v1.0", "-m", "tagged")
	git(t, dir, "checkout", "-qb", "feature/x")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "provisioning/virtual-machines/ansible/playbooks/new.yml"), []byte(play), 0o600))
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-qm", "second")
	second = git(t, dir, "rev-parse", "HEAD")
	git(t, dir, "checkout", "-q", "master")
	return "file://" + dir, first, second
}

func TestAGitSourceIsABranchATagOrACommit(t *testing.T) {
	t.Parallel()
	url, first, second := repository(t)
	cache := t.TempDir()
	for ref, want := range map[string]string{"": first, "master": first, "v1.0": first, "feature/x": second, first: first, second: second} {
		s, err := resolve(t, playbook.Options{GitURL: url, GitBranch: ref, Playbook: "base", Cache: cache})
		require.NoError(t, err, ref)
		assert.Equal(t, want, s.Revision, ref)
		assert.Equal(t, url, s.URL)
		assert.Equal(t, "playbooks/base.yml", s.File)
		assert.NoFileExists(t, filepath.Join(s.Root, "README"))
	}
	kept, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Len(t, kept, 2, "a tree a commit, and nothing temporary")
	s, err := resolve(t, playbook.Options{GitURL: url, GitPath: ".", Playbook: "provisioning/virtual-machines/ansible/playbooks/base"})
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(s.Root, "README"))
	assert.NoDirExists(t, filepath.Join(s.Root, ".git"))
}

func TestADirectoryWinsOverGitAndGitOverTheEmbedded(t *testing.T) {
	t.Parallel()
	url, _, _ := repository(t)
	dir := tree(t, map[string]string{"mine.yml": play})
	embedded := os.DirFS(tree(t, map[string]string{"carried.yml": play}))
	_, err := resolve(t, playbook.Options{AnsibleDir: dir, GitURL: url, Embedded: embedded, Playbook: "mine"})
	require.NoError(t, err)
	_, err = resolve(t, playbook.Options{GitURL: url, Embedded: embedded, Playbook: "base"})
	require.NoError(t, err)
	_, err = resolve(t, playbook.Options{Embedded: embedded, Playbook: "carried"})
	require.NoError(t, err)
}

func TestAGitSourceThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	url, _, _ := repository(t)
	_, err := resolve(t, playbook.Options{GitURL: url, GitBranch: "no-such", Playbook: "base"})
	actionable(t, err, `no branch, tag or commit "no-such"`, "GIT_ANSIBLE_BRANCH")
	_, err = resolve(t, playbook.Options{GitURL: url, GitBranch: strings.Repeat("ab", 20), Playbook: "base"})
	actionable(t, err, "no branch, tag or commit")
	_, err = resolve(t, playbook.Options{GitURL: url, GitPath: "no/such", Playbook: "base"})
	actionable(t, err, `no directory "no/such"`, "GIT_ANSIBLE_PATH")
	_, err = resolve(t, playbook.Options{GitURL: url, GitPath: "README", Playbook: "base"})
	actionable(t, err, "no directory")
	_, err = resolve(t, playbook.Options{GitURL: "file:///no/such/repository", Playbook: "base"})
	actionable(t, err, "cannot be read: '/no/such/repository' does not appear to be a git repository")
	_, err = resolve(t, playbook.Options{GitURL: url, Playbook: "missing"})
	actionable(t, err, "there are base")
}

func TestAServerThatRefusesOrIsNotThereIsNamedAndNothingIsAsked(t *testing.T) {
	t.Parallel()
	_, err := resolve(t, playbook.Options{GitURL: overHTTPS(t, t.TempDir()).URL + "/x.git", Playbook: "base"})
	actionable(t, err, "cannot be read", "CA_FILE") // its certificate is unknown
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, err = resolve(t, playbook.Options{GitURL: strings.Replace(gone.URL, "http:", "https:", 1) + "/x.git", Playbook: "base"})
	actionable(t, err, "cannot be read: unable to access")
	_, err = resolve(t, playbook.Options{GitURL: strings.Replace(gone.URL, "http:", "ssh:", 1) + "/x.git", Playbook: "base"})
	actionable(t, err, "Connection refused")
	_, err = resolve(t, playbook.Options{GitURL: "ssh://git@" + unknownHost(t) + "/x.git", Playbook: "base"})
	actionable(t, err, "Host key verification failed", "known_hosts")
}

// overHTTPS serves the repositories in a folder, with a certificate that nobody knows.
func overHTTPS(t *testing.T, dir string) *httptest.Server {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},
	})
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestACertificateOfCAFileIsTrusted(t *testing.T) {
	t.Parallel()
	url, _, _ := repository(t)
	dir := strings.TrimPrefix(url, "file://")
	server, cache := overHTTPS(t, filepath.Dir(dir)), t.TempDir()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	_, err := resolve(t, playbook.Options{GitURL: server.URL + "/" + filepath.Base(dir), Playbook: "base", Cache: cache, CAFile: ca})
	require.NoError(t, err)
	kept, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Len(t, kept, 1, "the tree alone")
}

// unknownHost is an ssh server whose key nobody knows.
func unknownHost(t *testing.T) string {
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _, _, _ = ssh.NewServerConn(conn, config); conn.Close() }()
		}
	}()
	return l.Addr().String()
}

func TestARepositoryOfSomebodyElseIsNamedAsSuch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files to somebody else needs root")
	}
	url, _, _ := repository(t)
	dir := strings.TrimPrefix(url, "file://")
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 12345, 12345))
	}))
	t.Setenv("HOME", t.TempDir())
	_, err := resolve(t, playbook.Options{GitURL: url, Playbook: "base"})
	actionable(t, err, "detected dubious ownership", "safe.directory")
}

func TestHooksAndHelpersOfARepositoryDoNotRun(t *testing.T) {
	url, _, _ := repository(t)
	mark := filepath.Join(t.TempDir(), "ran")
	// A configuration of the user's that would run things.
	home := t.TempDir()
	template := filepath.Join(home, "template", "hooks")
	require.NoError(t, os.MkdirAll(template, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(template, "post-checkout"), []byte("#!/bin/sh\ntouch "+mark+"\n"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[init]\n\ttemplateDir = "+filepath.Dir(template)+"\n[core]\n\thooksPath = "+template+"\n"), 0o600))
	t.Setenv("HOME", home)
	_, err := resolve(t, playbook.Options{GitURL: url, Playbook: "base"})
	require.NoError(t, err)
	assert.NoFileExists(t, mark)
}

func TestTheEndOfTheContextEndsTheFetchAndLeavesNoClone(t *testing.T) {
	t.Parallel()
	url, _, _ := repository(t)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	dir := t.TempDir()
	cache := filepath.Join(dir, "cache")
	_, err := playbook.Resolve(ctx, playbook.Options{GitURL: url, Playbook: "base", Dir: filepath.Join(dir, "copy"), Cache: cache}, progress.Discard)
	require.ErrorIs(t, err, stop)
	left, err := filepath.Glob(filepath.Join(cache, ".*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

var gitURLs = map[string]bool{
	"https://github.com/netgroup-polito/CrownLabs.git": true,
	"https://example.org:8443/a/b":                     true,
	"ssh://git@example.org/a.git":                      true,
	"ssh://example.org:2222/a.git":                     true,
	"git@github.com:netgroup-polito/CrownLabs.git":     true,
	"example.org:path/x.git":                           true,
	"git@example.org:/srv/x.git":                       true,
	"file:///srv/x.git":                                true,

	"":                                   false,
	"-u":                                 false,
	"--upload-pack=touch x":              false,
	"ext::sh -c touch% x":                false,
	"ext::sh":                            false,
	"fd::3":                              false,
	"http://example.org/x":               false,
	"git://example.org/x":                false,
	"ftp://example.org/x":                false,
	"https://user:secret@example.org/x":  false,
	"https://token@example.org/x":        false,
	"ssh://git:secret@example.org/x":     false,
	"https://example.org/x?token=secret": false,
	"https:///x":                         false,
	"ssh://-oProxyCommand=x/y":           false,
	"ssh://-o@example.org/y":             false,
	"-oProxyCommand=x:y":                 false,
	"example.org:-x":                     false,
	"git@-o:path":                        false,
	"/srv/x.git":                         false,
	"./x":                                false,
	"file://host/x":                      false,
	"file://x":                           false,
	"file:/e://x":                        false, // a host called file to git
	"https:/example.org/a://b":           false,
	"https://exa mple.org/x":             false,
	"https://example.org/x\n-c":          false,
}

func TestGitAddresses(t *testing.T) {
	t.Parallel()
	for raw, good := range gitURLs {
		err := playbook.ValidateGitURL(raw)
		if good {
			assert.NoError(t, err, raw)
			continue
		}
		actionable(t, err)
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestGitReferencesAndPaths(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"master", "feature/x-1", "v1.2.3", strings.Repeat("a1", 20), "refs/heads/main"} {
		assert.NoError(t, playbook.ValidateGitRef(good), good)
	}
	for _, bad := range []string{"", "-b", "--upload-pack=x", "a b", "a..b", "a:b", "+a", "a~1", "a^", "a*", "/a", "a/", "a.lock", "a@{1}", "a\n", ".a", "a//b", "a/.b"} {
		actionable(t, playbook.ValidateGitRef(bad))
	}
	for _, good := range []string{".", "a", "a/b c/d"} {
		assert.NoError(t, playbook.ValidateGitPath(good), good)
	}
	for _, bad := range []string{"", "/a", "../a", "a/../../b", "-a", ":(top)a", "a*", "!a", "a\nb"} {
		actionable(t, playbook.ValidateGitPath(bad))
	}
}

// withSubmodule is a repository of which a role is a submodule, and the role's.
func withSubmodule(t *testing.T) (repository, role string) {
	t.Helper()
	role = tree(t, map[string]string{"tasks/main.yml": "- copy: {content: x, dest: /etc/tool}\n"})
	repository = tree(t, map[string]string{"deep/playbooks/lab.yml": "- hosts: all\n  roles: [tool]\n"})
	for _, dir := range []string{role, repository} {
		git(t, dir, "init", "-q", "-b", "main")
		git(t, dir, "add", ".")
		git(t, dir, "commit", "-qm", "first")
	}
	git(t, repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "file://"+role, "deep/playbooks/roles/tool")
	git(t, repository, "commit", "-qm", "the role")
	return repository, role
}

func TestASubmoduleIsFetchedAtItsCommitOrRefused(t *testing.T) {
	t.Parallel()
	repo, role := withSubmodule(t)
	options := playbook.Options{GitURL: "file://" + repo, GitBranch: "main", GitPath: "deep", Playbook: "lab"}
	digest := func() string {
		s, err := resolve(t, options)
		require.NoError(t, err)
		assert.FileExists(t, filepath.Join(s.Root, "playbooks/roles/tool/tasks/main.yml"))
		in, err := s.Inputs(t.Context(), nil)
		require.NoError(t, err)
		assert.Contains(t, in.Files, "playbooks/roles/tool/tasks/main.yml")
		return in.Digest
	}
	before := digest()
	require.NoError(t, os.WriteFile(filepath.Join(role, "tasks/main.yml"), []byte("- copy: {content: y, dest: /etc/tool}\n"), 0o600))
	git(t, role, "commit", "-qam", "second")
	assert.Equal(t, before, digest(), "the repository names the first commit")
	submodule := filepath.Join(repo, "deep/playbooks/roles/tool")
	git(t, submodule, "pull", "-q", "origin", "main")
	git(t, repo, "commit", "-qam", "moved")
	assert.NotEqual(t, before, digest(), "a moved submodule is another input")

	// A clone in which nobody fetched it, as a directory and through a plan.
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, repo, "clone", "-q", repo, clone)
	_, err := resolve(t, playbook.Options{AnsibleDir: filepath.Join(clone, "deep"), Playbook: "lab"})
	actionable(t, err, "playbooks/roles/tool is a git submodule", "git submodule update --init")
	var trees playbook.Trees
	defer trees.Close()
	_, err = trees.Open(t.Context(), playbook.Options{AnsibleDir: filepath.Join(clone, "deep")}, progress.Discard)
	actionable(t, err, "playbooks/roles/tool is a git submodule")

	require.NoError(t, os.Rename(role, role+".gone"))
	_, err = resolve(t, options)
	actionable(t, err, "submodules that cannot be fetched: deep/playbooks/roles/tool")
}

func TestAPointerOfGitLFSIsNoFile(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"playbooks/lab.yml": play, "files/tool.deb": "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("4d", 32) + "\nsize 73400320\n"})
	s, err := resolve(t, playbook.Options{AnsibleDir: dir, Playbook: "lab"})
	require.NoError(t, err)
	_, err = s.Inputs(t.Context(), nil)
	actionable(t, err, "files/tool.deb", "pointer of Git LFS", "git lfs pull")
	var trees playbook.Trees
	defer trees.Close()
	planned, err := trees.Open(t.Context(), playbook.Options{AnsibleDir: dir}, progress.Discard)
	require.NoError(t, err)
	_, err = planned.Inputs(t.Context(), "lab", nil)
	actionable(t, err, "pointer of Git LFS")
}

func FuzzValidateGitURL(f *testing.F) {
	for raw := range gitURLs {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if playbook.ValidateGitURL(raw) != nil {
			return
		}
		assert.False(t, strings.HasPrefix(raw, "-"))
		assert.NotContains(t, raw, "::")
		assert.NotContains(t, raw, "\n")
		scheme, _, full := strings.Cut(raw, "://")
		assert.True(t, !full || scheme == "https" || scheme == "ssh" || scheme == "file" || strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "ssh") || strings.EqualFold(scheme, "file"), raw)
	})
}
