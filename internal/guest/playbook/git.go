package playbook

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
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
	const full = "write https://host/path, ssh://user@host/path, user@host:path or file:///path"
	bad := func(what, try string) error { return failure.New("GIT_ANSIBLE_URL "+what, try) }
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return bad("is empty", full)
	case strings.HasPrefix(raw, "-"):
		return bad("begins with a dash, like an option", full)
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return bad("has a space or a control character in it", "write a space as %20")
	case scpLike.MatchString(raw) && !strings.Contains(raw, "://"):
		return nil
	// file:/e://x is a path to us and a host called file to git.
	case err != nil || !strings.HasPrefix(raw[len(u.Scheme):], "://"):
		return bad("is no address that git may be given", full)
	}
	_, password := u.User.Password()
	switch {
	case u.Scheme != "https" && u.Scheme != "ssh" && u.Scheme != "file":
		return bad("uses a protocol that is not allowed", "use https, ssh or file")
	case password || u.User != nil && u.Scheme != "ssh":
		return bad("has credentials in it", "leave them to git's credential helpers")
	case u.RawQuery != "" || u.Fragment != "":
		return bad("has a query or a fragment", "give the address of the repository alone")
	case strings.HasPrefix(u.User.Username(), "-") || strings.HasPrefix(u.Hostname(), "-"):
		return bad("has a part that begins with a dash, like an option", full)
	case u.Scheme == "file" && (u.Host != "" || !strings.HasPrefix(u.Path, "/")):
		return bad("is a file address without an absolute path", "write file:///path")
	case u.Scheme != "file" && u.Hostname() == "":
		return bad("names no host", full)
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

// repository is a folder of a git repository at a branch, tag or commit. Of it
// is made a shallow, sparse clone.
type repository struct{ url, ref, path string }

// clone fetches the folder, without history, and its submodules at their
// commits to dir, which is made. It returns the commit's full name.
func (r repository) clone(ctx context.Context, dir string, report progress.Reporter) (commit string, err error) {
	report.Activity("fetching the playbooks from " + r.url)
	for _, args := range [][]string{
		{"init", "--quiet", "--template=", dir},
		// The remote's name is what a later checkout asks for missing files.
		{"-C", dir, "remote", "add", "origin", r.url},
	} {
		if _, err := r.git(ctx, args...); err != nil {
			return "", fmt.Errorf("making the clone: %w", err)
		}
	}
	// No file yet where the server can leave them out.
	if _, err := r.git(ctx, "-C", dir, "fetch", "--quiet", "--depth=1", "--no-tags", "--filter=blob:none", "origin", r.ref); err != nil {
		return "", r.fetchFailed(ctx, err)
	}
	commit, err = r.git(ctx, "-C", dir, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
	if err != nil {
		return "", fmt.Errorf("reading the commit of %s: %w", r.ref, err)
	}
	if err := r.checkout(ctx, dir); err != nil {
		return "", err
	}
	return strings.TrimSpace(commit), r.submodules(ctx, dir)
}

// openTree opens the tree of a commit, which lies in dir.
func (r repository) openTree(ctx context.Context, dir, commit string) (*Tree, error) {
	t, err := OpenTree(ctx, dir)
	if err == nil {
		t.URL, t.Revision = r.url, commit
	}
	return t, err
}

// fetchFailed is the error of git as it talked to the server.
func (r repository) fetchFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	lines := host.Tail(err)
	if absent.MatchString(strings.Join(lines, "\n")) {
		return &failure.Error{What: fmt.Sprintf("%s has no branch, tag or commit %q", r.url, r.ref), Lines: lines, Err: err,
			Try: "set GIT_ANSIBLE_BRANCH to one that is there (a commit by its full name)"}
	}
	reason, try := gitReason(lines)
	if reason != "" {
		reason = ": " + reason
	}
	return &failure.Error{What: fmt.Sprintf("the playbooks' repository %s cannot be read%s", r.url, reason), Lines: lines, Err: err, Try: try}
}

// absent is what git says of a reference that the server does not have.
var absent = regexp.MustCompile(`couldn't find remote ref|not our ref|unadvertised object`)

// gitReasons are lines of git and ssh that say what is wrong, wherever they
// stand, with what to do about it.
var gitReasons = []struct{ says, try string }{
	{"dubious ownership", "if you trust it: git config --global --add safe.directory with the folder that git names"},
	{"Host key verification failed", "put the host's key into known_hosts: ssh-keyscan shows it, compare it with what its owner says"},
	{"Permission denied", "give ssh (its agent or ~/.ssh) a key that may read it"},
	{"Authentication failed", "give git's credential helpers a login that may read it"},
	{"could not read Username", "give git's credential helpers a login that may read it"},
}

// gitNoise stands behind the reason, or before it, and is none.
var gitNoise = regexp.MustCompile(`^$|Could not read from remote repository|^Please make sure you have|^and the repository exists|^[Ww]arning: |^@|^hint: `)

// gitReason finds the line that says why git failed: its last ones never do.
func gitReason(lines []string) (reason, try string) {
	bare := func(line string) string {
		return strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "fatal: "), "remote: ")
	}
	for _, known := range gitReasons {
		for _, line := range lines {
			if strings.Contains(line, known.says) {
				return bare(line), known.try
			}
		}
	}
	for _, line := range lines {
		if line = bare(line); !gitNoise.MatchString(line) {
			return line, "is GIT_ANSIBLE_URL right, and the host reachable?"
		}
	}
	return "", "is GIT_ANSIBLE_URL right, the host reachable, and may git's credential helpers read it?"
}

// checkout writes the files of the path, and of no other directory.
func (r repository) checkout(ctx context.Context, dir string) error {
	object := "FETCH_HEAD:" + r.path
	if r.path == "." {
		object = "FETCH_HEAD^{tree}"
	}
	kind, err := r.git(ctx, "-C", dir, "cat-file", "-t", object)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil || strings.TrimSpace(kind) != "tree" {
		return failure.New(fmt.Sprintf("%s has no directory %q at %s", r.url, r.path, r.ref), "set GIT_ANSIBLE_PATH to the directory that holds the playbooks")
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
	return nil
}

// submodules fetches those of the path, at the commits that the repository names.
func (r repository) submodules(ctx context.Context, dir string) error {
	out, err := r.git(ctx, "-C", dir, "ls-tree", "-r", "-z", "--full-tree", "FETCH_HEAD", "--", r.path)
	if err != nil {
		return fmt.Errorf("reading the commit of %s: %w", r.ref, err)
	}
	var paths []string
	for entry := range strings.SplitSeq(out, "\x00") {
		if about, name, _ := strings.Cut(entry, "\t"); strings.HasPrefix(about, "160000 ") {
			paths = append(paths, name)
		}
	}
	if paths == nil {
		return nil
	}
	_, err = r.git(ctx, append([]string{"-C", dir, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", "--"}, paths...)...)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return &failure.Error{
			What:  fmt.Sprintf("the repository %s has submodules that cannot be fetched: %s", r.url, strings.Join(paths, ", ")),
			Lines: host.Tail(err), Err: err,
			Try: "are their addresses in .gitmodules right (https or ssh), and may git's credential helpers read them?",
		}
	}
	return nil
}

// git runs git so that it never asks, runs no hook and no helper protocol,
// touches no submodule unasked and gives up on a server that does not answer.
func (r repository) git(ctx context.Context, args ...string) (string, error) {
	env := append(gitVariables(), "LC_ALL=C", "LANGUAGE=") // its messages are read above
	if !strings.HasPrefix(r.url, "file:") {
		env = append(env, "GIT_ALLOW_PROTOCOL=https:ssh") // a server's submodules are none of this host's files
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
	return string(out), err
}

// gitVariables keep git from asking and from unwanted protocols, and let it
// reach a server through a proxy.
func gitVariables() []string {
	env := []string{
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=https:ssh:file",
		"GIT_SSH_COMMAND=ssh -o BatchMode=yes -o ConnectTimeout=30",
		"GIT_ATTR_NOSYSTEM=1",
	}
	for _, name := range []string{"https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "XDG_CONFIG_HOME"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}
