package fleet_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// course is a catalogue of so many images on parents, five children each.
func course(images int) string {
	var b strings.Builder
	b.WriteString("defaults: {ansible-dir: playbooks, size: 1G, memory: 256, cpus: 1, tags: [v1, latest]}\nimages:\n")
	for n := range images {
		if n%6 == 0 {
			fmt.Fprintf(&b, "- {name: parent-%d, base: {url: 'https://example.org/%d.img', checksum: 'sha256:%064d'}, playbook: base}\n", n, n, n)
		} else {
			fmt.Fprintf(&b, "- {name: child-%d, from: parent-%d, playbook: course-%d, vars: {number: %d}}\n", n, n-n%6, n%10, n)
		}
	}
	return b.String()
}

// newCourse writes that catalogue, with ten playbooks that share roles.
func newCourse(b *testing.B, images int) *site {
	s := newSite(b, course(images))
	b.Setenv("PATH", ansible) // the real one is asked for its version
	for n := range 10 {
		s.write(fmt.Sprintf("playbooks/course-%d.yml", n), fmt.Sprintf("- hosts: all\n  roles: [common, course, special-%d]\n", n))
		for file := range 20 {
			s.write(fmt.Sprintf("playbooks/roles/special-%d/files/%d", n, file), strings.Repeat("x", 4096))
		}
		s.write(fmt.Sprintf("playbooks/roles/special-%d/tasks/main.yml", n), "- ansible.builtin.debug: {msg: hello}\n")
	}
	return s
}

// BenchmarkAnUnchangedCatalogue runs build-all on 25 images, of two tags each,
// that a registry on loopback has already.
func BenchmarkAnUnchangedCatalogue(b *testing.B) {
	s, m := newCourse(b, 25), &maker{}
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(b, testkit.RegistryOptions{})
	began := time.Now()
	s.run(m)
	require.Len(b, m.taken(), 25)
	b.Logf("making them: %v", time.Since(began))
	for b.Loop() {
		s.env["OUTPUT_DIR"], s.env["CACHE_DIR"] = b.TempDir(), b.TempDir()
		s.run(m)
	}
	require.Empty(b, m.taken())
}

// BenchmarkPlanningAThousandImages plans a thousand images that nobody has, by
// OUTPUT_DIR alone.
func BenchmarkPlanningAThousandImages(b *testing.B) {
	s := newCourse(b, 1000)
	b.ReportAllocs()
	require.NoError(b, testkit.ResetPeak())
	for b.Loop() {
		entries, err := s.all(nil).Plan(b.Context())
		require.NoError(b, err)
		require.Len(b, entries, 1000)
	}
	mib, err := testkit.PeakMiB()
	require.NoError(b, err)
	b.ReportMetric(mib, "MiB-peak")
}
