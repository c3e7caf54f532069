package catalogue_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

func names(images []catalogue.Image) (out []string) {
	for _, i := range images {
		out = append(out, i.Name)
	}
	return out
}

// accepted are good catalogues, for the loader and for the schema.
var accepted = map[string]string{
	"the least": with(),
	"architectures": `defaults:
  architectures: [amd64, arm64]
  tags: v1
images:
  - {name: lab, base: {url: "https://example.org/{architecture}.qcow2", checksum: "file:https://example.org/SUMS"}, playbook: p}
  - {name: course, from: lab, playbook: c}
  - {name: old, from: lab, playbook: c, architecture: amd64}
  - {name: arm, from: old-arm64, playbook: c, architecture: arm64}
  - {name: old-arm64, from: lab, playbook: c, architecture: arm64}
`,
	"everything": `
registry: harbor.example.org:5000
prefix: labs/vm
defaults:
  git: {url: "https://github.com/netgroup-polito/CrownLabs.git", branch: master, path: provisioning}
  bake-user: true
  vm-user: crownlabs
  tags: [2026-11-23, latest]
images:
  - name: "22.04"
    base: {url: https://example.org/x.qcow2, checksum: "file:https://example.org/SHA256SUMS"}
    playbook: ubuntu-base.yml
    desktop: true
    packages: [octave, gnuplot-nox]
    groups: dialout
    keyboard: us,it
    outputs: [containerdisk, ova]
    crownlabs-mode: false
    vars: {course: databases, list: [1, 2.5, true, null], deep: {when: 2026-11-23}}
    memory: 4096
    cpus: 4
    size: 15G
    architecture: amd64
    boot-timeout: 1h30m
    build-user: builder
    sparsify: trim
    compression: zlib
  - name: child
    from: "22.04"
    playbook: course.yml
    ansible-dir: ansible
    vars: course.yaml
    memory: 4Gi
    tags: 24.04
`,
	"packages":             "images: [{name: x, base: {packages: bookworm}, packages: octave}]\n",
	"packages of a matrix": "images: [{name: 'x-{p}', matrix: {p: [octave, r-base]}, base: {packages: bookworm}, packages: ['{p}', gnuplot-nox]}]\n",
	"a matrix of lists":    "images:\n  - {name: 'x-{release}-{gui}', matrix: {release: [22.04, bookworm], gui: [true, false]}, desktop: '{gui}', base: {packages: bookworm}, playbook: p}\n",
	"a matrix of mappings": `
images:
  - name: ubuntu-{release}-{kind}
    matrix:
      release: {22.04: {base: {url: a.qcow2, checksum: "file:SUMS"}}, 24.04: {base: {url: b.qcow2, checksum: "file:SUMS"}}}
      kind: {server: , desktop: {desktop: true, size: 20G}}
    exclude: [{release: 22.04, kind: desktop}]
    playbook: ubuntu-base
`,
	"containerdisks": `
images:
  - {name: a, base: {url: "oci://harbor.example.org/labs/base:1", checksum: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, playbook: p}
  - {name: b, base: {url: "oci://harbor.example.org/labs/base@sha256:0000000000000000000000000000000000000000000000000000000000000000"}, playbook: p}
`,
	"anchors": `
images:
  - &one {name: a, base: &base {packages: trixie}, playbook: p}
  - {name: b, base: *base, playbook: p}
`,
}

func TestGoodCataloguesAreReadAndTheSchemaAgrees(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	for name, text := range accepted {
		t.Run(name, func(t *testing.T) {
			must(t, text)
			assert.NoError(t, valid(t, s, text))
		})
	}
}

func TestEverySettingOfAnImageIsThere(t *testing.T) {
	t.Parallel()
	c, err := parse(accepted["everything"])
	require.NoError(t, err)
	assert.Equal(t, "harbor.example.org:5000", c.Registry)
	assert.Equal(t, "labs/vm", c.Prefix)
	parent := c.Images[0]
	assert.JSONEq(t, `{"course": "databases", "list": [1, 2.5, true, null], "deep": {"when": "2026-11-23"}}`, parent.Settings["EXTRA_VARS"])
	delete(parent.Settings, "EXTRA_VARS")
	assert.Equal(t, catalogue.Image{Name: "22.04", Tags: []string{"2026-11-23", "latest"}, Line: 10, Wanted: true, Settings: map[string]string{
		"ISO_URL": "https://example.org/x.qcow2", "ISO_CHECKSUM": "file:https://example.org/SHA256SUMS",
		"ANSIBLE_PLAYBOOK": "ubuntu-base.yml", "INSTALL_DESKTOP_ENVIRONMENT": "true", "MEMORY": "4096", "CPUS": "4", "DISK_SIZE": "15G",
		"GIT_ANSIBLE_URL": "https://github.com/netgroup-polito/CrownLabs.git", "GIT_ANSIBLE_BRANCH": "master", "GIT_ANSIBLE_PATH": "provisioning",
		"ARCHITECTURE": "amd64", "BOOT_TIMEOUT": "1h30m", "BUILD_USER": "builder", "VM_USER": "crownlabs", "BAKE_USER": "true",
		"SPARSIFY": "trim", "QCOW2_COMPRESSION": "zlib", "PACKAGES": "octave,gnuplot-nox", "LOGIN_GROUPS": "dialout",
		"KEYBOARD": "us,it", "OUTPUTS": "containerdisk,ova", "CROWNLABS_MODE": "false",
	}}, parent)
	assert.Equal(t, catalogue.Image{Name: "child", From: "22.04", Tags: []string{"24.04"}, Line: 28, Wanted: true, Settings: map[string]string{
		"ANSIBLE_PLAYBOOK": "course.yml", "ANSIBLE_DIR": "/catalogues/ansible", "DISK_SIZE": "15G", "INSTALL_DESKTOP_ENVIRONMENT": "true", "EXTRA_VARS": "@/catalogues/course.yaml",
		"MEMORY": "4Gi", "VM_USER": "crownlabs", "BAKE_USER": "true", "CROWNLABS_MODE": "false", "ARCHITECTURE": "amd64",
	}}, c.Images[1])
}

func TestAnImageIsWrittenOutForEachArchitecture(t *testing.T) {
	t.Parallel()
	images := must(t, accepted["architectures"])
	assert.Equal(t, []string{"lab-amd64", "lab-arm64", "course-amd64", "course-arm64", "old", "old-arm64", "arm"}, names(images))
	by := map[string]catalogue.Image{}
	for _, i := range images {
		by[i.Name] = i
	}
	both := []string{"amd64", "arm64"}
	assert.Equal(t, catalogue.Image{
		Name: "lab-arm64", Index: "lab", Architectures: both, Tags: []string{"v1"}, Line: 5, Wanted: true,
		Settings: map[string]string{"ISO_URL": "https://example.org/arm64.qcow2", "ISO_CHECKSUM": "file:https://example.org/SUMS", "ANSIBLE_PLAYBOOK": "p", "ARCHITECTURE": "arm64"},
	}, by["lab-arm64"])
	assert.Equal(t, "lab-arm64", by["course-arm64"].From)
	assert.Equal(t, both, by["course-amd64"].Architectures)
	assert.Empty(t, by["arm"].Index)
	inherits := must(t, with("architecture: arm64")+"  - {name: y, from: x, playbook: p}\n")
	assert.Equal(t, "arm64", inherits[1].Settings["ARCHITECTURE"], "its parent's")
	assert.Equal(t, "amd64", by["old"].Settings["ARCHITECTURE"], "its own word wins over the defaults'")
	assert.Equal(t, "lab-amd64", by["old"].From)
}

func TestAnExcludedArchitectureIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, i := range must(t, "images: [{name: 'x-{release}', base: {packages: bookworm}, playbook: p, architectures: [amd64, arm64], "+
		"matrix: {release: [a, b]}, exclude: [{release: b, architecture: arm64}]}]") {
		want := []string{"amd64", "arm64"}
		if i.Index == "x-b" {
			want = want[:1]
		}
		assert.Equal(t, want, i.Architectures, i.Name)
	}
}

func TestPackagesTakeTheAxes(t *testing.T) {
	t.Parallel()
	images := must(t, accepted["packages of a matrix"])
	require.Len(t, images, 2)
	assert.Equal(t, map[string]string{"BASE_FROM_PACKAGES": "true", "SUITE": "bookworm", "PACKAGES": "r-base,gnuplot-nox"}, images[1].Settings)
}

func TestTwoReleasesTimesServerAndDesktopTakeThreeLines(t *testing.T) {
	t.Parallel()
	images := must(t, `images:
  - name: debian-{release}-{kind}
    matrix: {release: [bookworm, trixie], kind: {server: , desktop: {desktop: true}}}
    base: {packages: "{release}"}
    playbook: debian-base
`)
	assert.Equal(t, []string{"debian-bookworm-server", "debian-bookworm-desktop", "debian-trixie-server", "debian-trixie-desktop"}, names(images))
	for _, i := range images {
		assert.Equal(t, strings.Split(i.Name, "-")[1], i.Settings["SUITE"])
		assert.Equal(t, strings.HasSuffix(i.Name, "desktop"), i.Settings["INSTALL_DESKTOP_ENVIRONMENT"] == "true")
	}
}

func TestWhatIsCloserToAnImageWins(t *testing.T) {
	t.Parallel()
	images := must(t, `
defaults: {size: 10G, memory: 1024, base: {packages: bookworm}, git: {url: "https://example.org/r.git", branch: main}, vars: {a: 1, b: {x: 1}}, tags: [one, two]}
images:
  - {name: plain, playbook: p}
  - {name: own, playbook: p, size: 20G, base: {url: /x.qcow2, checksum: "file:SUMS"}, git: {branch: dev}, vars: {b: {y: 2}}, tags: three}
  - {name: child, playbook: p, from: plain, ansible-dir: tree, vars: file.yaml}
  - {name: "{kind}", playbook: p, size: 20G, matrix: {kind: {big: {size: 40G, from: plain, vars: {c: "{kind} {other} {{kind}}"}}}}}
`)
	require.Equal(t, []string{"plain", "own", "child", "big"}, names(images))
	own, child, big := images[1], images[2], images[3]
	assert.Equal(t, "20G", own.Settings["DISK_SIZE"])
	assert.Equal(t, "1024", own.Settings["MEMORY"])
	assert.Equal(t, "/x.qcow2", own.Settings["ISO_URL"])
	assert.NotContains(t, own.Settings, "BASE_FROM_PACKAGES", "a base replaces a base")
	assert.Equal(t, "https://example.org/r.git", own.Settings["GIT_ANSIBLE_URL"])
	assert.Equal(t, "dev", own.Settings["GIT_ANSIBLE_BRANCH"])
	assert.JSONEq(t, `{"a": 1, "b": {"y": 2}}`, own.Settings["EXTRA_VARS"])
	assert.Equal(t, []string{"three"}, own.Tags)
	assert.NotContains(t, child.Settings, "SUITE", "from takes back the base")
	assert.NotContains(t, child.Settings, "GIT_ANSIBLE_URL", "a folder takes back git")
	assert.Equal(t, "@/catalogues/file.yaml", child.Settings["EXTRA_VARS"])
	assert.Equal(t, "40G", big.Settings["DISK_SIZE"])
	assert.Equal(t, "plain", big.From)
	assert.JSONEq(t, `{"a": 1, "b": {"x": 1}, "c": "big {other} {{kind}}"}`, big.Settings["EXTRA_VARS"])
}

func TestParentsComeFirstAndTheRestStaysAsInTheFile(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"root", "mid", "leaf", "other", "late"}, names(must(t, `
images:
  - {name: leaf, from: mid, playbook: p}
  - {name: other, from: root, playbook: p}
  - {name: mid, from: root, playbook: p}
  - {name: root, base: {packages: bookworm}, playbook: p}
  - {name: late, from: leaf, playbook: p}
`)))
}

func TestAFileIsLoadedAndItsPathsAreBesideIt(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "catalogue.yaml")
	require.NoError(t, os.WriteFile(file, []byte("images: [{name: x, base: {url: x.qcow2, checksum: 'file:SUMS'}, playbook: p}]"), 0o600))
	t.Chdir(filepath.Dir(folder))
	c, err := catalogue.Load(filepath.Join(filepath.Base(folder), "catalogue.yaml"))
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(folder, "x.qcow2"), c.Images[0].Settings["ISO_URL"])
	assert.Equal(t, "file:"+filepath.Join(folder, "SUMS"), c.Images[0].Settings["ISO_CHECKSUM"])

	_, err = catalogue.Load(filepath.Join(folder, "none.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = catalogue.Load(folder)
	require.Error(t, err)
}

func TestALayoutBesideTheCatalogueIsABase(t *testing.T) {
	t.Parallel()
	layout := "oci:base@sha256:" + strings.Repeat("0", 64)
	i := must(t, "images: [{name: x, base: {url: '"+layout+"'}, playbook: p}]")[0]
	assert.Equal(t, "oci:/catalogues/base@sha256:"+strings.Repeat("0", 64), i.Settings["ISO_URL"])
	assert.NotContains(t, i.Settings, "ISO_CHECKSUM")
}

func TestImagesAreChosenWithWhatTheyStartFrom(t *testing.T) {
	t.Parallel()
	c, err := parse(`
images:
  - {name: base-a, base: {packages: bookworm}, playbook: p}
  - {name: base-b, base: {packages: trixie}, playbook: p}
  - {name: netlab, from: base-a, playbook: p}
  - {name: netlab-2, from: netlab, playbook: p}
`)
	require.NoError(t, err)
	chosen, err := c.Select("netlab-?")
	require.NoError(t, err)
	assert.Equal(t, []string{"base-a", "netlab", "netlab-2"}, names(chosen))
	assert.Equal(t, []bool{false, false, true}, []bool{chosen[0].Wanted, chosen[1].Wanted, chosen[2].Wanted})
	chosen, err = c.Select("base-*", "netlab")
	require.NoError(t, err)
	assert.Equal(t, []string{"base-a", "base-b", "netlab"}, names(chosen))
	chosen, err = c.Select()
	require.NoError(t, err)
	assert.Equal(t, c.Images, chosen)

	_, err = c.Select("base-*", "netlba")
	require.EqualError(t, err, `no image of the catalogue matches "netlba": there are e.g. netlab, netlab-2`)
	_, err = c.Select("zzzzzzzzz")
	require.ErrorContains(t, err, "base-a, base-b, netlab, netlab-2")
	_, err = c.Select("[")
	require.ErrorContains(t, err, "no pattern")
}

func TestVariablesMeanWhatTheyMeanToAnsible(t *testing.T) {
	t.Parallel()
	i := must(t, with("vars: {big: 12345678901234567890, octal: 0o17, text: '007', no: no, date: 2026-11-23T10:00:00Z}"))[0]
	var vars map[string]any
	require.NoError(t, json.Unmarshal([]byte(i.Settings["EXTRA_VARS"]), &vars))
	assert.Equal(t, map[string]any{"big": 12345678901234567890.0, "octal": "0o17", "text": "007", "no": false, "date": "2026-11-23T10:00:00Z"}, vars)
}

func TestAChildHasTheSizeAndTheDesktopOfItsParentUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	images := must(t, `
defaults: {playbook: p, size: 15G, desktop: false}
images:
  - {name: grandchild, from: child}
  - {name: child, from: big-desktop}
  - {name: other, from: big-desktop, size: 30G, desktop: false}
  - name: by-matrix-{kind}
    matrix: {kind: {a: {size: 25G}, b: }}
    from: big-desktop
  - {name: plain, from: small}
  - {name: small, base: {packages: bookworm}}
  - {name: big-desktop, base: {packages: bookworm}, size: 20G, desktop: true}
`)
	has := map[string]string{}
	for _, i := range images {
		has[i.Name] = i.Settings["DISK_SIZE"] + " " + i.Settings["INSTALL_DESKTOP_ENVIRONMENT"]
	}
	assert.Equal(t, map[string]string{
		"big-desktop": "20G true", "child": "20G true", "grandchild": "20G true", "other": "30G false",
		"by-matrix-a": "25G true", "by-matrix-b": "20G true", "small": "15G false", "plain": "15G false",
	}, has)
}
