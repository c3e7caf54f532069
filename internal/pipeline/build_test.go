package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// newBuild is a build whose user interface writes into a buffer.
func newBuild(t *testing.T) (*Build, *bytes.Buffer) {
	t.Helper()
	out := &bytes.Buffer{}
	u := ui.New(out, false)
	t.Cleanup(u.Close)
	return &Build{UI: u, Config: settings.Config{OutputDir: t.TempDir(), ImageName: "course", Architecture: "amd64"}}, out
}

func opened(t *testing.T, b *Build) *Dir {
	t.Helper()
	dir, err := OpenDir(filepath.Join(b.Config.OutputDir, "work"))
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// whole is the way of a whole build.
func whole(t *testing.T, b *Build) *way {
	t.Helper()
	w := b.way(opened(t, b))
	w.whole = true
	return w
}

// note is what a stage of a test tells.
type note struct{ Text string }

func (n *note) String() string    { return n.Text }
func (*note) fill(*report.Report) {}
func (*note) leave(*way)          {}

// counted is a stage that writes its content and counts its runs.
func counted(inputs, content string, runs *int) stage {
	return stage{
		name: "count", file: "counted", inputs: func(*way) string { return inputs },
		run: func(_ *way, _ context.Context, out string, _ progress.Reporter) (result, error) {
			*runs++
			return &note{"result of " + content}, os.WriteFile(out, []byte(content), 0o600)
		},
		empty: func() result { return new(note) },
	}
}

func TestAFinishedStageIsRunAgainOnlyWhereItsInputsOrItsOutputChanged(t *testing.T) {
	b, out := newBuild(t)
	w := whole(t, b)
	runs := 0
	run := func(inputs string) string {
		require.NoError(t, w.run(t.Context(), counted(inputs, inputs, &runs)))
		assert.Equal(t, w.dir.Path("counted"), w.disk)
		return w.known.Digest
	}
	first := run("one")
	assert.Equal(t, first, run("one"))
	assert.Equal(t, 1, runs)
	assert.Contains(t, out.String(), "done before")

	second := run("two")
	assert.Equal(t, 2, runs)
	assert.NotEqual(t, first, second)

	require.NoError(t, os.WriteFile(w.dir.Path("counted"), []byte("twO"), 0o600))
	assert.Equal(t, second, run("two"), "a tampered output is made again")
	assert.Equal(t, 3, runs)

	require.NoError(t, w.dir.Forget("count"))
	assert.NoFileExists(t, w.dir.Path("counted"))
}

func TestAFailedStageIsNamedAndNotRecorded(t *testing.T) {
	b, _ := newBuild(t)
	w := whole(t, b)
	runs := 0
	s := counted("x", "x", &runs)
	s.run = func(*way, context.Context, string, progress.Reporter) (result, error) { return nil, errors.New("boom") }
	require.EqualError(t, w.run(t.Context(), s), "count: boom")
	require.NoError(t, w.run(t.Context(), counted("x", "x", &runs)))
	assert.Equal(t, 1, runs)
}

func TestASignalIsTheCauseOfWhatItStopped(t *testing.T) {
	b, _ := newBuild(t)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	w := b.way(nil)
	err := w.show(ctx, "slow", func(context.Context, progress.Reporter) (string, error) {
		cancel(stop)
		return "", errors.New("exit status 1")
	})
	require.EqualError(t, err, "slow: stopped by the test")
	started := false
	require.ErrorIs(t, w.show(ctx, "next", func(context.Context, progress.Reporter) (string, error) { started = true; return "", nil }), stop)
	assert.False(t, started)
}

// aReady is what a build of Debian 12 has at hand.
func aReady() ready {
	return ready{
		base:       origin{Name: "https://example.org/debian.qcow2", Digest: "sha256:base", Inputs: "sha256:base", Created: time.Unix(1700000000, 0), Guest: playbook.Guest{Name: "Debian 12", Python: "3.11"}, Known: true},
		playbook:   playbook.Source{File: "debian-base.yml", Revision: "abc", URL: "https://example.org/playbooks.git"},
		controller: "2.14.18", playbookInputs: playbook.Inputs{Digest: "sha256:playbook"},
	}
}

// provisionedWay is the way of a build behind its provisioning.
func provisionedWay(t *testing.T, b *Build, built time.Time) *way {
	t.Helper()
	w := b.way(nil)
	w.ready = aReady()
	(&provisioned{Built: built}).leave(w)
	return w
}

func TestEveryInputOfADiskChangesItsDigest(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(*Build, *ready){
		"nothing":    func(*Build, *ready) {},
		"base":       func(_ *Build, r *ready) { r.base.Digest = "sha256:other" },
		"playbook":   func(_ *Build, r *ready) { r.playbookInputs = playbook.Inputs{Digest: "sha256:other"} },
		"controller": func(_ *Build, r *ready) { r.controller = "2.19.0" },
		"disk size":  func(b *Build, _ *ready) { b.Config.DiskSize++ },
		"build user": func(b *Build, _ *ready) { b.Config.BuildUser = "x" },
		"vm user":    func(b *Build, _ *ready) { b.Config.VMUser = "x" },
		"baked":      func(b *Build, _ *ready) { b.Config.BakeUser = true },
		"desktop":    func(b *Build, _ *ready) { b.Config.Desktop = true },
		"variables":  func(b *Build, _ *ready) { b.Config.ExtraVars = map[string]any{"a": 1} },
		"mirror":     func(b *Build, _ *ready) { b.Config.AptMirror = "http://mirror" },
	} {
		b, _ := newBuild(t)
		r := aReady()
		change(b, &r)
		w := b.way(nil)
		w.ready = r
		digest := w.provisionInputs()
		assert.Empty(t, seen[digest], "%s changes nothing", name)
		seen[digest] = name
	}
	b, _ := newBuild(t)
	b.Config.ImageName, b.Config.ImageTag, b.Config.OutputDir, b.Config.MemoryMiB = "other", "2", "/elsewhere", 4096
	w := b.way(nil)
	w.ready = aReady()
	assert.Equal(t, "nothing", seen[w.provisionInputs()], "neither name nor place nor the guest's memory is an input")
	elsewhere := aReady()
	elsewhere.playbook.Revision, elsewhere.playbook.File = "def", "playbooks/debian-base.yml"
	w.ready = elsewhere
	assert.Equal(t, "nothing", seen[w.provisionInputs()], "nor is a commit that changed nothing of the playbook")
}

func TestAnImageTellsWhatItWasMadeFrom(t *testing.T) {
	b, _ := newBuild(t)
	w := provisionedWay(t, b, time.Unix(1750000000, 5).In(time.FixedZone("", 3600)))
	m := w.metadata()
	assert.Equal(t, "debian", aReady().base.distribution())
	assert.Equal(t, "course", m.Title)
	assert.Equal(t, "abc", m.Revision)
	assert.Equal(t, time.Unix(1700000000, 0), m.Created)
	assert.Equal(t, "2025-06-15T15:06:40Z", m.Annotations[oci.AnnotationBuilt])
	assert.Equal(t, imageInputs(b.Config, "sha256:base", "sha256:playbook", "2.14.18"), m.Annotations[oci.AnnotationInputs])
	b.Config.SourceDateEpoch = "1600000000"
	assert.Equal(t, time.Unix(1600000000, 0), w.metadata().Created)
}

// An image with a hint for UEFI and a disk for a BIOS ended at the UEFI shell.
func TestTheHintsFitTheDisksFirmware(t *testing.T) {
	bios := filepath.Join(t.TempDir(), "bios.raw")
	require.NoError(t, os.WriteFile(bios, append([]byte{0xeb, 0x63}, append(make([]byte, 508), 0x55, 0xaa)...), 0o600))
	require.NoError(t, os.Truncate(bios, 1<<20))
	for _, c := range []struct{ distribution, instanceType, preference, hints string }{
		{"debian", "", "", "u1.medium linux"}, // debian means UEFI
		{"ubuntu", "", "", "u1.medium ubuntu"},
		{"", "", "", " "},
		{"debian", "none", "none", " "},
		{"debian", "o1.small", "fedora", "o1.small fedora"},
		{"", "", "ubuntu", " ubuntu"},
	} {
		b, _ := newBuild(t)
		b.Config.InstanceType, b.Config.Preference = c.instanceType, c.preference
		var m oci.Metadata
		require.NoError(t, hint(b.Config, &m, bios, c.distribution))
		assert.Equal(t, c.hints, m.InstanceType+" "+m.Preference, c)
	}
	uefi, both := disk.Firmware{UEFI: true}, disk.Firmware{BIOS: true, UEFI: true}
	assert.Equal(t, "debian", oci.PreferenceFor("debian", both))
	assert.Equal(t, "ubuntu", oci.PreferenceFor("ubuntu", both))
	assert.Equal(t, "linux.efi", oci.PreferenceFor("ubuntu", uefi))
	assert.Equal(t, "linux", oci.PreferenceFor("nixos", both))
}

func TestABasesNameTellsNeitherPasswordsNorPaths(t *testing.T) {
	for raw, public := range map[string]string{
		"https://user:secret@example.org/a/debian.qcow2?token=secret#x": "https://example.org/a/debian.qcow2",
		"/home/somebody/debian.qcow2":                                   "debian.qcow2",
		"file:///home/somebody/debian.qcow2":                            "debian.qcow2",
	} {
		assert.Equal(t, public, publicName(raw))
	}
}

// aDisk writes a small raw disk.
func aDisk(t *testing.T) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	copy(disk[510:], "\x55\xaa")
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, disk, 0o600))
	return path
}

func TestAnImageThatWasNotVerifiedIsNotPushed(t *testing.T) {
	b, _ := newBuild(t)
	layout := filepath.Join(t.TempDir(), "layout")
	packed, err := b.PackTo(t.Context(), aDisk(t), layout)
	require.NoError(t, err)
	_, err = b.PushLayout(t.Context(), layout, "127.0.0.1:9/labs/x:1", false)
	require.ErrorContains(t, err, "--unverified")
	b.Config.Outputs, b.Config.CacheDir = "qcow2", t.TempDir()
	for _, image := range []string{layout, packed} { // a path, and as it was printed: oci:DIR@DIGEST
		_, err = b.ExportTo(t.Context(), image, t.TempDir(), false)
		require.ErrorContains(t, err, "was not verified")
	}
	_, err = b.PushLayout(t.Context(), layout, "", true)
	require.ErrorContains(t, err, "no address")
	require.ErrorIs(t, err, registry.ErrReference)
	_, err = b.PushLayout(t.Context(), t.TempDir(), "127.0.0.1:9/labs/x", false)
	require.ErrorContains(t, err, "it has no tag", "before the layout is looked at")
}

func TestALayoutThatInspectRefusesIsNotThereAndTheOneBeforeStays(t *testing.T) {
	b, _ := newBuild(t)
	layout := filepath.Join(t.TempDir(), "layout")
	before, err := b.PackTo(t.Context(), aDisk(t), layout)
	require.NoError(t, err)

	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	for _, args := range [][]string{{"create", "-q", "-f", "qcow2", disk, "1M"}, {"bitmap", "--add", "-f", "qcow2", disk, "backup"}} {
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	_, err = b.PackTo(t.Context(), disk, layout)
	require.ErrorContains(t, err, "pack: inspect: "+layout+" breaks the contract of containerdisks: ")
	after, err := oci.Load(layout)
	require.NoError(t, err)
	assert.Equal(t, "oci:"+layout+"@"+after.Digest, before)
	entries, err := os.ReadDir(filepath.Dir(layout))
	require.NoError(t, err)
	for _, e := range entries {
		assert.NotContains(t, e.Name(), "part")
	}
}

func TestAFailedVerifyTakesTheMarkOfAnEarlierOneAway(t *testing.T) {
	b, _ := newBuild(t)
	b.Config.Accelerator, b.Config.CacheDir, b.Config.VMUser, b.Config.BuildUser = "tcg", t.TempDir(), "crownlabs", "diskforge"
	b.Config.MemoryMiB, b.Config.CPUs, b.Config.BootTimeout = 64, 1, 300*time.Millisecond
	disk := aDisk(t) // it never boots
	known, err := ReadSidecar(t.Context(), disk, progress.Discard.Warn)
	require.NoError(t, err)
	known.Verified = known.Digest
	require.NoError(t, WriteSidecar(disk, known))
	require.Error(t, b.VerifyDisk(t.Context(), disk))
	known, err = ReadSidecar(t.Context(), disk, progress.Discard.Warn)
	require.NoError(t, err)
	assert.False(t, known.IsVerified())
}

func TestWhatIsKnownOfADiskGoesIntoItsImage(t *testing.T) {
	b, _ := newBuild(t)
	disk := aDisk(t)
	b.Config.InstanceType = "none"
	known, err := ReadSidecar(t.Context(), disk, progress.Discard.Warn)
	require.NoError(t, err)
	known.Verified, known.Revision, known.Guest, known.Built = known.Digest, "abc", "debian", time.Unix(1750000000, 0)
	require.NoError(t, WriteSidecar(disk, known))
	layout := filepath.Join(t.TempDir(), "layout")
	_, err = b.PackTo(t.Context(), disk, layout)
	require.NoError(t, err)
	loaded, err := oci.Load(layout)
	require.NoError(t, err)
	assert.True(t, loaded.Verified)
	assert.Equal(t, "abc", loaded.Annotations["org.opencontainers.image.revision"])
	assert.Equal(t, "2025-06-15T15:06:40Z", loaded.Annotations[oci.AnnotationBuilt])
	assert.NotContains(t, loaded.Annotations, oci.AnnotationInputs, "what is not known is left out")
}

func TestThePasswordFileIsReadWithoutItsLineEnd(t *testing.T) {
	b, _ := newBuild(t)
	file := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(file, []byte("word\r\n"), 0o600))
	b.Config.RegistryUser, b.Config.RegistryPassFile = "me", file
	o, err := RegistryOptions(b.Config, "")
	require.NoError(t, err)
	assert.Equal(t, "word", o.Password)
	require.NoError(t, os.WriteFile(file, []byte("\n"), 0o600))
	_, err = RegistryOptions(b.Config, "")
	f, ok := failure.In(err)
	require.True(t, ok)
	assert.Contains(t, f.What, "no password")
}

func TestAnImageOfOtherInputsThanPlannedIsNotBuilt(t *testing.T) {
	b, _ := newBuild(t)
	w := b.way(nil)
	w.ready = aReady()
	require.NoError(t, w.checkPlan(), "nothing was planned")
	b.Config.ImageInputs = imageInputs(b.Config, "sha256:base", "sha256:playbook", "2.14.18")
	require.NoError(t, w.checkPlan())
	w.controller = "2.19.4"
	require.ErrorContains(t, w.checkPlan(), "with ansible-core 2.19.4: make the plan with")
}

func TestInputsAreTheSameBeforeAndAfterTheBaseIsThere(t *testing.T) {
	for name, of := range map[string]settings.Config{
		"a checksum": {Checksum: "sha256:ba5e"},
		"an image":   {BaseImage: settings.BaseImage{Reference: "registry/base:1", Digest: "sha256:ba5e"}},
	} {
		planned, err := plannedInputs(of, "2.14.18", "sha256:playbook", "")
		require.NoError(t, err)
		assert.Equal(t, imageInputs(of, "sha256:ba5e", "sha256:playbook", "2.14.18"), planned, name)
	}
	b, _ := newBuild(t)
	b.Config.BaseFromPackages, b.Config.Suite, b.Config.CacheDir = true, "bookworm", t.TempDir()
	one, err := plannedInputs(b.Config, "2.14.18", "sha256:playbook", "")
	require.NoError(t, err)
	b.Config.Suite = "trixie"
	other, err := plannedInputs(b.Config, "2.14.18", "sha256:playbook", "")
	require.NoError(t, err)
	assert.NotEqual(t, one, other)
}

func TestAStageThatEndedTooLongAgoIsRunAgain(t *testing.T) {
	b, _ := newBuild(t)
	w := whole(t, b)
	runs := 0
	for range 2 {
		require.NoError(t, w.run(t.Context(), counted("x", "x", &runs)))
	}
	assert.Equal(t, 1, runs)
	b.NotBefore = time.Now().Add(time.Hour)
	require.NoError(t, w.run(t.Context(), counted("x", "x", &runs)))
	assert.Equal(t, 2, runs)
}

// dirty is a failure with one finding.
func dirty(what, line string) error {
	f := failure.New(what, "mend it")
	f.Lines = []string{line}
	return f
}

func TestWhatIsWrongAtRestAndWhatIsWrongInTheGuestAreToldTogether(t *testing.T) {
	assert.NoError(t, together(nil, nil))
	assert.EqualError(t, together(errors.New("broken"), nil), "broken")
	both := together(dirty("at rest", "a key"), dirty("in the guest", "a unit"))
	f, ok := failure.In(both)
	require.True(t, ok)
	assert.Equal(t, []string{"a key", "a unit"}, f.Lines)
	assert.Equal(t, "at rest: mend it; in the guest: mend it", both.Error())
}

func TestTheSecretsOfABuildAreEverythingThatMayBeOne(t *testing.T) {
	b, _ := newBuild(t)
	b.Config.RegistryUser, b.Config.RegistryPass = "me", "registry-word"
	b.Config.HTTPProxy, b.Config.GitURL = "http://me:proxy-word@proxy:3128", "https://me:git-word@example.org/x.git"
	b.Config.Checksum = "file:https://me:list-word@example.org/SHA256SUMS?sig=signed-word&x=1"
	b.Config.ExtraVars = map[string]any{
		"course": "databases", "db_password": "course-word", "rootPassword": 12345678, "api": map[string]any{"token": "nested-word", "url": "https://example.org"},
		"secrets": []any{map[string]any{"name": "listed-word"}}, "keyboard_layout": "italian", "bypass_proxy": "yes-please", "ssh_key": "ssh-ed25519 AAAA public",
	}
	vault, program := filepath.Join(t.TempDir(), "vault"), filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(vault, []byte("vault-word\n"), 0o600))
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700))
	b.Config.VaultPasswordFile, b.Config.VaultIdentities = vault, "x@"+program
	secrets, err := b.way(nil).secrets()
	require.NoError(t, err)
	var values []string
	for _, s := range secrets {
		values = append(values, s.Value)
		assert.NotContains(t, s.Name, "-word")
	}
	assert.ElementsMatch(t, []string{
		"registry-word", "proxy-word", "git-word", "list-word", "signed-word", "course-word", "12345678", "nested-word", "listed-word", "vault-word",
	}, values)
}

func TestNoSecretIsInWhatIsToldOfAFailure(t *testing.T) {
	b, _ := newBuild(t)
	b.Config.ExtraVars = map[string]any{"db_password": "hunter2222"}
	w := b.way(nil)
	w.journal.note((&provisioned{Tasks: []report.Task{{Name: "Fill it with hunter2222", Status: report.Failed, Detail: "mysql -phunter2222: denied"}}}).fill)
	err := w.show(t.Context(), "provision", func(context.Context, progress.Reporter) (string, error) {
		return "", dirty("mysql -phunter2222 failed", "Access denied: hunter2222")
	})
	require.EqualError(t, err, "provision: mysql -p*** failed: mend it")
	f, ok := failure.In(err)
	require.True(t, ok)
	assert.Equal(t, []string{"Access denied: ***"}, f.Lines)
	require.Error(t, w.conclude(err))
	for _, name := range []string{"report.json", "report.html"} {
		text, err := os.ReadFile(filepath.Join(b.Config.OutputDir, name))
		require.NoError(t, err)
		assert.NotContains(t, string(text), "hunter2222")
	}
	told, err := json.Marshal(w.outcome(report.Built))
	require.NoError(t, err)
	assert.NotContains(t, string(told), "hunter2222")
}

func TestWhatIsKnownIsMaskedWhereThePasswordFileCannotBeRead(t *testing.T) {
	for what, file := range map[string]string{"gone": filepath.Join(t.TempDir(), "gone"), "empty": os.DevNull} {
		t.Run(what, func(t *testing.T) {
			b, out := newBuild(t)
			b.Config.ExtraVars = map[string]any{"db_password": "hunter2222", "key": "first-line\nsecond-line"}
			b.Config.RegistryUser, b.Config.RegistryPassFile = "me", file
			err := b.way(nil).show(t.Context(), "provision", func(_ context.Context, p progress.Reporter) (string, error) {
				p.Activity("Ansible: fill it with hunter2222")
				p.Warn("hunter2222")
				return "", fmt.Errorf("with hunter2222: %w", dirty("mysql -phunter2222 failed", "second-line"))
			})
			b.UI.Fail(err)
			f, ok := failure.In(err)
			require.True(t, ok, "the evidence is kept")
			assert.Equal(t, []string{"***"}, f.Lines)
			for _, told := range []string{out.String(), err.Error()} {
				assert.NotContains(t, told, "hunter2222")
				assert.Contains(t, told, "***")
			}
		})
	}
}

func TestAPasswordThatComesThroughAPipeIsReadOnce(t *testing.T) {
	b, _ := newBuild(t)
	file := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(file, []byte("word\n"), 0o600))
	b.Config.RegistryUser, b.Config.RegistryPassFile = "me", file
	w := b.way(nil)
	for range 2 {
		o, err := w.login()
		require.NoError(t, err)
		assert.Equal(t, "word", o.Password)
		_ = os.Remove(file) // as if it had been drained
	}
}

func TestAReportTellsWhatWasGivenAndNoSecret(t *testing.T) {
	given := givenSettings(settings.Settings{
		"ISO_URL": "https://me:secret@example.org/x.qcow2?sig=secret", "REGISTRY_PASS": "secret", "EXTRA_VARS": `{"password": "secret"}`,
		"ISO_CHECKSUM": "file:https://me:secret@example.org/SHA256SUMS?sig=secret", "DISK_SIZE": "20G", "HTTP_PROXY": "http://me:secret@proxy:3128", "MEMORY": "2048",
	})
	assert.Equal(t, []report.Setting{
		{Name: "ISO_URL", Value: "https://example.org/x.qcow2"}, {Name: "ISO_CHECKSUM", Value: "file:https://example.org/SHA256SUMS"}, {Name: "EXTRA_VARS", Value: "(given)"},
		{Name: "DISK_SIZE", Value: "20G"}, {Name: "HTTP_PROXY", Value: "http://proxy:3128"},
	}, given)
	assert.Empty(t, publicSource("/home/somebody/playbooks"))
	assert.Equal(t, "http://…", publicURL("http://me:secret%zz@proxy:3128"))
	assert.Equal(t, "https://example.org/x.git", publicSource("https://me:secret@example.org/x.git"))
}

func TestTheReportOfAFailedBuildSaysWhy(t *testing.T) {
	b, _ := newBuild(t)
	summary := filepath.Join(t.TempDir(), "summary.md")
	t.Setenv("GITHUB_STEP_SUMMARY", summary)
	w := b.way(nil)
	err := w.show(t.Context(), "verify", func(context.Context, progress.Reporter) (string, error) {
		return "", dirty("2 checks failed", "a unit")
	})
	require.ErrorIs(t, w.conclude(err), err)
	f, err := os.Open(filepath.Join(b.Config.OutputDir, "report.json"))
	require.NoError(t, err)
	defer f.Close()
	r, err := report.Read(f)
	require.NoError(t, err)
	assert.Equal(t, report.Failed, r.Outcome)
	assert.Equal(t, []string{"verify: 2 checks failed: mend it", "a unit"}, r.Failure)
	require.Len(t, r.Stages, 1)
	assert.NotEmpty(t, r.Stages[0].Failure)
	assert.FileExists(t, filepath.Join(b.Config.OutputDir, "report.html"))
	markdown, err := os.ReadFile(summary)
	require.NoError(t, err)
	assert.Contains(t, string(markdown), "2 checks failed")
}

func TestTheReportNamesTheImageAndTheStageThatFailedNotThoseThatItStopped(t *testing.T) {
	b, _ := newBuild(t)
	b.Config.ImageName, b.Config.ImageTag = "course", "1"
	w := b.way(nil)
	g, ctx := errgroup.WithContext(t.Context())
	running := make(chan struct{})
	g.Go(func() error {
		return w.show(ctx, "playbook", func(context.Context, progress.Reporter) (string, error) {
			<-running
			return "", dirty("there is no playbook", "")
		})
	})
	g.Go(func() error {
		return w.show(ctx, "tools", func(ctx context.Context, _ progress.Reporter) (string, error) {
			close(running)
			<-ctx.Done()
			return "", ctx.Err()
		})
	})
	err := g.Wait()
	require.ErrorIs(t, w.conclude(err), err)
	markdown := &bytes.Buffer{}
	require.NoError(t, w.journal.compose(w.mask()).WriteMarkdown(markdown))
	assert.Contains(t, markdown.String(), `Failed in playbook: course\:1`)
	assert.Contains(t, markdown.String(), "| ⏹️ tools |")
}
