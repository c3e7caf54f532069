package fleet_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// site is a catalogue with its playbooks, and the folders of whoever builds.
type site struct {
	t      testing.TB
	dir    string            // of the catalogue
	env    map[string]string // the command's settings
	policy fleet.Policy
	only   []string
}

// zeros is some digest.
var zeros = "sha256:" + strings.Repeat("0", 64)

// family is a parent with two children, as cheap as images can be.
const familyCatalogue = `
defaults: {ansible-dir: playbooks, size: 1G, memory: 256, cpus: 1, tags: v1}
images:
  - {name: debian, base: {url: "https://example.org/debian.qcow2", checksum: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, playbook: base}
  - {name: lab, from: debian, playbook: course, vars: {course: lab, n: 1}}
  - {name: exam, from: debian, playbook: course, vars: {course: exam, n: 2}}
`

// newSite writes a catalogue and two playbooks with a role each.
func newSite(t testing.TB, text string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), env: map[string]string{"OUTPUT_DIR": t.TempDir(), "CACHE_DIR": t.TempDir()}}
	s.write("catalogue.yaml", text)
	s.write("playbooks/base.yml", "- hosts: all\n  roles: [common]\n")
	s.write("playbooks/course.yml", "- hosts: all\n  roles: [course]\n")
	s.write("playbooks/roles/common/tasks/main.yml", "- ansible.builtin.package: {name: vim}\n")
	s.write("playbooks/roles/course/tasks/main.yml", "- ansible.builtin.debug: {msg: '{{ course }}'}\n")
	s.write("playbooks/roles/unrelated/tasks/main.yml", "- ansible.builtin.debug: {msg: hello}\n")
	return s
}

// ansible puts an Ansible of that version into the way of all tests until this
// one, which therefore runs alone, has ended.
func (s *site) ansible(version string) {
	s.t.Setenv("PATH", fakeAnsible(s.t.TempDir(), version))
}

// fakeAnsible writes one and returns the PATH on which it is found.
func fakeAnsible(dir, version string) string {
	text := fmt.Sprintf("#!/bin/sh\necho 'ansible-playbook [core %s]'\n", version)
	if err := os.WriteFile(filepath.Join(dir, "ansible-playbook"), []byte(text), 0o755); err != nil {
		panic(err)
	}
	return dir + string(os.PathListSeparator) + os.Getenv("PATH")
}

func (s *site) write(name, text string) {
	s.t.Helper()
	name = filepath.Join(s.dir, name)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(s.t, os.WriteFile(name, []byte(text), 0o644))
}

// edit replaces something in a file.
func (s *site) edit(name, old, replacement string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	require.NoError(s.t, err)
	require.Contains(s.t, string(text), old)
	s.write(name, strings.Replace(string(text), old, replacement, 1))
}

// all is the command, with a maker for single builds.
func (s *site) all(m *maker) *fleet.All {
	s.t.Helper()
	all, err := s.read()
	require.NoError(s.t, err)
	if m != nil {
		all.BuildWith(m.run)
	}
	return all
}

func (s *site) read() (*fleet.All, error) {
	shown := ui.New(io.Discard, false)
	s.t.Cleanup(shown.Close)
	all, err := read(s.dir, s.env, shown)
	if err == nil {
		all.Policy = s.policy
		all.Catalogue.Images, err = all.Catalogue.Select(s.only...)
	}
	return all, err
}

// read puts a command together as the program does.
func read(dir string, env map[string]string, shown *ui.UI) (*fleet.All, error) {
	given, err := settings.Read(env, func(string) (string, bool) { return "", false })
	if err != nil {
		return nil, err
	}
	given = given.Only("build-all")
	parsed, err := pipeline.Parse(given)
	if err != nil {
		return nil, err
	}
	listed, err := catalogue.Load(filepath.Join(dir, "catalogue.yaml"))
	return &fleet.All{Settings: given, Config: parsed, UI: shown, Version: "test", Catalogue: listed}, err
}

// run builds all and returns how it went.
func (s *site) run(m *maker) fleet.Summary {
	s.t.Helper()
	summary, err := s.all(m).Run(s.t.Context())
	require.NoError(s.t, err)
	return summary
}

// planned is the plan, by name.
func (s *site) planned() map[string]*fleet.Entry {
	s.t.Helper()
	entries, err := s.all(nil).Plan(s.t.Context())
	require.NoError(s.t, err)
	byName := map[string]*fleet.Entry{}
	for _, e := range entries {
		byName[e.Name] = e
	}
	return byName
}

// said is the plan in short.
func (s *site) said() map[string]string {
	s.t.Helper()
	said := map[string]string{}
	for name, e := range s.planned() {
		said[name] = fmt.Sprintf("%s: %s", e.Action, e.Why)
	}
	return said
}

// reference is where the summary says that an image is.
func reference(s fleet.Summary, name string) string {
	for _, i := range s.Images {
		if i.Name == name && i.Result != nil {
			return i.Result.Reference
		}
	}
	return ""
}

// maker makes single images as a build does, with all parts but the guest:
// it takes its base out of the parent, leaves a stage, packs and pushes.
type maker struct {
	mu    sync.Mutex
	built []string          // in the order in which they began
	bases map[string]string // digest of the disk that an image started from
	// stop ends a build at a point of it: before "provision", "pack" or "push",
	// or at its "end".
	stop func(ctx context.Context, image, point string) error
	days int // how old the images are
}

// taken returns what was built since the last call, sorted.
func (m *maker) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	built := m.built
	m.built = nil
	slices.Sort(built)
	return built
}

func (m *maker) run(ctx context.Context, b *pipeline.Build) (pipeline.Result, error) {
	c := b.Config
	m.mu.Lock()
	m.built = append(m.built, c.ImageName)
	m.mu.Unlock()
	work, err := pipeline.OpenDir(filepath.Join(c.OutputDir, "work"))
	if err != nil {
		return pipeline.Result{}, err
	}
	defer work.Close()
	base, err := m.base(ctx, b)
	if err != nil {
		return pipeline.Result{}, err
	}
	if err := m.at(ctx, c.ImageName, "provision"); err != nil {
		return pipeline.Result{}, err
	}
	made, err := provisioned(ctx, work, base.Digest+c.ImageInputs)
	if err != nil {
		return pipeline.Result{}, err
	}
	if err := m.at(ctx, c.ImageName, "pack"); err != nil {
		return pipeline.Result{}, err
	}
	result := pipeline.Result{Layout: pipeline.Layout(c.OutputDir, c.ImageName)}
	packed, err := oci.Pack(ctx, work.Path("provisioned.qcow2"), result.Layout, oci.Metadata{
		Architecture: c.Architecture, Title: c.ImageName, Version: c.ImageTag, BaseDigest: base.Manifest, Reference: c.Reference, VerifiedDisk: made,
		Annotations: map[string]string{
			oci.AnnotationInputs: c.ImageInputs,
			oci.AnnotationBuilt:  time.Now().AddDate(0, 0, -m.days).UTC().Format(time.RFC3339),
		},
	}, progress.Discard)
	if err != nil {
		return pipeline.Result{}, err
	}
	if err := m.at(ctx, c.ImageName, "push"); err != nil {
		return pipeline.Result{}, err
	}
	result.Reference, result.Digest = "oci:"+result.Layout+"@"+packed.Digest, packed.Digest
	if c.Reference != "" {
		options, err := pipeline.RegistryOptions(b.Config, b.Version)
		if err != nil {
			return result, err
		}
		if result.Reference, err = registry.Push(ctx, result.Layout, c.Reference, options, progress.Discard); err != nil {
			return result, err
		}
	}
	if result.Image, err = contract.Layout(ctx, result.Layout, progress.Discard); err != nil {
		return result, err
	}
	return result, m.at(ctx, c.ImageName, "end")
}

func (m *maker) at(ctx context.Context, image, point string) error {
	if m.stop != nil {
		if err := m.stop(ctx, image, point); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// base takes the parent's disk.
func (m *maker) base(ctx context.Context, b *pipeline.Build) (x oci.Extracted, err error) {
	from := b.Config.BaseImage
	want := oci.Want{Digest: from.Digest, Inputs: from.Inputs}
	switch {
	case from.Layout != "":
		x, err = oci.Extract(ctx, from.Layout, want, b.BaseDir, progress.Discard)
	case from.Reference != "":
		var fetched registry.Fetched
		options, errOptions := pipeline.RegistryOptions(b.Config, b.Version)
		if errOptions != nil {
			return x, errOptions
		}
		fetched, err = registry.Fetch(ctx, from.Reference, registry.FetchOptions{Options: options, Want: want, CacheDir: filepath.Join(b.Config.CacheDir, "images")}, progress.Discard)
		x = fetched.Extracted
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bases == nil {
		m.bases = map[string]string{}
	}
	m.bases[b.Config.ImageName] = x.Manifest
	return x, err
}

// provisioned leaves a small disk and its record, and returns its digest.
func provisioned(ctx context.Context, work *pipeline.Dir, content string) (string, error) {
	raw, disk := work.Path("raw"), work.Path("provisioned.qcow2")
	sectors := make([]byte, 64<<10)
	copy(sectors, content)
	copy(sectors[510:], "\x55\xaa")
	if err := os.WriteFile(raw, sectors, 0o600); err != nil {
		return "", err
	}
	defer os.Remove(raw)
	if err := host.Run(ctx, host.Cmd{Program: "qemu-img", Args: []string{"convert", "-f", "raw", "-O", "qcow2", raw, disk}}); err != nil {
		return "", err
	}
	made, err := host.DigestFile(ctx, disk, progress.Discard)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(disk)
	if err != nil {
		return "", err
	}
	return made, work.Save("provision", pipeline.Record{Inputs: zeros, Output: "provisioned.qcow2", Digest: made, Size: info.Size()})
}

// counting is a registry behind a proxy that counts.
type counting struct {
	host  string
	mu    sync.Mutex
	asked map[string]int // by method and kind: "PUT manifests", "POST blobs"
}

func counted(t testing.TB, host string) *counting {
	c := &counting{asked: map[string]int{}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		for _, kind := range []string{"manifests", "blobs", "tags"} {
			if strings.Contains(r.URL.Path, "/"+kind+"/") {
				c.asked[r.Method+" "+kind]++
			}
		}
		c.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	c.host = server.Listener.Addr().String()
	return c
}

// taken returns what was asked since the last call.
func (c *counting) taken() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.asked
	c.asked = map[string]int{}
	return asked
}
