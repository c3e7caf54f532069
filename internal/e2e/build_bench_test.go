//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

// BenchmarkBuild measures what a build takes beyond the programs that do its
// work: the time in which neither Packer nor qemu-img nor the guest that
// verify boots is running, in the same run; and what verify takes beyond one
// boot, which ends with cloud-init: looking, pictures, powering off. The base
// image and the tools are there already.
func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		out := b.TempDir()
		env := fromPackages(out, "")
		delete(env, "ANSIBLE_DIR")
		env["ANSIBLE_PLAYBOOK"] = "debian-base"
		began := time.Now()
		r := start(b, env, diskforge(b), "build")
		busy := watchPrograms(r.done, out, "packer", "qemu-img", "qemu-system-x86_64")
		code := r.wait(time.Hour)
		total := time.Since(began)
		require.Zero(b, code, r.errors())
		times := <-busy
		working := times["any"]
		b.ReportMetric(total.Seconds(), "total-s")
		b.ReportMetric(times["packer"].Seconds(), "packer-s")
		b.ReportMetric((working - times["packer"]).Seconds(), "convert-and-boot-s")
		b.ReportMetric((total - working).Seconds(), "overhead-s")
		b.ReportMetric(100*(total-working).Seconds()/working.Seconds(), "overhead-%")
		told := readReport(b, out)
		boot := moment(b, told, "cloud-init done")
		b.ReportMetric(boot.Seconds(), "verify-boot-s")
		b.ReportMetric((stage(b, told, "verify").Took - boot).Seconds(), "verify-beyond-boot-s")
		_ = os.RemoveAll(out)
	}
}

// moment is when something happened in the guest that was verified, since power on.
func moment(t testing.TB, r *report.Report, name string) time.Duration {
	t.Helper()
	for _, m := range r.Boot {
		if m.Name == name {
			return m.At
		}
	}
	require.Fail(t, "the report does not say when: "+name)
	return 0
}

// sampling is how often the running programs are looked at.
const sampling = 20 * time.Millisecond

// watchPrograms sums up how long processes of these programs that work below
// dir were running, and how long any of them was, until done is closed.
func watchPrograms(done <-chan struct{}, dir string, programs ...string) <-chan map[string]time.Duration {
	result := make(chan map[string]time.Duration, 1)
	go func() {
		times := map[string]time.Duration{}
		last := time.Now()
		for {
			select {
			case <-done:
				result <- times
				return
			case <-time.After(sampling):
			}
			now := time.Now()
			seen := map[string]bool{}
			for _, p := range processes(dir) {
				name, _, _ := strings.Cut(p.command, " ")
				for _, program := range programs {
					if filepath.Base(name) == program {
						seen[program], seen["any"] = true, true
					}
				}
			}
			for name := range seen {
				times[name] += now.Sub(last)
			}
			last = now
		}
	}()
	return result
}
