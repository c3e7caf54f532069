package catalogue_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

// refused are catalogues with one mistake, which a schema can see, and what is
// said of it.
var refused = map[string]string{
	"[1]":                            "catalogue.yaml:1: a catalogue must be a mapping of keys and values",
	"prefix: labs":                   "catalogue.yaml:1: there are no images: add images, a list",
	"images: []":                     "catalogue.yaml:1: images must be a list with something in it",
	"images: {a: b}":                 "catalogue.yaml:1: images must be a list with something in it",
	with("siez: 10G"):                `catalogue.yaml:5: "siez" is no key of an image: did you mean size?`,
	with("zzzzz: 10G"):               `catalogue.yaml:5: "zzzzz" is no key of an image: there are ansible-dir, architecture, architectures, bake-user, base, boot-timeout, build-user, compression, cpus, crownlabs-mode, desktop, exclude, from, git, groups, keyboard, matrix, memory, name, outputs, packages, playbook, size, sparsify, tags, vars, vm-user`,
	with("DISK_SIZE: 10G"):           `catalogue.yaml:5: "DISK_SIZE" is no key of an image: it is size here`,
	with("registry: x"):              `catalogue.yaml:5: "registry" is no key of an image: it stands beside images, not in one`,
	with("password: x"):              `catalogue.yaml:5: "password" is no key of an image; a catalogue holds no secrets: set REGISTRY_USER and REGISTRY_PASS in the environment`,
	"registry_pass: x\n" + with():    `catalogue.yaml:1: "registry_pass" is no key of a catalogue; a catalogue holds no secrets: set REGISTRY_USER and REGISTRY_PASS in the environment`,
	"size: 10G\n" + with():           `catalogue.yaml:1: "size" is no key of a catalogue: it belongs to an image`,
	"defaults: {from: x}\n" + with(): `catalogue.yaml:1: "from" is no key of defaults: it belongs to an image`,
	with("git: {password: x}"):       `catalogue.yaml:5: "password" is no key of git: it has url, branch, path; a catalogue holds no secrets: set REGISTRY_USER and REGISTRY_PASS in the environment`,
	with("size: 10"):                 `catalogue.yaml:5: size must be text, and YAML makes another kind (integer) of it: give e.g. 10G`,
	with("size: '10'"):               `catalogue.yaml:5: size cannot be "10": give e.g. 10G`,
	"images: [{name: x, base: {url: y, checksum: md5}, playbook: p}]": `catalogue.yaml:1: base.checksum cannot be "md5": give e.g. file:https://cloud-images.ubuntu.com/noble/current/SHA256SUMS`,
	with("memory: much"):                  `catalogue.yaml:5: memory cannot be "much": give e.g. 4096`,
	with("cpus: 65"):                      `catalogue.yaml:5: cpus cannot be "65": give e.g. 2`,
	with("desktop: yes"):                  `catalogue.yaml:5: desktop cannot be "yes": give true or false`,
	with("sparsify: all"):                 `catalogue.yaml:5: sparsify cannot be "all": give auto, trim, virt-sparsify, none`,
	with("vm-user: Root"):                 `catalogue.yaml:5: vm-user cannot be "Root": give e.g. crownlabs`,
	with("boot-timeout: soon"):            `catalogue.yaml:5: boot-timeout cannot be "soon": give e.g. 15m`,
	with("architecture: s390x"):           `catalogue.yaml:5: architecture cannot be "s390x": give amd64, arm64`,
	with("vm-user:"):                      `catalogue.yaml:5: vm-user is empty: give e.g. crownlabs, or remove it`,
	with("vm-user: [a]"):                  `catalogue.yaml:5: vm-user is no text: give e.g. crownlabs`,
	with("architectures: [amd64]"):        `catalogue.yaml:5: architectures is a list of two or more: for one, write architecture`,
	with("architectures: [amd64, amd64]"): `catalogue.yaml:5: architectures has amd64 twice: remove one`,
	with("architectures: [amd64, s390x]"): `catalogue.yaml:5: architectures cannot be "s390x": give amd64, arm64`,
	with("tags: []"):                      `catalogue.yaml:5: tags must be a list with something in it`,
	with("tags: [a, 'b c']"):              `catalogue.yaml:5: tags cannot be "b c": give e.g. 2026-11-23`,
	with("vars: 3"):                       `catalogue.yaml:5: vars must be text, and YAML makes another kind (integer) of it: write "3"`,
	with("from: y") + "  - {name: y, base: {packages: bookworm}, playbook: p}\n":                      `catalogue.yaml:5: base and from both say what the image starts from: choose one`,
	with("git: {branch: x}", "ansible-dir: y"):                                                        `catalogue.yaml:6: git and ansible-dir both say where the playbooks are: choose one`,
	with("exclude: [{a: b}]"):                                                                         `catalogue.yaml:5: exclude leaves out combinations of a matrix, and there is none: add matrix, or remove exclude`,
	with("matrix: {}"):                                                                                `catalogue.yaml:5: matrix has no axis: add one, e.g. release: [bookworm, trixie], or remove it`,
	with("matrix: {a: []}"):                                                                           `catalogue.yaml:5: a must be a list with something in it`,
	with("matrix: {A: [x]}"):                                                                          `catalogue.yaml:5: "A" cannot name an axis: give a lower-case letter, then letters, digits, - and _`,
	with("matrix: {a: {x: {name: y}}}"):                                                               `catalogue.yaml:5: "name" is no key of a value of an axis: it belongs to an image`,
	with("matrix: {a: {x: [y]}}"):                                                                     `catalogue.yaml:5: a value of an axis must be a mapping of keys and values`,
	"images: [{name: X, base: {packages: bookworm}, playbook: p}]":                                    `catalogue.yaml:1: name cannot be "X": give e.g. octave-lab`,
	"images: [{base: {packages: bookworm}, playbook: p}]":                                             `catalogue.yaml:1: the image has no name: add name`,
	"images: [{name: x, base: {}, playbook: p}]":                                                      `catalogue.yaml:1: base has no url: give url and checksum, or packages: bookworm`,
	"images: [{name: x, base: bookworm, playbook: p}]":                                                `catalogue.yaml:1: base must be a mapping of keys and values`,
	"images: [{name: x, base: {url: y}, playbook: p}]":                                                `catalogue.yaml:1: base has no checksum: add checksum, e.g. file: with the URL of a SHA256SUMS file`,
	"images: [{name: x, base: {packages: bookworm, url: y}, playbook: p}]":                            `catalogue.yaml:1: base has packages and a url: choose one`,
	"images: [{name: x, base: {packages: sid}, playbook: p}]":                                         `catalogue.yaml:1: base.packages cannot be "sid": give bookworm, trixie`,
	"images: [{name: x, base: {packages: bookworm}, playbook: true}]":                                 `catalogue.yaml:1: playbook must be text, and YAML makes another kind (boolean) of it: write "true"`,
	"registry: https://x.example.org\nimages: [{name: x, base: {packages: bookworm}, playbook: p}]\n": `catalogue.yaml:1: registry cannot be "https://x.example.org": give e.g. harbor.example.org`,
}

// wrong are catalogues with one mistake that takes more than a schema to see.
var wrong = map[string]string{
	"":                     "catalogue.yaml:1: the file is empty: it takes images, a list",
	"images: [\n":          "catalogue.yaml:1: this is no YAML: did not find expected node content",
	with() + "---\na: b\n": "catalogue.yaml:6: there is a second document: a catalogue is one, remove the line ---",
	with("architectures: [amd64, arm64]", "architecture: arm64"):                                                                                                                             `catalogue.yaml:5: architecture and architectures both say what the image is for: choose one`,
	with("architectures: [amd64, arm64]", "matrix: {architecture: [a, b]}"):                                                                                                                  `catalogue.yaml:5: architectures is an axis of the matrix, which has one of that name, architecture: rename or remove that`,
	"images: [{name: 'x-{architecture}', base: {packages: bookworm}, playbook: p, architectures: [amd64, arm64]}]":                                                                           `catalogue.yaml:1: name is that of the index: leave {architecture} out, which is added for each image`,
	with("architectures: [amd64, arm64]") + "  - {name: y, from: x, playbook: p}\n":                                                                                                          `catalogue.yaml:6: y is from "x", which is no image of this catalogue: it is an index: give architectures here, too, or one of its images as from`,
	with("architectures: [amd64, arm64]") + "  - {name: y, from: x-amd64, playbook: p, architecture: arm64}\n":                                                                               `catalogue.yaml:6: y is for arm64, and x-amd64, from which it starts, for amd64`,
	"images: [{name: x, base: {packages: bookworm}, playbook: p, architectures: [amd64, arm64]}, {name: y, from: x-arm64, playbook: p}, {name: x, base: {packages: bookworm}, playbook: p}]": `catalogue.yaml:1: the name x, of an index, is taken by the image in line 1: give another`,
	with("playbook: twice"):                                                             `catalogue.yaml:5: "playbook" is set twice, first in line 4: remove one`,
	with("<<: {size: 10G}"):                                                             `catalogue.yaml:5: << is not supported: use defaults, or a matrix`,
	with("? [a]\n    : b"):                                                              `catalogue.yaml:5: a key of an image is no text`,
	with("vars: {a: !vault x}"):                                                         `catalogue.yaml:5: !vault "x" cannot be given to Ansible: write text, a number, true, false, a list or a mapping`,
	with("vars: {a: .inf}"):                                                             `catalogue.yaml:5: !!float ".inf" cannot be given to Ansible: write text, a number, true, false, a list or a mapping`,
	with("vars: &a {a: *a}"):                                                            `catalogue.yaml:5: vars is deeper than 32 levels: put it into a file, and give its path`,
	with("git: {url: 'https://me:secret@example.org/r.git'}"):                           `catalogue.yaml:5: git.url holds a password, and a catalogue is for everyone to read: remove it; git's and the registry's logins are found where they are kept`,
	with("vm-user: '{who}'"):                                                            `catalogue.yaml:5: {who} is no axis of the matrix of x: it has no matrix`,
	with("matrix: {a: [1, 2]}"):                                                         `catalogue.yaml:2: the matrix makes several images with the name x: put every axis into the name, as {axis}`,
	with("matrix: {a: [1, 1]}"):                                                         "catalogue.yaml:2: the matrix makes several images with the name x: put every axis into the name, as {axis}\ncatalogue.yaml:5: a has the value 1 twice: remove one",
	with("matrix: {a: [1]}", "exclude: [{b: 1}]"):                                       `catalogue.yaml:6: "b" is no axis of the matrix: give a`,
	with("matrix: {a: [1]}", "exclude: [{a: 2}]"):                                       `catalogue.yaml:6: exclude names no combination of the matrix: correct it, or remove it`,
	with("matrix: {a: [huge]}", "size: '{a}'"):                                          `catalogue.yaml:6: size of x cannot be "huge": give e.g. 10G`,
	with("matrix: {a: [1]}", "size: '{b}G'"):                                            `catalogue.yaml:6: {b} is no axis of the matrix of x: it has a`,
	with() + "  - {name: x, from: x, playbook: p}":                                      "catalogue.yaml:6: the name x is taken by the image in line 2: give another",
	"images: [{name: a-, base: {packages: bookworm}, playbook: p}]":                     `catalogue.yaml:1: name cannot be "a-": give at most 128 lower-case letters and digits, with . _ or - between them`,
	"images: [{name: x, playbook: p}]":                                                  `catalogue.yaml:1: the image starts from nothing: add base, or from with the name of another image`,
	"images: [{name: x, base: {packages: bookworm}}]":                                   `catalogue.yaml:1: the image has no playbook: add playbook, e.g. debian-base, or packages`,
	"images: [{name: x, base: {packages: bookworm}, packages: octave, ansible-dir: .}]": `catalogue.yaml:1: the image has no playbook: add playbook, e.g. debian-base, or packages`,
	"images: [{name: x, base: {packages: bookworm}, packages: [Octave]}]":               `catalogue.yaml:1: packages cannot be "Octave": give e.g. octave`,
	"images: [{name: x, base: {packages: bookworm}, packages: []}]":                     `catalogue.yaml:1: packages must be a list with something in it`,
	"images: [{name: x, base: {packages: bookworm}, packages: octave, groups: [a b]}]":  `catalogue.yaml:1: groups cannot be "a b": give e.g. docker`,
	with() + "  - {name: y, from: xx, playbook: p}":                                     `catalogue.yaml:6: y is from "xx", which is no image of this catalogue: did you mean x?`,
	"images: [{name: x, from: x, playbook: p}]":                                         `catalogue.yaml:1: x is from itself: give it a base, or another from`,
	"images:\n- {name: a, from: b, playbook: p}\n- {name: b, from: c, playbook: p}\n- {name: c, from: a, playbook: p}\n- {name: d, from: a, playbook: p}": "catalogue.yaml:2: these images start from each other: a (line 2) is from b (line 3) is from c (line 4) is from a: give one of them a base",
}

func TestEveryMistakeIsToldWithItsLineAndHowToMendIt(t *testing.T) {
	t.Parallel()
	s := compiled(t)
	for text, want := range refused {
		_, err := parse(text)
		if assert.Error(t, err, text) {
			assert.Equal(t, want, err.Error(), text)
		}
		assert.Error(t, valid(t, s, text), "the schema accepts:\n%s", text)
	}
	for text, want := range wrong {
		_, err := parse(text)
		if assert.Error(t, err, text) {
			assert.Contains(t, err.Error(), want, text)
		}
	}
}

func TestASyntaxErrorIsToldWithItsOwnLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"images:\n  - name: x\n    from: y\n   playbook: z\n    size: 10G\n\n":      "4: this is no YAML: did not find expected '-' indicator",
		"images:\n  - name: x\n    base: {url: y\n    playbook: z\n    size: 10G\n": "3: this is no YAML: did not find expected ',' or '}'",
		"images:\n  - name: x\n    base: \"y\n    playbook: z\n    size: 10G\n":     "3: this is no YAML: found unexpected end of stream",
		"images:\n  - name: x\n    from: y: z\n    size: 10G\n":                     "3: this is no YAML: mapping values are not allowed in this context",
		"images:\n  - name: x\n\tfrom: y\n    size: 10G\n":                          "3: this is no YAML: found a tab character that violates indentation",
		"images:\n  - name: x\n    from: y\n    playbook z\n    size: 10G\n":        "4: this is no YAML: could not find expected ':'",
		"images:\n  - name: x\n    from: @y\n    size: 10G\n":                       "3: this is no YAML: found character that cannot start any token",
		"images:\n  - name: x\n    from: *y\n    size: 10G\n":                       "3: this is no YAML: unknown anchor 'y' referenced",
		"images:\n  - name: x\n    vars: {a: b}}\n    size: 10G\n    playbook: z\n": "3: this is no YAML: did not find expected key",
		with() + "]\n": "6: this is no YAML: did not find expected key",
		with() + strings.Repeat("  - name: y\n", 500) + "\t- name: z\n" + strings.Repeat("  - name: y\n", 500): "506: this is no YAML: found a tab character that violates indentation",
	} {
		_, err := parse(text)
		if assert.Error(t, err, text) {
			assert.Equal(t, "catalogue.yaml:"+want, err.Error(), text)
		}
	}
}

func TestAllMistakesAreToldAtOnceInTheOrderOfLines(t *testing.T) {
	t.Parallel()
	_, err := parse(`
colour: red
images:
  - name: a
    size: huge
    desktop: maybe
  - {name: b, from: c, playbook: p}
`)
	var mistakes catalogue.Mistakes
	require.ErrorAs(t, err, &mistakes)
	var lines []int
	for _, m := range mistakes {
		lines = append(lines, m.Line)
	}
	assert.Equal(t, []int{2, 4, 4, 5, 6, 7}, lines, err.Error())
}

func TestTheMessageOfAThousandMistakesIsShort(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("images:\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "- {name: i%d, from: none, playbook: p}\n", i)
	}
	_, err := parse(b.String())
	require.ErrorContains(t, err, "catalogue.yaml: and 950 more")
	assert.Len(t, strings.Split(err.Error(), "\n"), 51)
}

func TestACatalogueThatGrowsBeyondBoundsIsRefused(t *testing.T) {
	t.Parallel()
	bomb := "vars:\n      a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 'b'; i < 'l'; i++ {
		bomb += fmt.Sprintf("      %c: &%c [%s*%c]\n", i, i, strings.Repeat(fmt.Sprintf("*%c, ", i-1), 9), i-1)
	}
	axes := "matrix:\n"
	for i := 'a'; i < 'k'; i++ {
		axes += fmt.Sprintf("      %c: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n", i)
	}
	copies := "matrix: {a: [" + strings.Repeat("x", 60_000) + "]}\n    vars: [" + strings.Repeat("'{a}{a}{a}{a}', ", 1000) + "]"
	for what, text := range map[string]string{
		"larger than 32 MiB": with(bomb), "more than 10000 images": with(axes), "vars is no text": with(copies),
		"did not find expected ','": "a: [b\n" + strings.Repeat("c: d\n", 150_000),
		"larger than 1024 KiB":      with("#" + strings.Repeat("x", 1<<20)), "no YAML": strings.Repeat("[", 1<<19),
		"deeper than 32": with("vars: {a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}"),
	} {
		_, err := parse(text)
		require.ErrorContains(t, err, what)
		assert.Less(t, len(err.Error()), 100_000)
	}
}
