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

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Trees opens playbook trees to look into, each once however many images
// share it; one that cannot be opened is not tried again. Nothing is copied but
// what comes from git. The zero value is ready once Dir is set. It is for one
// goroutine.
type Trees struct {
	// Dir is a directory of ours for trees from git, by commit: one that is
	// there is not fetched again. It is created.
	Dir string

	opened map[string]opened
}

type opened struct {
	tree *Tree
	err  error
}

// Open returns the tree that opts name, of which Playbook and Dir do not
// matter. It is Trees that closes it.
func (t *Trees) Open(ctx context.Context, opts Options, report progress.Reporter) (*Tree, error) {
	// There is only one tree that the program carries.
	key := fmt.Sprintf("%q %q %q %q %t %q", opts.AnsibleDir, opts.GitURL, opts.GitBranch, opts.GitPath, opts.Embedded != nil, opts.Vault)
	if known, ok := t.opened[key]; ok {
		return known.tree, known.err
	}
	tree, err := opts.open(ctx, func(r repository) (*Tree, error) { return t.fromGit(ctx, r, report) })
	if err == nil {
		tree.Vault = opts.Vault
	}
	if ctx.Err() == nil || err == nil { // whoever comes next may have more time
		if t.opened == nil {
			t.opened = map[string]opened{}
		}
		t.opened[key] = opened{tree, err}
	}
	return tree, err
}

// Close gives the directories back.
func (t *Trees) Close() error {
	var all error
	for _, o := range t.opened {
		if o.tree != nil {
			all = errors.Join(all, o.tree.Close())
		}
	}
	t.opened = nil
	return all
}

// fromGit opens the tree of the commit that the server names now.
func (t *Trees) fromGit(ctx context.Context, r repository, report progress.Reporter) (*Tree, error) {
	commit, err := r.commit(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(t.place(r, commit)); commit == "" || err != nil {
		if commit, err = t.fetch(ctx, r, report); err != nil {
			return nil, err
		}
	}
	return r.openTree(ctx, t.place(r, commit), commit)
}

// place is where the tree of a commit is kept.
func (t *Trees) place(r repository, commit string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "with submodules %q %q %q", r.url, r.path, commit))
	return filepath.Join(t.Dir, hex.EncodeToString(sum[:16]))
}

// fetch fetches a tree to its place and returns its commit.
func (t *Trees) fetch(ctx context.Context, r repository, report progress.Reporter) (string, error) {
	if err := os.MkdirAll(t.Dir, 0o700); err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	temp, err := os.MkdirTemp(t.Dir, ".fetch-")
	if err != nil {
		return "", fmt.Errorf("making the playbooks' directory: %w", err)
	}
	defer os.RemoveAll(temp)
	commit, err := r.clone(ctx, temp, report)
	if err != nil {
		return "", err
	}
	// What git needs is none of the tree, where that is the whole repository.
	err = os.RemoveAll(filepath.Join(temp, ".git"))
	if err == nil {
		err = os.Rename(filepath.Join(temp, filepath.FromSlash(r.path)), t.place(r, commit))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("keeping the playbooks: %w", err)
	}
	return commit, nil
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
