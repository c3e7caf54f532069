//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// packaged are what each course adds to the common part: a small package.
var packaged = []string{"sqlite3", "jq", "graphviz", "units", "bc", "minisat", "gawk", "flex", "bison", "indent"}

// common is what the courses have in common: tools for programming.
const common = `
- ansible.builtin.import_playbook: debian-base.yml
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Install what every course needs
      ansible.builtin.apt:
        name: [build-essential, clang, cmake, gdb, git, python3-dev, python3-pip, python3-scipy, python3-venv, valgrind]
        update_cache: true
        lock_timeout: 600
`

// course is a course's own part.
const course = `
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Install what this course needs
      ansible.builtin.apt:
        name: %s
        update_cache: true
        lock_timeout: 600
`

// courses writes the playbooks for n courses into a copy of diskforge's own
// tree: common.yml, child-N.yml for an image that starts from the common one,
// and single-N.yml, which does the work of both.
func courses(b *testing.B, n int) (tree string) {
	b.Helper()
	tree = b.TempDir()
	require.NoError(b, os.CopyFS(tree, os.DirFS(filepath.Join(root(b), "ansible"))))
	playbook := func(name, text string) {
		require.NoError(b, os.WriteFile(filepath.Join(tree, "playbooks", name), []byte("---"+text), 0o644))
	}
	playbook("common.yml", common)
	for i, name := range packaged[:n] {
		playbook(fmt.Sprintf("child-%d.yml", i), fmt.Sprintf(course, name))
		playbook(fmt.Sprintf("single-%d.yml", i), fmt.Sprintf("\n- ansible.builtin.import_playbook: common.yml\n- ansible.builtin.import_playbook: child-%d.yml\n", i))
	}
	return tree
}

// BenchmarkFleet measures how much faster images are built that start from one
// parent, which is built, too, than as many that each do the parent's work, one
// after another: the same packages, in the same run. It takes about an hour
// without KVM; DISKFORGE_BENCH_IMAGES asks for another number than five.
func BenchmarkFleet(b *testing.B) {
	n := 5
	if v := os.Getenv("DISKFORGE_BENCH_IMAGES"); v != "" {
		var err error
		n, err = strconv.Atoi(v)
		require.NoError(b, err)
		require.True(b, n > 0 && n <= len(packaged), "DISKFORGE_BENCH_IMAGES: 1 to %d", len(packaged))
	}
	tree := courses(b, n)
	prepared := start(b, map[string]string{"SUITE": "bookworm"}, diskforge(b), "base") // neither side shall pay for it
	require.Zero(b, prepared.wait(time.Hour), prepared.errors())
	for b.Loop() {
		together := buildTogether(b, tree, n)
		alone := buildOneByOne(b, tree, n)
		b.ReportMetric(together.Seconds(), "build-all-s")
		b.ReportMetric(alone.Seconds(), "singles-s")
		b.ReportMetric(alone.Seconds()/together.Seconds(), "times-faster")
	}
}

func buildTogether(b *testing.B, tree string, n int) time.Duration {
	b.Helper()
	out := b.TempDir()
	var list strings.Builder
	fmt.Fprintf(&list, "defaults: {ansible-dir: %q}\nimages:\n  - {name: common, base: {packages: bookworm}, playbook: common}\n", tree)
	for i := range n {
		fmt.Fprintf(&list, "  - {name: child-%d, from: common, playbook: child-%d}\n", i, i)
	}
	catalogue := filepath.Join(out, "catalogue.yaml")
	require.NoError(b, os.WriteFile(catalogue, []byte(list.String()), 0o644))
	return timed(b, map[string]string{"OUTPUT_DIR": out}, "build-all", "--catalogue", catalogue)
}

func buildOneByOne(b *testing.B, tree string, n int) (total time.Duration) {
	b.Helper()
	for i := range n {
		env := fromPackages(b.TempDir(), tree)
		env["SUITE"], env["ANSIBLE_PLAYBOOK"] = "bookworm", fmt.Sprintf("single-%d", i)
		total += timed(b, env, "build")
	}
	return total
}

// timed runs diskforge, which must succeed, and deletes what it built.
func timed(b *testing.B, env map[string]string, args ...string) time.Duration {
	b.Helper()
	began := time.Now()
	r := start(b, env, diskforge(b), args...)
	require.Zero(b, r.wait(4*time.Hour), r.errors())
	took := time.Since(began)
	require.NoError(b, os.RemoveAll(env["OUTPUT_DIR"]))
	return took
}
