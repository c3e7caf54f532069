package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// everyone is the family.
var everyone = []string{"debian", "exam", "lab"}

func TestWhatTheRegistryHasIsNotBuiltAgain(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	s.env["REGISTRY_PREFIX"] = "labs"
	first := s.run(m)
	assert.Equal(t, everyone, m.taken())
	assert.Regexp(t, `^`+s.env["TARGET_REGISTRY"]+`/labs/lab:v1@sha256:`, reference(first, "lab"))

	s.env["OUTPUT_DIR"], s.env["CACHE_DIR"] = t.TempDir(), t.TempDir()
	second := s.run(m)
	assert.Empty(t, m.taken())
	assert.Equal(t, map[string]string{"debian": "skip: unchanged", "lab": "skip: unchanged", "exam": "skip: unchanged"}, s.said())
	assert.Equal(t, reference(first, "lab"), reference(second, "lab"))

	s.edit("catalogue.yaml", "{name: lab,", "{name: lab, outputs: [ova],")
	planned := s.planned()
	assert.Equal(t, fleet.Skip, planned["lab"].Action)
	assert.Contains(t, strings.Join(planned["lab"].Notes, "\n"), "diskforge export "+s.env["TARGET_REGISTRY"]+"/labs/lab:v1 -o "+s.env["OUTPUT_DIR"]+"/lab --outputs ova")
	assert.Empty(t, planned["exam"].Notes)
}

func TestAFurtherTagIsSetWithoutSendingALayer(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	front := counted(t, host)
	s.env["TARGET_REGISTRY"] = front.host
	s.run(m)
	m.taken()
	assert.Positive(t, front.taken()["PUT blobs"])

	s.env["IMAGE_TAG"] = "2026-11-23"
	assert.Equal(t, "tag: built before as v1", s.said()["lab"])
	front.taken()
	s.run(m)
	asked := front.taken()
	assert.Empty(t, m.taken())
	assert.Equal(t, 3, asked["PUT manifests"], "an image each")
	for _, layer := range []string{"POST blobs", "PATCH blobs", "PUT blobs", "GET blobs"} {
		assert.Zero(t, asked[layer], layer)
	}
	for name, e := range s.planned() {
		assert.Equal(t, fleet.Skip, e.Action, name)
		assert.Equal(t, []string{"2026-11-23", "v1"}, e.Tags, "the catalogue's come behind the command's")
	}
}

// architectures is a parent with a child, each for two architectures.
const architectures = `
defaults: {ansible-dir: playbooks, size: 1G, memory: 256, cpus: 1, tags: [v1, latest], architectures: [amd64, arm64]}
images:
  - {name: lab, base: {url: "https://example.org/{architecture}.qcow2", checksum: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, playbook: base}
  - {name: java, from: lab, playbook: course, vars: {course: java}}
`

func TestAnIndexIsMadeOfTheImagesForEachArchitecture(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, architectures), &maker{}
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	at := s.env["TARGET_REGISTRY"]
	first := s.run(m)
	assert.Equal(t, []string{"java", "java", "lab", "lab"}, m.taken())
	assert.Equal(t, map[fleet.State]int{fleet.Done: 6}, first.Counts)
	assert.Regexp(t, `^`+at+`/java:v1-arm64@sha256:`, reference(first, "java-arm64"))
	assert.Regexp(t, `^`+at+`/java:v1@sha256:`, reference(first, "java"))
	session, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer session.Close()
	e, there, err := session.Entry(t.Context(), at+"/java:latest")
	require.NoError(t, err)
	require.True(t, there)
	assert.Regexp(t, `@`+e.Digest+`$`, reference(first, "java"))
	for i, architecture := range []string{"amd64", "arm64"} {
		assert.Regexp(t, `@`+e.Parts[i]+`$`, reference(first, "java-"+architecture))
	}

	s.env["OUTPUT_DIR"], s.env["CACHE_DIR"] = t.TempDir(), t.TempDir()
	second := s.run(m)
	assert.Empty(t, m.taken())
	assert.Equal(t, map[fleet.State]int{fleet.Skipped: 6}, second.Counts)
	assert.Equal(t, reference(first, "java"), reference(second, "java"))

	require.NoError(t, session.Tag(t.Context(), at+"/java@"+e.Parts[0], "v1"))
	third := s.run(m)
	assert.Empty(t, m.taken(), "the index alone has lost its tag")
	assert.Equal(t, reference(first, "java"), reference(third, "java"))

	s.only = []string{"java-arm64"}
	s.policy.Force = true
	assert.Empty(t, reference(s.run(m), "java"), "an index is made of all its images")
}

func TestAMissingArchitectureFailsTheIndexAndNoOtherImage(t *testing.T) {
	t.Parallel()
	s := newSite(t, architectures)
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	m := &maker{stop: func(_ context.Context, image, point string) error {
		if image == "java" && point == "provision" {
			return errors.New("there is no such package")
		}
		return nil
	}}
	summary, err := s.all(m).Run(t.Context())
	require.ErrorContains(t, err, "java-arm64: there is no such package")
	assert.NotEmpty(t, reference(summary, "lab"))
	assert.Empty(t, reference(summary, "java"))
	for _, i := range summary.Images {
		if i.Name == "java" {
			assert.Equal(t, fleet.Blocked, i.State)
			assert.Equal(t, "an image of the index is missing: java-amd64", i.Why)
		}
	}
}

func TestAPlanVerifiesTheSignatureOfABase(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	s, m := newSite(t, familyCatalogue), &maker{}
	s.env["TARGET_REGISTRY"] = host
	base := reference(s.run(m), "debian")
	s.write("catalogue.yaml", "images: [{name: lab, base: {url: 'oci://"+base+"'}, ansible-dir: playbooks, playbook: course, vars: {course: lab}, tags: v1, size: 1G}]")
	assert.Regexp(t, "^build: ", s.said()["lab"])
	_, public := testkit.CosignKey(t, "")
	s.env["BASE_KEY"] = filepath.Join(t.TempDir(), "cosign.pub")
	require.NoError(t, os.WriteFile(s.env["BASE_KEY"], public, 0o600))
	_, err := s.all(nil).Plan(t.Context())
	require.ErrorContains(t, err, "keeps no signatures beside an image")
}

// lose deletes a layer of an image from the registry's storage.
func lose(t *testing.T, data string, layout string) {
	t.Helper()
	l, err := oci.Load(layout)
	require.NoError(t, err)
	hex := strings.TrimPrefix(l.Layer.Digest.String(), "sha256:")
	lost := 0
	require.NoError(t, filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == hex {
			lost++
			require.NoError(t, os.RemoveAll(path))
			return fs.SkipDir
		}
		return nil
	}))
	require.Positive(t, lost)
}

func TestAnImageOfWhichTheRegistryLostALayerIsSentOrBuiltAgain(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	host, data := testkit.StartRegistry(t, testkit.RegistryOptions{})
	s.env["TARGET_REGISTRY"] = host
	s.run(m)
	m.taken()
	layout := pipeline.Layout(fleet.Dir(s.env["OUTPUT_DIR"], "lab"), "lab")

	lose(t, data, layout)
	said := s.said()
	assert.Contains(t, said["lab"], "build: the registry has lost sha256:")
	assert.Equal(t, "skip: unchanged", said["exam"])
	s.run(m)
	assert.Empty(t, m.taken(), "it is complete in OUTPUT_DIR, and is sent")
	assert.Equal(t, "skip: unchanged", s.said()["lab"])

	lose(t, data, layout)
	s.env["OUTPUT_DIR"] = t.TempDir()
	s.run(m)
	assert.Equal(t, []string{"lab"}, m.taken(), "its parent is fetched")
	assert.NotEmpty(t, m.bases["lab"])
	assert.Equal(t, "skip: unchanged", s.said()["lab"])
}

func TestForceAndAgeBuildAnew(t *testing.T) {
	t.Parallel()
	for name, registry := range map[string]bool{"registry": true, "output directory": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, m := newSite(t, familyCatalogue), &maker{days: 10}
			if registry {
				s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
			}
			s.run(m)
			m.taken()

			s.policy.MaxAge = 11 * 24 * time.Hour
			assert.Equal(t, "skip: unchanged", s.said()["debian"])
			s.policy.MaxAge = 7 * 24 * time.Hour
			assert.Equal(t, "build: 10d old, and 7d is the limit", s.said()["debian"])
			m.days = 0
			s.run(m)
			assert.Equal(t, everyone, m.taken())
			assert.Equal(t, "skip: unchanged", s.said()["lab"])

			s.policy, s.only = fleet.Policy{Force: true}, []string{"la*"}
			s.run(m)
			assert.Equal(t, []string{"lab"}, m.taken(), "what it starts from is taken as it is")
		})
	}
}

func TestWithoutARegistryTheLayoutsInOutputDirCount(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, strings.Replace(familyCatalogue, ", tags: v1", "", 1)), &maker{}
	s.env["OUTPUT_DIR"] = filepath.Join(t.TempDir(), "me@home", "out") // a path may have what ends a reference
	first := s.run(m)
	assert.Equal(t, everyone, m.taken())
	assert.Regexp(t, `^oci:/.*/lab/lab@sha256:[0-9a-f]{64}$`, reference(first, "lab"))
	l, err := oci.Load(pipeline.Layout(fleet.Dir(s.env["OUTPUT_DIR"], "lab"), "lab"))
	require.NoError(t, err)
	assert.NotContains(t, l.Annotations, "org.opencontainers.image.version", "nobody gave it one")

	s.run(m)
	assert.Empty(t, m.taken())
	assert.Empty(t, s.planned()["lab"].Tags)
	require.NoError(t, os.RemoveAll(pipeline.Layout(fleet.Dir(s.env["OUTPUT_DIR"], "lab"), "lab")))
	s.run(m)
	assert.Equal(t, []string{"lab"}, m.taken())
	assertClean(t, s.env["OUTPUT_DIR"])
}

// assertClean says that of each image nothing but the image is left.
func assertClean(t *testing.T, outputDir string) {
	t.Helper()
	for _, name := range everyone {
		work := filepath.Join(fleet.Dir(outputDir, name), "work")
		assert.NoFileExists(t, filepath.Join(work, "provisioned.qcow2"))
		assert.NoDirExists(t, filepath.Join(work, "disk"), "%s: the disk that its children started from", name)
	}
}

func TestAnImageThatWasPushedHasItsManifestsBesideIt(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, strings.Replace(familyCatalogue, "tags: v1", "tags: [v1, latest]", 1)), &maker{}
	manifests := func(name string) string { return filepath.Join(fleet.Dir(s.env["OUTPUT_DIR"], name), "manifests") }
	s.run(m)
	assert.NoDirExists(t, manifests("lab"), "no cluster gets it from a folder")

	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	s.env["TARGET_REGISTRY"], s.env["REGISTRY_PREFIX"] = host, "labs"
	made := s.run(m)
	for _, i := range made.Images {
		for file, words := range map[string]string{
			"vm.yaml":            "image: " + host + "/labs/" + i.Name + "@" + i.Result.Digest,
			"import-cron.yaml":   "url: docker://" + host + "/labs/" + i.Name + ":latest",
			"kustomization.yaml": "- vm-persistent.yaml",
		} {
			text, err := os.ReadFile(filepath.Join(manifests(i.Name), file))
			require.NoError(t, err)
			assert.Contains(t, string(text), words)
		}
	}
}

func TestAnImageWithoutATagGetsOneFromItsInputs(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, strings.Replace(familyCatalogue, ", tags: v1", "", 1)), &maker{}
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	made := s.run(m)
	e := s.planned()["lab"]
	tag := strings.TrimPrefix(e.Inputs, "sha256:")[:12]
	assert.Equal(t, []string{tag}, e.Tags)
	assert.Contains(t, reference(made, "lab"), "/lab:"+tag+"@")
	assert.Contains(t, e.Stages["pack"], "--image-tag="+tag)
	s.edit("playbooks/roles/course/tasks/main.yml", "msg:", "verbosity: 1, msg:")
	assert.NotEqual(t, e.Tags, s.planned()["lab"].Tags, "another image never takes its place")
}

func TestAWrongPasswordIsOneClearError(t *testing.T) {
	t.Parallel()
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "htpasswd")
	require.NoError(t, os.WriteFile(file, []byte("me:"+string(hash)+"\n"), 0o600))
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Htpasswd: file})
	front := counted(t, host)

	var many strings.Builder
	many.WriteString(familyCatalogue)
	for i := range 100 {
		fmt.Fprintf(&many, "  - {name: lab-%d, from: debian, playbook: course}\n", i)
	}
	s := newSite(t, many.String())
	s.env["TARGET_REGISTRY"], s.env["REGISTRY_USER"], s.env["REGISTRY_PASS"] = front.host, "me", "wrong-word"
	_, err = s.all(&maker{}).Run(t.Context())
	require.ErrorContains(t, err, "REGISTRY_PASS")
	assert.NotContains(t, err.Error(), "wrong-word")
	assert.NotContains(t, err.Error(), "\n")
	total := 0
	for _, n := range front.taken() {
		total += n
	}
	assert.Less(t, total, 50, "a registry that refuses a login is not asked for a hundred images")

	s.env["REGISTRY_PASS"] = "right"
	s.only = []string{"lab"}
	s.run(&maker{})
}

func TestOneImageThatCannotBePlannedStopsItsDescendantsAndNothingElse(t *testing.T) {
	s, m := newSite(t, familyCatalogue+`
  - {name: other, base: {url: "https://example.org/debian.qcow2", checksum: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, playbook: base}
  - {name: broken, base: {packages: trixie}, playbook: base}
  - {name: below, from: broken, playbook: course}
`), &maker{}
	s.ansible("2.14.18")
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	said := s.said()
	const why = "this host's ansible-core 2.14.18 cannot manage Debian 13 (Python 3.13): it takes ansible-core 2.16 or newer"
	assert.Contains(t, said["broken"], "blocked: "+why)
	assert.Equal(t, "blocked: broken is blocked", said["below"])
	summary, err := s.all(m).Run(t.Context())
	require.ErrorContains(t, err, `1 of 6 images failed, 1 more were blocked by that`)
	require.ErrorContains(t, err, "broken: "+why)
	assert.Equal(t, []string{"debian", "exam", "lab", "other"}, m.taken())
	assert.Equal(t, map[string]int{"done": 4, "failed": 1, "blocked": 1}, counts(summary))
}

func counts(s fleet.Summary) map[string]int {
	all := map[string]int{}
	for state, n := range s.Counts {
		all[string(state)] = n
	}
	return all
}

func TestMistakesInSettingsAreToldWithTheirLinesAllAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, `
images:
  - {name: lab, from: debian, playbook: course, ansible-dir: nowhere, vars: missing.yaml}
  - name: debian
    base: {packages: trixie}
    playbook: base
    size: 3000G
    build-user: crownlabs
`)
	all := s.all(nil)
	_, err := all.Plan(t.Context())
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 4, err)
	file := filepath.Join(s.dir, "catalogue.yaml")
	for i, begin := range []string{":3: image lab: ansible-dir: ", ":3: image lab: vars: ", ":4: image debian: size: ",
		`:4: image debian: build-user: "crownlabs" is also vm-user: give another name, or set bake-user: true`} {
		assert.True(t, strings.HasPrefix(lines[i], file+begin), lines[i])
	}
}

func TestChildrenStartFromTheirParentAndAllIsCleanedUp(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	summary := s.run(m)
	_, debian, _ := strings.Cut(reference(summary, "debian"), "@")
	assert.Equal(t, map[string]string{"debian": "", "lab": debian, "exam": debian}, m.bases)
	assertClean(t, s.env["OUTPUT_DIR"])
	assert.FileExists(t, filepath.Join(s.env["OUTPUT_DIR"], "build-all.json"))
}

func TestWhatAFailedChildNeedsStaysAndItsParentIsNotBuiltAgain(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	boom := errors.New("the guest has crashed")
	m.stop = func(_ context.Context, image, point string) error {
		if image == "lab" && point == "pack" {
			return boom
		}
		return nil
	}
	_, err := s.all(m).Run(t.Context())
	require.ErrorIs(t, err, boom)
	require.ErrorContains(t, err, "1 of 3 images failed\nlab: the guest has crashed")
	assert.FileExists(t, filepath.Join(s.env["OUTPUT_DIR"], "lab", "work", "provisioned.qcow2"))
	assert.DirExists(t, filepath.Join(s.env["OUTPUT_DIR"], "debian", "work", "disk"), "the next run takes it from there")

	m.stop = nil
	m.taken()
	s.run(m)
	assert.Equal(t, []string{"lab"}, m.taken())
	assertClean(t, s.env["OUTPUT_DIR"])
}

func TestALayoutOfAnotherParentIsNotSent(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{days: 1}
	s.run(m) // without a registry
	m.taken()
	require.NoError(t, os.RemoveAll(filepath.Join(s.env["OUTPUT_DIR"], "debian")))
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	m.days = 0
	summary := s.run(m)
	assert.Equal(t, everyone, m.taken(), "the children's layouts are of the old parent")
	_, debian, _ := strings.Cut(reference(summary, "debian"), "@")
	assert.Equal(t, debian, m.bases["lab"])
}

func TestTwoAtOnceInOneOutputDirDoNotMeet(t *testing.T) {
	t.Parallel()
	s, m := newSite(t, familyCatalogue), &maker{}
	inside, goOn := make(chan struct{}), make(chan struct{})
	m.stop = func(_ context.Context, image, point string) error {
		if image == "debian" && point == "provision" {
			close(inside)
			<-goOn
		}
		return nil
	}
	first, second := s.all(m), s.all(&maker{})
	ended := make(chan error)
	go func() { _, err := first.Run(t.Context()); ended <- err }()
	<-inside
	_, err := second.Run(t.Context())
	require.ErrorContains(t, err, "another diskforge build is using "+filepath.Join(s.env["OUTPUT_DIR"], "work"))
	assert.NotContains(t, err.Error(), "\n")
	close(goOn)
	require.NoError(t, <-ended)
	assert.Equal(t, everyone, m.taken())
	assertClean(t, s.env["OUTPUT_DIR"])
}

func TestTwoAtOnceOnOneRegistryBothEndWell(t *testing.T) {
	t.Parallel()
	s := newSite(t, familyCatalogue)
	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	makers := []*maker{{}, {days: 1}} // of different digests
	var met sync.WaitGroup            // both have planned before either has pushed
	met.Add(len(makers))
	ends := make(chan error, len(makers))
	var summaries [2]fleet.Summary
	for i, m := range makers {
		m.stop = func(_ context.Context, image, point string) error {
			if image == "debian" && point == "push" {
				met.Done()
				met.Wait()
			}
			return nil
		}
		s.env["OUTPUT_DIR"], s.env["CACHE_DIR"] = t.TempDir(), t.TempDir()
		all := s.all(m)
		go func() {
			var err error
			summaries[i], err = all.Run(t.Context())
			ends <- err
		}()
	}
	for range makers {
		require.NoError(t, <-ends)
	}
	session, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer session.Close()
	for name, e := range s.planned() {
		found, ok, err := session.Find(t.Context(), e.Reference, e.Inputs)
		require.NoError(t, err)
		require.True(t, ok, "%s is whole", name)
		assert.Equal(t, "v1", found.Tag)
		assert.Contains(t, []string{reference(summaries[0], name), reference(summaries[1], name)}, found.Reference, "one of the two")
		fetched, err := registry.Fetch(t.Context(), found.Reference, registry.FetchOptions{CacheDir: t.TempDir()}, progress.Discard)
		require.NoError(t, err)
		assert.Equal(t, found.Digest, fetched.Manifest)
	}
}

func TestWhatKeepsEveryImageFromBeingPlannedIsToldOnce(t *testing.T) {
	s := newSite(t, familyCatalogue)
	s.ansible("2.14.18")
	s.edit("catalogue.yaml", "debian.qcow2", "noble-server-cloudimg-amd64.img")
	_, err := s.all(nil).Plan(t.Context())
	require.ErrorContains(t, err, "debian: this host's ansible-core 2.14.18 cannot manage Ubuntu 24.04 (Python 3.12): ")
	assert.NotContains(t, err.Error(), "\n")

	s.edit("catalogue.yaml", "images:", `images:
  - {name: other, base: {packages: trixie}, playbook: base}`)
	said := s.said()
	assert.Contains(t, said["debian"], "blocked: this host's ansible-core 2.14.18 cannot manage Ubuntu 24.04")
	assert.Contains(t, said["other"], "blocked: this host's ansible-core 2.14.18 cannot manage Debian 13")
	assert.Equal(t, "blocked: debian is blocked", said["lab"])

	s.ansible("2.18.1")
	assert.Equal(t, "build: not built yet", s.said()["lab"])
}

func TestUnknownPlaybooksAreToldWithTheirLinesAllAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, familyCatalogue+`  - {name: below, from: lab, playbook: nosuch}
  - {name: beside, from: debian, playbook: ../course}
  - {name: good, from: below, playbook: course}
`)
	s.edit("catalogue.yaml", "playbook: base}", "playbook: nowhere}")
	_, err := s.all(&maker{}).Run(t.Context())
	require.ErrorAs(t, err, new(catalogue.Mistakes))
	file := filepath.Join(s.dir, "catalogue.yaml")
	assert.Equal(t, []string{
		file + `:4: image debian: there is no playbook "nowhere": there are base, course`,
		file + `:7: image below: there is no playbook "nosuch": there are base, course`,
		file + `:8: image beside: the playbook "../course" is outside the tree of playbooks: give a path within the tree, or the name of a playbook in its playbooks folder`,
	}, strings.Split(err.Error(), "\n"))
}

func TestWhatIsWrongWithTheAddressOfAllIsToldOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, familyCatalogue)
	s.env["IMAGE_TAG"] = "a b"
	_, err := s.all(nil).Plan(t.Context())
	require.ErrorAs(t, err, new(settings.Mistakes))
	require.ErrorContains(t, err, `IMAGE_TAG cannot be "a b": `)
	assert.NotContains(t, err.Error(), "\n")

	s.env["TARGET_REGISTRY"], s.env["REGISTRY_PREFIX"] = "https://example.org", "La Bs"
	_, err = s.all(nil).Plan(t.Context())
	require.ErrorContains(t, err, `TARGET_REGISTRY cannot be "https://example.org": `)
	require.ErrorContains(t, err, `REGISTRY_PREFIX cannot be "La Bs": `)
	assert.Len(t, strings.Split(err.Error(), "\n"), 3)
}

func TestWhatStartsFromADesktopHasOneUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	s := newSite(t, familyCatalogue+"  - {name: plain, from: debian, playbook: course, desktop: false, vars: {course: plain}}\n")
	s.edit("catalogue.yaml", "playbook: base}", "playbook: base, desktop: true}")
	planned := s.planned()
	for name, desktop := range map[string]string{"debian": "true", "lab": "true", "exam": "true", "plain": "false"} {
		assert.Equal(t, desktop, planned[name].Settings["INSTALL_DESKTOP_ENVIRONMENT"], name)
	}
	assert.Contains(t, planned["lab"].Stages["verify"], "--install-desktop-environment=true")
}

func TestAnImageOfOtherInputsIsToldFromNone(t *testing.T) {
	t.Parallel()
	s := newSite(t, familyCatalogue)
	assert.Equal(t, "not built yet", s.planned()["lab"].Why)
	s.run(new(maker))
	assert.Contains(t, reference(s.run(new(maker)), "lab"), "oci:", "what is there already is told, too")
	s.write("playbooks/roles/course/tasks/main.yml", "- ansible.builtin.debug: {msg: 'other'}\n")
	assert.Equal(t, "its inputs have changed", s.planned()["lab"].Why)

	s.env["TARGET_REGISTRY"], _ = testkit.StartRegistry(t, testkit.RegistryOptions{})
	s.run(new(maker))
	s.write("playbooks/roles/course/tasks/main.yml", "- ansible.builtin.debug: {msg: 'third'}\n")
	assert.Equal(t, "its inputs have changed", s.planned()["lab"].Why)
}

func TestWhatStartsFromAnImageHasItsSizeUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	s := newSite(t, strings.Replace(familyCatalogue, ", size: 1G", "", 1)+`  - {name: below, from: lab, playbook: course, size: 21G}
  - {name: last, from: below, playbook: course}
`)
	s.edit("catalogue.yaml", "playbook: base}", "playbook: base, size: 20G}")
	planned := s.planned()
	for name, size := range map[string]string{"debian": "20G", "lab": "20G", "below": "21G", "last": "21G"} {
		assert.Equal(t, size, planned[name].Settings["DISK_SIZE"], name)
		assert.Contains(t, planned[name].Stages["provision"], "--disk-size="+size, name)
	}

	s.edit("catalogue.yaml", "size: 21G", "size: 20479M")
	_, err := s.all(nil).Plan(t.Context())
	require.EqualError(t, err, filepath.Join(s.dir, "catalogue.yaml")+":7: image below: size 20479M is less than its parent lab's 20G: give 20G or more, or leave size out")
	require.ErrorAs(t, err, new(catalogue.Mistakes))
}

func TestWhatTheControllersAnsibleHasNoMoreIsBlockedInThePlan(t *testing.T) {
	t.Parallel()
	s := newListed(t)
	s.write("playbooks/roles/course/tasks/main.yml", "- ansible.builtin.debug: {msg: hello}\n- include: other.yml\n")
	s.write("playbooks/roles/course/tasks/other.yml", "- ansible.builtin.debug: {msg: hello}\n")
	planned := s.planned()
	assert.Equal(t, fleet.Build, planned["debian"].Action)
	assert.Equal(t, fleet.Blocked, planned["lab"].Action)
	assert.Contains(t, planned["lab"].Why, "ansible-core 2.18.1 has no include any more (roles/course/tasks/main.yml:2)")
}
