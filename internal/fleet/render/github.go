package render

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet"
)

// GitHub's limits: jobs of one matrix, and outputs of one job, which are
// measured in UTF-16.
const (
	maxMatrix = 256
	maxOutput = 1 << 20 // bytes
)

// matrices is what the workflow catalogue.yml reads.
type matrices struct {
	// Levels are matrices of build.yml's inputs, to be run one after the other.
	Levels []matrix `json:"levels"`
	// Tags are to be given to images that the registry has.
	Tags []tags `json:"tags"`
	// Indexes are the arguments of diskforge push that make them of their images.
	Indexes [][]string `json:"indexes,omitempty"`
}

type matrix struct {
	Include []map[string]any `json:"include"`
}

type tags struct {
	Reference string   `json:"reference"` // REGISTRY/REPOSITORY@DIGEST
	Tags      []string `json:"tags"`
}

// inputs are the settings that build.yml has an input of its own for; all
// others go into its input settings.
var inputs = map[string]string{
	"ANSIBLE_PLAYBOOK": "playbook", "ISO_URL": "iso-url", "ISO_CHECKSUM": "iso-checksum", "INSTALL_DESKTOP_ENVIRONMENT": "desktop",
	"ANSIBLE_DIR": "ansible-dir", "GIT_ANSIBLE_URL": "git-ansible-url", "GIT_ANSIBLE_BRANCH": "git-ansible-branch",
	"BAKE_USER": "bake-user", "DISK_SIZE": "disk-size",
}

// GitHubMatrix writes what the workflow catalogue.yml builds: a list of
// matrices, each of which finds the parents of its images in the registry. A
// matrix has at most 256 jobs: those of a larger level go on in the next. The
// checkout is the folder that paths in the workflow are relative to. Images
// that no workflow can build are an error, a line for each reason.
func GitHubMatrix(w io.Writer, entries []*fleet.Entry, t Target, checkout string) error {
	if err := t.Check(); err != nil {
		return err
	}
	if t.Host["REGISTRY_INSECURE"] != "" || t.CA != "" {
		return failure.New("GitHub's runners reach a registry by https and with the usual authorities only",
			"leave out REGISTRY_INSECURE and CA_FILE, or use --format kubernetes")
	}
	build := builds(entries)
	bad := refusals{all: len(build), signed: t.Signed}
	m := matrices{Levels: []matrix{}, Tags: []tags{}}
	next := map[*fleet.Entry]int{} // the level that those which start from it may be in
	for _, e := range build {
		bad.address(e)
		bad.files(e, "a runner")
		next[e] = 1 + m.place(next[e.Parent], bad.workflow(e, t, checkout))
	}
	for _, e := range entries {
		if e.Action == fleet.Tag {
			m.Tags = append(m.Tags, tags{t.repository(e.ImageName()) + "@" + e.Found.Digest, e.MissingTags()})
		}
	}
	for _, x := range fleet.ToMake(entries) {
		for _, tag := range x.Tags {
			m.Indexes = append(m.Indexes, x.Push(tag))
		}
	}
	if err := bad.err(); err != nil {
		return err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if size := 2 * len(utf16.Encode([]rune(string(text)))); size > maxOutput {
		return failure.New(fmt.Sprintf("the plan takes %d KiB, and GitHub passes on %d", size>>10, maxOutput>>10),
			"build a part of the catalogue at once, with --only")
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// place puts an image into the first level from that one on that has room.
func (m *matrices) place(level int, with map[string]any) int {
	for level < len(m.Levels) && len(m.Levels[level].Include) == maxMatrix {
		level++
	}
	if level == len(m.Levels) {
		m.Levels = append(m.Levels, matrix{})
	}
	m.Levels[level].Include = append(m.Levels[level].Include, with)
	return level
}

// workflow returns the inputs of build.yml for an image.
func (r *refusals) workflow(e *fleet.Entry, t Target, checkout string) map[string]any {
	others := map[string]string{}
	with := map[string]any{"name": e.ImageName(), "settings": others}
	if a := arch.Of(e.Settings["ARCHITECTURE"]); a.Runner != "" {
		with["runner"] = a.Runner
	}
	if len(e.Tags) > 0 {
		with["tag"] = e.Tags[0]
		with["further-tags"] = strings.Join(e.Tags[1:], " ")
	}
	for name, value := range t.settings(e) {
		switch input, ok := inputs[name]; {
		case name == "BASE_FROM_PACKAGES": // that is what build.yml does without a URL
		case name == "ANSIBLE_DIR":
			with[input] = r.within(e, checkout, value)
		case name == "INSTALL_DESKTOP_ENVIRONMENT" || name == "BAKE_USER":
			with[input] = value == "true"
		case ok:
			with[input] = value
		default:
			others[name] = value
		}
	}
	return with
}

// within makes a path relative to the checkout that it lies in.
func (r *refusals) within(e *fleet.Entry, checkout, path string) string {
	relative, err := filepath.Rel(checkout, path)
	if err != nil || !filepath.IsLocal(relative) {
		r.add(e, "ansible-dir lies outside of the checkout, so a runner does not have it", "move it beside the catalogue, or use git")
	}
	return filepath.ToSlash(relative)
}
