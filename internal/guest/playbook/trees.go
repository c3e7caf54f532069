package playbook

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Trees opens playbook trees to look into, each once however many images
// share it; one that cannot be opened is not tried again. Nothing is copied but
// what comes from git. The zero value is ready once Dir is set; its methods may
// be called at the same time.
type Trees struct {
	// Dir is a directory of ours for trees from git, by commit: one that is
	// there is not fetched again. It is created.
	Dir string

	mu   sync.Mutex
	open map[string]*opening
}

type opening struct {
	sync.Mutex
	tree *Tree
	err  error
}

// Open returns the tree that opts name, of which Playbook and Dir do not
// matter. It is Trees that closes it.
func (t *Trees) Open(ctx context.Context, opts Options, report progress.Reporter) (*Tree, error) {
	o := t.opening(opts)
	o.Lock()
	defer o.Unlock()
	if o.tree != nil || o.err != nil {
		return o.tree, o.err
	}
	tree, err := t.read(ctx, opts, report)
	if err == nil {
		tree.Vault = opts.Vault
	}
	if ctx.Err() == nil { // whoever comes next may have more time
		o.err = err
	}
	if err == nil {
		o.tree = tree
	}
	return o.tree, err
}

func (t *Trees) opening(opts Options) *opening {
	// There is only one tree that the program carries.
	key := fmt.Sprintf("%q %q %q %q %t %q", opts.AnsibleDir, opts.GitURL, opts.GitBranch, opts.GitPath, opts.Embedded != nil, opts.Vault)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[string]*opening{}
	}
	if t.open[key] == nil {
		t.open[key] = &opening{}
	}
	return t.open[key]
}

// Close gives the directories back.
func (t *Trees) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all error
	for key, o := range t.open {
		if o.tree != nil {
			all = errors.Join(all, o.tree.Close())
		}
		delete(t.open, key)
	}
	return all
}

func (t *Trees) read(ctx context.Context, opts Options, report progress.Reporter) (*Tree, error) {
	switch {
	case opts.AnsibleDir != "":
		dir, err := filepath.Abs(opts.AnsibleDir)
		if err != nil {
			return nil, err
		}
		if err := missingSubmodule(dir); err != nil {
			return nil, err
		}
		tree, err := OpenTree(ctx, dir, opts.Results...)
		if err != nil {
			return nil, err
		}
		tree.URL = dir
		return tree, nil
	case opts.GitURL != "" || opts.GitBranch != "":
		return t.fromGit(ctx, opts, report)
	case opts.Embedded != nil:
		return NewTree(ctx, opts.Embedded)
	}
	return nil, errNoSource()
}

// fromGit opens the tree of the commit that the server names now.
func (t *Trees) fromGit(ctx context.Context, opts Options, report progress.Reporter) (*Tree, error) {
	r, err := opts.repository("")
	if err != nil {
		return nil, err
	}
	commit, err := r.commit(ctx)
	if err != nil {
		return nil, err
	}
	dir := t.place(r, commit)
	if _, err := os.Stat(dir); commit == "" || err != nil {
		if commit, err = t.fetch(ctx, opts, r, report); err != nil {
			return nil, err
		}
		dir = t.place(r, commit)
	}
	tree, err := OpenTree(ctx, dir)
	if err == nil {
		tree.URL, tree.Revision = r.url, commit
	}
	return tree, err
}

// place is where the tree of a commit is kept.
func (t *Trees) place(r repository, commit string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "with submodules %q %q %q", r.url, r.path, commit))
	return filepath.Join(t.Dir, hex.EncodeToString(sum[:16]))
}

// fetch fetches a tree to its place and returns its commit.
func (t *Trees) fetch(ctx context.Context, opts Options, r repository, report progress.Reporter) (string, error) {
	if err := os.MkdirAll(t.Dir, 0o700); err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	temp, err := os.MkdirTemp(t.Dir, ".fetch-")
	if err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	defer os.RemoveAll(temp)
	root := filepath.Join(temp, "tree")
	s, err := fromGit(ctx, opts, temp, root, report)
	if err != nil {
		return "", err
	}
	if err := os.Rename(root, t.place(r, s.Revision)); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("keeping the playbooks: %w", err)
	}
	return s.Revision, nil
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
		for _, n := range []string{name + "^{}", name} { // of an annotated tag, the commit
			if commit := listed[n]; commit != "" {
				return commit, nil
			}
		}
	}
	return "", nil
}
