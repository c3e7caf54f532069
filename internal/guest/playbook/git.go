package playbook

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// scpLike is git's short form of an ssh address, [user@]host:path. No part may
// begin with a dash, and "::" would name a helper program.
var scpLike = regexp.MustCompile(`^(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:[^-:][^:]*$`)

// ValidateGitURL says whether git may be given the address: https, ssh (also
// as user@host:path) or file, nothing that git would take for an option or
// for a helper program, and no credentials, which belong in git's credential
// helpers. The address is never repeated in the error: it may hold a secret.
// No host is asked.
func ValidateGitURL(raw string) error {
	const none, full = "is no address that git may be given", "write https://host/path, ssh://user@host/path, user@host:path or file:///path"
	bad := func(what, try string) error { return failure.New("GIT_ANSIBLE_URL "+what, try) }
	u, err := url.Parse(raw)
	switch {
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return bad("has a space or a control character in it", "write a space as %20")
	case scpLike.MatchString(raw) && !strings.Contains(raw, "://"):
		return nil
	// file:/e://x is a path to us and a host called file to git.
	case err != nil || !strings.HasPrefix(raw[len(u.Scheme):], "://"):
		return bad(none, full)
	}
	_, password := u.User.Password()
	switch {
	case u.Scheme != "https" && u.Scheme != "ssh" && u.Scheme != "file":
		return bad("uses a protocol that is not allowed", "use https, ssh or file")
	case password || u.User != nil && u.Scheme != "ssh":
		return bad("has credentials in it", "leave them to git's credential helpers")
	case u.RawQuery != "" || u.Fragment != "":
		return bad("has a query or a fragment", "give the address of the repository alone")
	case strings.HasPrefix(u.User.Username(), "-") || strings.HasPrefix(u.Hostname(), "-"), // like an option
		u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")), u.Scheme != "file" && u.Hostname() == "":
		return bad(none, full)
	}
	return nil
}

// refName is what git check-ref-format accepts, in its useful part.
var refName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./+@#%=,-]*$`)

// ValidateGitRef says whether ref can name a branch, a tag or a commit.
func ValidateGitRef(ref string) error {
	if !refName.MatchString(ref) || strings.Contains(ref, "..") || strings.Contains(ref, "//") || strings.Contains(ref, "@{") ||
		strings.Contains(ref, "/.") || strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".") || strings.HasSuffix(ref, ".lock") {
		return failure.New(fmt.Sprintf("GIT_ANSIBLE_BRANCH %q names no branch, tag or commit", ref), "give one that git would accept")
	}
	return nil
}

// ValidateGitPath says whether p can be a directory of a repository.
func ValidateGitPath(p string) error {
	if !filepath.IsLocal(p) || strings.HasPrefix(p, "-") || strings.HasPrefix(p, ":") || strings.ContainsAny(p, "\x00\n\r\\*?[!#") {
		return failure.New(fmt.Sprintf("GIT_ANSIBLE_PATH %q is no directory of a repository", p), "give a relative path, or . for the whole repository")
	}
	return nil
}

// repository is a folder of a git repository at a branch, tag or commit.
type repository struct {
	url, ref, path string
	caFile         string // of authorities trusted besides the host's, or empty; see trust
}

// open opens the tree of the commit that the server names now: the one in the
// cache, or it is fetched to there.
func (r repository) open(ctx context.Context, cache string, report progress.Reporter) (*Tree, error) {
	if r.caFile != "" {
		all, err := r.trust(ctx, cache)
		if err != nil {
			return nil, fmt.Errorf("CA_FILE: %w", err)
		}
		defer os.Remove(all)
		r.caFile = all
	}
	commit, err := r.commit(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(r.place(cache, commit)); commit == "" || err != nil {
		if commit, err = r.fetch(ctx, cache, report); err != nil {
			return nil, err
		}
	}
	t, err := OpenTree(ctx, r.place(cache, commit))
	if err == nil {
		t.URL, t.Revision = r.url, commit
	}
	return t, err
}

// trust writes the certificates of caFile and of the authorities that git knows into one
// file, which the caller deletes: git takes one or the other (http.sslCAInfo).
func (r repository) trust(ctx context.Context, cache string) (string, error) {
	further, err := os.ReadFile(r.caFile)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	configured, _ := repository{url: r.url}.git(ctx, "config", "--path", "--get-urlmatch", "http.sslCAInfo", r.url) // or empty
	const debians, fedoras = "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"
	var known []byte
	for _, bundle := range []string{os.Getenv("GIT_SSL_CAINFO"), strings.TrimSpace(configured), os.Getenv("SSL_CERT_FILE"), debians, fedoras} {
		if known, err = os.ReadFile(bundle); err == nil {
			break
		}
	}
	if err != nil {
		return "", failure.New("the list of this host's authorities is not found", "name its file in GIT_SSL_CAINFO")
	}
	f, err := os.CreateTemp(cache, ".authorities-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(slices.Concat(known, []byte("\n"), further))
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name()) // what went wrong is told
	}
	return f.Name(), err
}

// place is where the tree of a commit is kept.
func (r repository) place(cache, commit string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "with submodules %q %q %q", r.url, r.path, commit))
	return filepath.Join(cache, hex.EncodeToString(sum[:16]))
}

var fullCommit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// commit asks the server which commit the reference names now, by git's own
// order (gitrevisions(7)). It is empty where the server lists no such name:
// a fetch then says what is wrong.
func (r repository) commit(ctx context.Context) (string, error) {
	if fullCommit.MatchString(r.ref) {
		return r.ref, nil
	}
	out, err := r.git(ctx, "ls-remote", "--", r.url, r.ref, r.ref+"^{}")
	if err != nil {
		return "", r.fetchFailed(ctx, err)
	}
	listed := map[string]string{}
	for line := range strings.Lines(out) {
		if commit, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			listed[name] = commit
		}
	}
	for _, name := range []string{r.ref, "refs/" + r.ref, "refs/tags/" + r.ref, "refs/heads/" + r.ref} {
		if commit := cmp.Or(listed[name+"^{}"], listed[name]); commit != "" { // of an annotated tag, the commit
			return commit, nil
		}
	}
	return "", nil
}

// fetch fetches the folder to its place in the cache, without history and with
// its submodules, and returns the commit's full name.
func (r repository) fetch(ctx context.Context, cache string, report progress.Reporter) (string, error) {
	report.Activity("fetching the playbooks from " + r.url)
	err := os.MkdirAll(cache, 0o700)
	if err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	dir, err := os.MkdirTemp(cache, ".fetch-")
	if err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	defer os.RemoveAll(dir)
	_, err = r.git(ctx, "init", "--quiet", "--template=", dir)
	if err == nil { // the remote's name is what a later checkout asks for missing files
		_, err = r.git(ctx, "-C", dir, "remote", "add", "origin", r.url)
	}
	if err != nil {
		return "", fmt.Errorf("making the clone: %w", err)
	}
	// No file yet where the server can leave them out.
	_, err = r.git(ctx, "-C", dir, "fetch", "--quiet", "--depth=1", "--no-tags", "--filter=blob:none", "origin", r.ref)
	if err != nil {
		return "", r.fetchFailed(ctx, err)
	}
	commit, err := r.git(ctx, "-C", dir, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
	if err != nil {
		return "", fmt.Errorf("reading the commit of %s: %w", r.ref, err)
	}
	commit = strings.TrimSpace(commit)
	if err := r.checkout(ctx, dir); err != nil {
		return "", err
	}
	// What git needs is none of the tree, where that is the whole repository.
	err = os.RemoveAll(filepath.Join(dir, ".git"))
	if err == nil {
		err = os.Rename(filepath.Join(dir, filepath.FromSlash(r.path)), r.place(cache, commit))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("keeping the playbooks: %w", err)
	}
	return commit, nil
}

// fetchFailed is the error of git as it talked to the server.
func (r repository) fetchFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	lines := host.Tail(err)
	f := &failure.Error{Lines: lines, Err: err}
	if absent.MatchString(strings.Join(lines, "\n")) {
		f.What = fmt.Sprintf("%s has no branch, tag or commit %q", r.url, r.ref)
		f.Try = "set GIT_ANSIBLE_BRANCH to one that is there (a commit by its full name)"
		return f
	}
	f.What = fmt.Sprintf("the playbooks' repository %s cannot be read", r.url)
	f.Try = "is GIT_ANSIBLE_URL right, the host reachable, and may git's credential helpers read it?"
	for _, known := range gitReasons { // the last lines never say why
		for _, line := range lines {
			line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "fatal: "), "remote: ")
			if known.says.MatchString(line) && !gitNoise.MatchString(line) {
				f.What, f.Try = f.What+": "+line, known.try
				return f
			}
		}
	}
	return f
}

// absent is what git says of a reference that the server does not have.
var absent = regexp.MustCompile(`couldn't find remote ref|not our ref|unadvertised object`)

// gitReasons are lines of git and ssh that say what is wrong, wherever they
// stand, with what to do about it: those that are known, then any.
var gitReasons = []struct {
	says *regexp.Regexp
	try  string
}{
	{regexp.MustCompile("dubious ownership"), "if you trust it: git config --global --add safe.directory with the folder that git names"},
	{regexp.MustCompile("Host key verification failed"), "put the host's key into known_hosts: ssh-keyscan shows it, compare it with what its owner says"},
	{regexp.MustCompile("Permission denied"), "give ssh (its agent or ~/.ssh) a key that may read it"},
	{
		regexp.MustCompile("certificate verification failed|certificate signer not trusted|unable to get local issuer|self-signed certificate"),
		"if you trust it, name its authority in CA_FILE",
	},
	{regexp.MustCompile("Authentication failed|could not read Username"), "give git's credential helpers a login that may read it"},
	{regexp.MustCompile(`.`), "is GIT_ANSIBLE_URL right, and the host reachable?"},
}

// gitNoise stands behind the reason, or before it, and is none.
var gitNoise = regexp.MustCompile(`^$|Could not read from remote repository|^Please make sure you have|^and the repository exists|^[Ww]arning: |^@|^hint: `)

// checkout writes the files of the path, and of no other directory, with its
// submodules at the commits that the repository names.
func (r repository) checkout(ctx context.Context, dir string) error {
	out, err := r.git(ctx, "-C", dir, "ls-tree", "-r", "-z", "--full-tree", "FETCH_HEAD", "--", r.path)
	if err != nil {
		return fmt.Errorf("reading the commit of %s: %w", r.ref, err)
	}
	there, submodules := r.path == ".", []string(nil)
	for entry := range strings.SplitSeq(out, "\x00") {
		about, name, _ := strings.Cut(entry, "\t")
		there = there || strings.HasPrefix(name, r.path+"/")
		if strings.HasPrefix(about, "160000 ") {
			submodules = append(submodules, name)
		}
	}
	if !there {
		return failure.New(fmt.Sprintf("%s has no directory %q at %s", r.url, r.path, r.ref),
			"set GIT_ANSIBLE_PATH to the directory that holds the playbooks")
	}
	steps := [][]string{{"checkout", "--quiet", "--detach", "FETCH_HEAD"}}
	if r.path != "." {
		steps = append([][]string{{"sparse-checkout", "init", "--cone"}, {"sparse-checkout", "set", r.path}}, steps...)
	}
	for _, args := range steps {
		if _, err := r.git(ctx, append([]string{"-C", dir}, args...)...); err != nil {
			return r.fetchFailed(ctx, err)
		}
	}
	if submodules == nil {
		return nil
	}
	update := []string{"-C", dir, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", "--"}
	_, err = r.git(ctx, append(update, submodules...)...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &failure.Error{
		What:  fmt.Sprintf("the repository %s has submodules that cannot be fetched: %s", r.url, strings.Join(submodules, ", ")),
		Lines: host.Tail(err), Err: err,
		Try: "are their addresses in .gitmodules right (https or ssh), and may git's credential helpers read them?",
	}
}

// git runs git so that it never asks, runs no hook and no helper protocol,
// touches no submodule unasked and gives up on a server that does not answer.
func (r repository) git(ctx context.Context, args ...string) (string, error) {
	env := append(gitVariables(), "LC_ALL=C", "LANGUAGE=") // its messages are read above
	if !strings.HasPrefix(r.url, "file:") {
		env = append(env, "GIT_ALLOW_PROTOCOL=https:ssh") // a server's submodules are none of this host's files
	}
	if r.caFile != "" {
		env = append(env, "GIT_SSL_CAINFO="+r.caFile)
	}
	var all []string
	for _, setting := range []string{
		"core.hooksPath=/dev/null", "core.fsmonitor=false", "submodule.recurse=false", "fetch.recurseSubmodules=false",
		"protocol.ext.allow=never", "protocol.version=2", "http.lowSpeedLimit=1", "http.lowSpeedTime=60", "http.followRedirects=initial",
		"advice.detachedHead=false", "init.defaultBranch=main", "gc.auto=0", "maintenance.auto=false",
	} {
		all = append(all, "-c", setting)
	}
	out, err := host.Output(ctx, host.Cmd{Program: "git", Args: append(all, args...), Env: host.Env(env...)})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return string(out), err
}

// gitVariables keep git from asking and from unwanted protocols, and let it
// reach a server through a proxy.
func gitVariables() []string {
	return append(host.Variables("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "XDG_CONFIG_HOME"),
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=https:ssh:file",
		"GIT_SSH_COMMAND=ssh -o BatchMode=yes -o ConnectTimeout=30",
		"GIT_ATTR_NOSYSTEM=1",
	)
}
