package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/testkit"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// given is what each room was given in a build.
type given struct {
	accelerator, cache string
	toolsCache         string
	toolsFor           string // architecture
	playbook           playbook.Options
	vars               map[string]any
	packages           base.Options
	checksum           string
	download           base.DownloadOptions
	fetch              registry.FetchOptions
	provision          provision.Options
	generalise         hygiene.GeneraliseOptions
	imported           string // the disk that was
	sparsify           disk.SparsifyOptions
	sparsified         string // the disk that was
	scan               hygiene.Options
	inventory          sbom.Inventory // that scan finds
	verify             verify.Options
	pack               oci.Metadata
	packedDisk         string
	exportedDisk       string
	exportDir          string
	outputs            []string
	machine            disk.Machine
	access, push       string                         // references
	bundles            map[string][]registry.Referrer // that are attached, by reference
	bundlesErr         map[string]error
	login              registry.Options
	runs               []string
}

// virtualSize is what the fakes' disks have, in bytes.
const virtualSize = 5 << 30

// fakes are rooms that write down what they are given, and leave small files.
func (g *given) fakes(dir string) *rooms {
	write := func(name, text string) { _ = os.WriteFile(name, []byte(text), 0o600) }
	cloud := filepath.Join(dir, "cloud.qcow2")
	write(cloud, "base")
	ran := func(name string) { g.runs = append(g.runs, name) }
	return &rooms{
		controller: func(context.Context) (string, error) { return "2.16.1", nil },
		ssh:        func(context.Context) error { return nil },
		qemu:       func(context.Context, string) string { return "9.2" },
		accel: func(_ context.Context, architecture, want, cache string, _ progress.Reporter) (vm.Verdict, error) {
			g.accelerator, g.cache = want, cache
			return vm.Verdict{Architecture: architecture, Accelerator: "kvm"}, nil
		},
		tools: func(_ context.Context, cache, architecture string, _ progress.Reporter) (provision.Tools, error) {
			g.toolsCache, g.toolsFor = cache, architecture
			return provision.Tools{Goss: "/tools/goss", Packer: "/tools/packer", Versions: map[string]string{"packer": "1.15"}}, nil
		},
		playbook: func(_ context.Context, o playbook.Options, vars settings.Vars, _ string, _ progress.Reporter) (playbook.Source, playbook.Inputs, error) {
			g.playbook, g.vars = o, vars
			checks := filepath.Join(dir, "checks.yaml")
			write(checks, "file: {}")
			return playbook.Source{File: "course.yml", Revision: "abc", URL: "https://example.org/p.git", Checks: checks}, playbook.Inputs{Digest: "sha256:playbook"}, nil
		},
		packages: func(_ context.Context, o base.Options, names []string, _ progress.Reporter) error {
			g.packages = o
			return fmt.Errorf("%s has no %s", o.Suite, strings.Join(names, " "))
		},
		makeBase: func(_ context.Context, o base.Options, _ progress.Reporter) (base.Image, error) {
			g.packages = o
			return base.Image{Path: cloud, Format: "qcow2", Digest: "sha256:base", Suite: "bookworm"}, nil
		},
		checksum: func(_ context.Context, _ string, sum string, o base.DownloadOptions, _ progress.Reporter) (base.Stated, error) {
			g.checksum, g.download = sum, o
			return base.Stated{Sum: sum, SignedBy: "AB12", Release: "20260722"}, nil
		},
		download: func(_ context.Context, _ string, sum string, _ base.DownloadOptions, _ progress.Reporter) (base.File, error) {
			return base.File{Path: cloud, Digest: sum, Modified: time.Unix(1700000000, 0)}, nil
		},
		fetch: func(_ context.Context, ref string, o registry.FetchOptions, _ progress.Reporter) (registry.Fetched, error) {
			g.fetch = o
			return registry.Fetched{Extracted: oci.Extracted{Path: cloud, Format: "qcow2", Digest: "sha256:base"}, Reference: ref}, nil
		},
		disk: func(context.Context, string) (disk.Info, error) {
			return disk.Info{Format: "qcow2", VirtualSize: virtualSize}, nil
		},
		provision: func(_ context.Context, o provision.Options, _ progress.Reporter) (provision.Result, error) {
			ran("provision")
			g.provision = o
			write(o.Output, "provisioned")
			return provision.Result{Trimmed: true, Tasks: []report.Task{{Name: "a task", Status: report.OK}}, Timings: provision.Timings{Boot: time.Second}}, nil
		},
		importDisk: func(_ context.Context, from, out string, _ progress.Reporter) error {
			ran("import")
			g.imported = from
			write(out, "imported")
			return nil
		},
		generalise: func(_ context.Context, o hygiene.GeneraliseOptions, _ progress.Reporter) (hygiene.Generalised, error) {
			ran("generalise")
			g.generalise = o
			return hygiene.Generalised{System: "debian-12", Repaired: []hygiene.Finding{{Rule: "logs"}, {Rule: "logs"}, {Rule: "machine-id"}}}, nil
		},
		sparsify: func(_ context.Context, in, out string, o disk.SparsifyOptions, _ progress.Reporter) (disk.SparsifyResult, error) {
			ran("sparsify")
			g.sparsify, g.sparsified = o, in
			write(out, "sparsified")
			return disk.SparsifyResult{After: disk.Info{VirtualSize: virtualSize, FileSize: 10}}, nil
		},
		scan: func(_ context.Context, o hygiene.Options, _ progress.Reporter) (hygiene.Result, error) {
			g.scan = o
			return hygiene.Result{Files: 7, Inventory: g.inventory}, nil
		},
		verify: func(_ context.Context, o verify.Options, _ progress.Reporter) (verify.Result, error) {
			ran("verify")
			g.verify = o
			return verify.Result{Checks: []verify.Check{{Group: "boot", Name: "it boots", OK: true}}}, nil
		},
		pack: func(ctx context.Context, disk, layout string, m oci.Metadata, _ progress.Reporter) (oci.Result, error) {
			ran("pack")
			g.pack, g.packedDisk = m, disk
			return oci.Result{Digest: "sha256:image"}, m.Accept(ctx, layout)
		},
		inspect: func(context.Context, string, progress.Reporter) (*contract.Report, error) {
			return &contract.Report{Digest: "sha256:image"}, nil
		},
		export: func(_ context.Context, path, digest, dir string, names []string, m disk.Machine, _ progress.Reporter) ([]disk.Exported, error) {
			g.runs = append(g.runs, "export")
			g.exportedDisk, g.exportDir, g.outputs, g.machine = path, dir, names, m
			return []disk.Exported{{Path: dir + "/course.ova", Digest: digest, Size: 7}}, nil
		},
		bundles: func(_ context.Context, ref string, _ registry.Options) ([]registry.Referrer, error) {
			return g.bundles[ref], g.bundlesErr[ref]
		},
		freeTag: func(_ context.Context, reference string, login registry.Options) (string, error) {
			return reference + "-2", nil
		},
		access: func(_ context.Context, reference string, login registry.Options) error {
			g.access, g.login = reference, login
			return nil
		},
		push: func(_ context.Context, _, reference string, login registry.Options, _ progress.Reporter) (string, error) {
			ran("push")
			g.push, g.login = reference, login
			return reference + "@sha256:image", nil
		},
	}
}

// everything sets all that a build reads, to what is no default.
func everything(dir string) map[string]string {
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		_ = os.WriteFile(path, []byte(text), 0o600)
		return path
	}
	return map[string]string{
		"ISO_URL": "https://me:url-word@example.org/debian-12.qcow2", "ISO_CHECKSUM": "sha256:" + strings.Repeat("a", 64),
		"ANSIBLE_PLAYBOOK": "course", "GIT_ANSIBLE_URL": "https://example.org/p.git", "GIT_ANSIBLE_BRANCH": "v2", "GIT_ANSIBLE_PATH": "tree",
		"INSTALL_DESKTOP_ENVIRONMENT": "true", "EXTRA_VARS": `{"db_password": "vars-word"}`, "ANSIBLE_VAULT_PASSWORD_FILE": file("vault", "vault-word"),
		"MEMORY": "3000", "CPUS": "3", "DISK_SIZE": "11G", "ACCELERATOR": "kvm", "BOOT_TIMEOUT": "77s",
		"BUILD_USER": "maker", "VM_USER": "student", "BAKE_USER": "true", "SPARSIFY": "trim", "QCOW2_COMPRESSION": "zlib",
		"OUTPUTS":         "containerdisk ova",
		"TARGET_REGISTRY": "registry.example.org", "REGISTRY_PREFIX": "labs", "IMAGE_NAME": "course", "IMAGE_TAG": "v1",
		"INSTANCE_TYPE": "o1.small", "PREFERENCE": "fedora", "SOURCE_DATE_EPOCH": "1600000000",
		"REGISTRY_USER": "robot", "REGISTRY_PASS_FILE": file("password", "registry-word\n"), "REGISTRY_INSECURE": "true",
		"HYGIENE_ALLOW": file("allow.yaml", "- {rule: private-keys, path: /etc/key, reason: a demo}\n"),
		"OUTPUT_DIR":    filepath.Join(dir, "out"), "CACHE_DIR": filepath.Join(dir, "cache"), "APT_MIRROR": "http://mirror.example.org",
		"HTTP_PROXY": "http://plain-proxy:1", "HTTPS_PROXY": "http://secure-proxy:2", "NO_PROXY": "intern.example.org", "PACKER_LOG": "0",
	}
}

// wired is a build by the settings, with fakes.
func wired(t *testing.T, environ map[string]string) (*Build, *given, *bytes.Buffer) {
	t.Helper()
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // or the test's folders' modes would not count
	s, err := settings.Read(environ, func(string) (string, bool) { return "", false })
	require.NoError(t, err)
	c, err := Parse(s, NeedBase, NeedPlaybook, NeedTarget)
	require.NoError(t, err)
	out, g := &bytes.Buffer{}, &given{}
	u := ui.New(out, false)
	t.Cleanup(u.Close)
	return &Build{Settings: s, Config: c, UI: u, Version: "v9", KeepOnError: true, Full: true, rooms: g.fakes(t.TempDir())}, g, out
}

func TestEachStageIsGivenTheSettingsThatAreItsOwn(t *testing.T) {
	dir := t.TempDir()
	b, g, _ := wired(t, everything(dir))
	done, err := b.Run(t.Context())
	require.NoError(t, err)
	require.NotNil(t, done.Image, "what inspect found")
	done.Image = nil
	assert.Equal(t, Result{Layout: dir + "/out/course", Reference: "registry.example.org/labs/course:v1@sha256:image", Digest: "sha256:image"}, done)
	assert.Equal(t, []string{"provision", "sparsify", "verify", "pack", "export", "push"}, g.runs)
	work, cache := dir+"/out/work", dir+"/cache"
	said, err := report.Saved(dir + "/out")
	require.NoError(t, err)
	assert.Equal(t, []string{"AB12", "20260722"}, []string{said.Base.SignedBy, said.Base.Release})
	assert.NotContains(t, fmt.Sprint(g.pack), "AB12", "an image of the same base is the same, whoever read its list")

	assert.Equal(t, []string{"kvm", cache, cache + "/tools"}, []string{g.accelerator, g.cache, g.toolsCache})
	p := g.playbook
	assert.Equal(t, []string{"https://example.org/p.git", "v2", "tree", "course", work + "/playbooks", dir + "/vault"}, []string{p.GitURL, p.GitBranch, p.GitPath, p.Playbook, p.Dir, p.Vault.PasswordFile})
	assert.Equal(t, []string{dir + "/out", cache}, p.Results)
	assert.Equal(t, map[string]any{"db_password": "vars-word"}, g.vars)
	assert.Equal(t, base.DownloadOptions{CacheDir: cache + "/images"}, g.download)
	assert.Equal(t, "sha256:"+strings.Repeat("a", 64), g.checksum)

	o := g.provision
	mask := o.Mask
	require.NotNil(t, mask)
	assert.Equal(t, provision.Options{
		Base: o.Base, BaseFormat: "qcow2", Output: work + "/provisioned.qcow2", BackingFile: true, WorkDir: work + "/logs/provision",
		Playbook: o.Playbook, Tools: o.Tools, Accel: vm.Verdict{Architecture: "amd64", Accelerator: "kvm"},
		MemoryMiB: 3000, CPUs: 3, DiskSize: 11 << 30, BuildUser: "maker", VMUser: "student", BakeUser: true, Desktop: true,
		ExtraVars: map[string]any{"db_password": "vars-word"}, AptMirror: "http://mirror.example.org",
		HTTPProxy: "http://plain-proxy:1", HTTPSProxy: "http://secure-proxy:2", NoProxy: "intern.example.org",
		Mask: mask, PackerLog: false, KeepOnError: true, SSHTimeout: 77 * time.Second,
	}, o)
	assert.Equal(t, "course.yml", o.Playbook.File)
	assert.Equal(t, "/tools/packer", o.Tools.Packer)

	assert.Equal(t, disk.SparsifyOptions{Method: "trim", Compression: "zlib", Base: o.Base, Trimmed: true, LibguestfsEnv: g.sparsify.LibguestfsEnv}, g.sparsify)
	assert.Equal(t, o.Output, g.sparsified)

	s := g.scan
	assert.Equal(t, []any{work + "/disk.qcow2", "qcow2", "student", true}, []any{s.Disk, s.Format, s.BuildUser, s.BakedUser})
	assert.Equal(t, "a demo", s.Policy.Reason("private-keys", "/etc/key"), "HYGIENE_ALLOW")
	var words []string
	for _, secret := range s.Secrets {
		words = append(words, secret.Value)
	}
	assert.ElementsMatch(t, []string{"url-word", "vars-word", "vault-word", "registry-word"}, words)
	for _, word := range words {
		assert.Equal(t, "***", mask.Replace(word))
	}

	v := g.verify
	assert.NotNil(t, v.Excused)
	v.Excused = nil
	assert.Equal(t, verify.Options{
		Disk: work + "/disk.qcow2", Format: "qcow2", VirtualSize: virtualSize, Dir: work + "/logs/verify", MemoryMiB: 3000, CPUs: 3, Accel: o.Accel,
		BuildUser: "maker", VMUser: "student", BakedUser: true, Desktop: true, Full: true, Checks: v.Checks, Goss: "/tools/goss", KeepOnError: true, Timeout: 77 * time.Second,
	}, v)
	assert.FileExists(t, v.Checks)

	digest := "sha256:" + sum("sparsified")
	m := g.pack
	m.Accept = nil
	assert.Equal(t, oci.Metadata{
		Created: time.Unix(1600000000, 0), Architecture: "amd64", Title: "course", Version: "v1", Source: "https://example.org/p.git", Revision: "abc",
		BaseName: "https://example.org/debian-12.qcow2", BaseDigest: "sha256:" + strings.Repeat("a", 64), InstanceType: "o1.small", Preference: "fedora",
		Reference: "registry.example.org/labs/course:v1", VerifiedDisk: digest, Annotations: m.Annotations,
	}, m)
	assert.Equal(t, work+"/disk.qcow2", g.packedDisk)
	assert.Equal(t, "Debian 12", m.Annotations[oci.AnnotationGuest])
	assert.JSONEq(t, `{"INSTALL_DESKTOP_ENVIRONMENT": "true", "BAKE_USER": "true", "VM_USER": "student"}`, m.Annotations[oci.AnnotationSettings])
	assert.Equal(t, []any{work + "/disk.qcow2", dir + "/out", []string{"ova"}}, []any{g.exportedDisk, g.exportDir, g.outputs})
	assert.Equal(t, disk.Machine{Name: "course", MemoryMiB: 3000, CPUs: 3, Distribution: "debian"}, g.machine)
	assert.Equal(t, []string{"registry.example.org/labs/course:v1", "registry.example.org/labs/course:v1"}, []string{g.access, g.push})
	assert.Equal(t, registry.Options{Username: "robot", Password: "registry-word", Insecure: true, UserAgent: "diskforge/v9"}, g.login)
	assert.NoFileExists(t, work+"/disk.qcow2", "the layout has all")

	told := saved(t, b)
	assert.Equal(t, report.Published, told.Outcome)
	assert.Equal(t, done.Reference, told.Image.Reference)
	assert.Equal(t, []report.File{{Name: "course.ova", Digest: digest, Bytes: 7}}, told.Files)
	var names []string
	for _, stage := range told.Stages {
		names = append(names, stage.Name)
	}
	assert.Subset(t, names, []string{"accel", "tools", "base", "playbook", "registry", "provision", "↳ boot", "sparsify", "hygiene", "verify", "pack", "inspect", "push"})
	assert.Equal(t, []report.Task{{Name: "a task", Status: report.OK}}, told.Tasks)
}

func TestInAPodWhatStagesMadeStaysForTheJobsNextPod(t *testing.T) {
	b, g, _ := wired(t, everything(t.TempDir()))
	b.Config.Push = false
	build := func() []string {
		g.runs = nil
		_, err := b.Run(t.Context())
		require.NoError(t, err)
		return g.runs
	}
	build()
	assert.Contains(t, build(), "provision", "a build that came to its end leaves nothing")
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
	build()
	assert.Equal(t, []string{"pack", "export"}, build(), "after a push that failed")
}

func TestWhatABuildThatWasStoppedMadeIsGivenOnAgain(t *testing.T) {
	dir := t.TempDir()
	b, g, _ := wired(t, everything(dir))
	b.KeepStages = true
	_, err := b.Run(t.Context())
	require.NoError(t, err)
	before := g.pack
	g.runs = nil
	_, err = b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"pack", "export", "push"}, g.runs, "the others were done before")
	before.Accept, g.pack.Accept = nil, nil
	assert.Equal(t, before, g.pack, "and the image is the same")

	b.Config.Compression = "none"
	g.runs = nil
	_, err = b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"sparsify", "pack", "export", "push"}, g.runs, "the same disk is not booted again")
	b.Version = "v10"
	g.runs = nil
	_, err = b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"verify", "pack", "export", "push"}, g.runs, "another version has other checks")
	require.NoError(t, b.Clean())
	assert.NoFileExists(t, dir+"/out/work/provisioned.qcow2")
}

func TestTheStagesOneByOneAreGivenTheSame(t *testing.T) {
	dir := t.TempDir()
	b, g, _ := wired(t, everything(dir))
	first, second := dir+"/first.qcow2", dir+"/second.qcow2"
	require.NoError(t, b.ProvisionTo(t.Context(), first))
	assert.False(t, g.provision.BackingFile, "a disk of its own")
	assert.Equal(t, []any{3000, 3, "http://secure-proxy:2", "http://plain-proxy:1"}, []any{g.provision.MemoryMiB, g.provision.CPUs, g.provision.HTTPSProxy, g.provision.HTTPProxy})
	assert.Equal(t, []string{dir + "/out", dir + "/cache", first, first + ".work", first + ".json"}, g.playbook.Results, "what a stage writes is no part of the tree")
	require.NoError(t, b.SparsifyTo(t.Context(), first, second))
	assert.Empty(t, g.sparsify.Base)
	assert.True(t, g.sparsify.Trimmed)

	b.Config.Playbook = ""
	require.NoError(t, b.VerifyDisk(t.Context(), second))
	assert.Equal(t, []any{second, 3000, 3, 77 * time.Second}, []any{g.verify.Disk, g.verify.MemoryMiB, g.verify.CPUs, g.verify.Timeout})
	assert.Equal(t, []any{second, "student", true}, []any{g.scan.Disk, g.scan.BuildUser, g.scan.BakedUser})
	reference, err := b.PackTo(t.Context(), second, dir+"/layout")
	require.NoError(t, err)
	assert.Equal(t, "oci:"+dir+"/layout@sha256:image", reference)
	assert.Equal(t, "sha256:"+sum("sparsified"), g.pack.VerifiedDisk)
	assert.Equal(t, "abc", g.pack.Revision)
	page, err := ReportTo(t.Context(), second, dir+"/report")
	require.NoError(t, err)
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, name := range []string{"provision", "sparsify", "verify", "a task", "it boots"} {
		assert.Contains(t, string(text), name)
	}
}

func TestADiskThatCannotHoldItsBaseIsRefusedBeforeTheBoot(t *testing.T) {
	environ := everything(t.TempDir())
	environ["DISK_SIZE"] = "4G"
	b, g, _ := wired(t, environ)
	_, err := b.Run(t.Context())
	require.ErrorContains(t, err, "DISK_SIZE: 4.0 GiB is less than the base image's virtual size: give 5.0 GiB or more")
	assert.Empty(t, g.runs)
}

func TestEachStageIsGivenTheArchitecture(t *testing.T) {
	environ := everything(t.TempDir())
	delete(environ, "ISO_URL")
	delete(environ, "ISO_CHECKSUM")
	environ["BASE_FROM_PACKAGES"], environ["ARCHITECTURE"], environ["OUTPUTS"] = "true", "aarch64", "qcow2"
	b, g, _ := wired(t, environ)
	_, err := b.Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"arm64", "arm64", "arm64", "arm64", "arm64"},
		[]string{g.packages.Architecture, g.provision.Accel.Architecture, g.toolsFor, g.verify.Accel.Architecture, g.pack.Architecture})
}

func TestADiskOfAnotherArchitectureIsRefusedBeforeTheBoot(t *testing.T) {
	both := testkit.BootDisk(t, "BOOTX64.EFI", "BOOTAA64.EFI")
	x86, arm, none := testkit.BootDisk(t, "BOOTX64.EFI"), testkit.BootDisk(t, "BOOTAA64.EFI"), testkit.BootDisk(t)
	for _, c := range []struct{ architecture, disk, says string }{
		{"amd64", x86, ""},
		{"arm64", arm, ""},
		{"amd64", both, ""},
		{"arm64", both, ""},
		{"amd64", none, ""}, // a BIOS may start it
		{"amd64", arm, "ARCHITECTURE is amd64, but the disk it starts from is for arm64: take a disk for amd64, or set ARCHITECTURE=arm64"},
		{"arm64", x86, "ARCHITECTURE is arm64, but the disk it starts from is for amd64: take a disk for arm64, or set ARCHITECTURE=amd64"},
		{"arm64", none, "no boot loader for that (EFI/BOOT/BOOTAA64.EFI)"},
	} {
		environ := everything(t.TempDir())
		environ["ARCHITECTURE"], environ["OUTPUTS"] = c.architecture, "qcow2"
		b, g, _ := wired(t, environ)
		b.rooms.download = func(context.Context, string, string, base.DownloadOptions, progress.Reporter) (base.File, error) {
			return base.File{Path: c.disk, Digest: "sha256:base"}, nil
		}
		_, err := b.Run(t.Context())
		if c.says == "" {
			require.NoError(t, err, "%+v", c)
			continue
		}
		require.ErrorContains(t, err, c.says)
		assert.Empty(t, g.runs)
	}
}

func TestADiskIsVerifiedOnTheArchitectureThatItIsFor(t *testing.T) {
	b, g, _ := wired(t, everything(t.TempDir()))
	b.Config.Playbook = ""
	require.NoError(t, b.VerifyDisk(t.Context(), testkit.BootDisk(t, "BOOTAA64.EFI")))
	assert.Equal(t, "arm64", g.verify.Accel.Architecture)
}

func TestAnApplianceIsForOneArchitecture(t *testing.T) {
	environ := everything(t.TempDir())
	environ["ARCHITECTURE"] = "arm64"
	s, err := settings.Read(environ, func(string) (string, bool) { return "", false })
	require.NoError(t, err)
	_, err = Parse(s)
	require.ErrorContains(t, err, "OUTPUTS: ova is for machines of amd64 alone")
}

func TestPackagesThatTheReleaseDoesNotHaveAreSaidBeforeAnythingElse(t *testing.T) {
	for suite, base := range map[string]map[string]string{
		"bookworm": {"BASE_FROM_PACKAGES": "true", "SUITE": "bookworm"},
		"trixie":   {"ISO_URL": "https://example.org/debian-13.qcow2", "ISO_CHECKSUM": strings.Repeat("a", 64)},
	} {
		base["PACKAGES"], base["OUTPUT_DIR"], base["CACHE_DIR"], base["APT_MIRROR"] = "octave,no-such", t.TempDir(), t.TempDir(), "http://mirror/debian"
		b, g, _ := wired(t, base)
		_, err := b.Run(t.Context())
		require.ErrorContains(t, err, "packages: "+suite+" has no octave no-such")
		assert.Equal(t, "http://mirror/debian", g.packages.Mirror)
		assert.Empty(t, g.accelerator, "nothing else began")
	}
	b, g, _ := wired(t, map[string]string{
		"ISO_URL": "https://example.org/jammy.img", "ISO_CHECKSUM": strings.Repeat("a", 64), "PACKAGES": "octave", "PREFERENCE": "ubuntu", "OUTPUT_DIR": t.TempDir(), "CACHE_DIR": t.TempDir(),
	})
	_, err := b.Run(t.Context())
	require.NoError(t, err, "Ubuntu's lists are not known")
	assert.Empty(t, g.packages)
}

func TestWithoutATagItIsTodaysDateAndNeverOneThatIsThere(t *testing.T) {
	environ := everything(t.TempDir())
	delete(environ, "IMAGE_TAG")
	b, g, _ := wired(t, environ)
	done, err := b.Run(t.Context())
	require.NoError(t, err)
	want := "registry.example.org/labs/course:" + time.Now().UTC().Format("20060102") + "-2"
	assert.Equal(t, want+"@sha256:image", done.Reference)
	assert.Equal(t, []string{want, want, want}, []string{g.access, g.push, g.pack.Reference})
	assert.Equal(t, want, "registry.example.org/labs/course:"+g.pack.Version)
	assert.Equal(t, g.pack.Version, saved(t, b).Image.Tag)
}

func TestSecretsAreMaskedInAllThatABuildSays(t *testing.T) {
	dir := t.TempDir()
	b, g, out := wired(t, everything(dir))
	g.fakes(t.TempDir())
	words := []string{"url-word", "vars-word", "vault-word", "registry-word"}
	b.rooms.provision = func(_ context.Context, o provision.Options, p progress.Reporter) (provision.Result, error) {
		p.Warn(strings.Join(words, " "))
		return provision.Result{Tasks: []report.Task{{Name: strings.Join(words, " "), Status: report.Failed}}}, dirty("vars-word failed", "url-word")
	}
	_, err := b.Run(t.Context())
	require.ErrorContains(t, err, "provision: *** failed")
	text, errRead := os.ReadFile(dir + "/out/report.json")
	require.NoError(t, errRead)
	for _, word := range words {
		assert.NotContains(t, err.Error()+out.String()+string(text), word)
	}
}

func TestABaseIsMadeOrFetchedAsItsSettingsSay(t *testing.T) {
	environ := everything(t.TempDir())
	delete(environ, "ISO_URL")
	delete(environ, "ISO_CHECKSUM")
	environ["BASE_FROM_PACKAGES"], environ["SUITE"] = "true", "bookworm"
	b, g, _ := wired(t, environ)
	_, err := b.Base(t.Context())
	require.NoError(t, err)
	assert.Equal(t, base.Options{Architecture: "amd64", Suite: "bookworm", Mirror: "http://mirror.example.org", CacheDir: b.Config.CacheDir + "/base"}, g.packages)

	environ = everything(t.TempDir())
	environ["ISO_URL"], environ["ISO_CHECKSUM"], environ["BASE_TIMEOUT"] = "oci://registry.example.org/parent:1", "inputs:sha256:"+strings.Repeat("b", 64), "2h"
	b, g, _ = wired(t, environ)
	_, err = b.Base(t.Context())
	require.NoError(t, err)
	assert.Equal(t, registry.FetchOptions{
		Options: registry.Options{Username: "robot", Password: "registry-word", Insecure: true, UserAgent: "diskforge/v9"},
		Want:    oci.Want{Inputs: "sha256:" + strings.Repeat("b", 64), Architecture: "amd64"}, Wait: 2 * time.Hour, CacheDir: b.Config.CacheDir + "/images",
	}, g.fetch)
}

func TestABootMayTakeLongerWhereItIsEmulated(t *testing.T) {
	assert.Equal(t, 5*time.Minute, bootTimeout(settings.Config{}, vm.Verdict{Accelerator: "kvm"}))
	assert.Equal(t, 15*time.Minute, bootTimeout(settings.Config{}, vm.Verdict{Accelerator: "tcg"}))
	assert.Equal(t, time.Minute, bootTimeout(settings.Config{BootTimeout: time.Minute}, vm.Verdict{Accelerator: "tcg"}))
}

// sum is the hexadecimal SHA-256 of a text.
func sum(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }
