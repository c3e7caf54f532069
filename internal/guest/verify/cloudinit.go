package verify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// answer is what `cloud-init status` printed, and how it ended.
type answer struct {
	out string
	err error
}

// awaitCloudInit returns when cloud-init has ended, or the time for that is
// over. Its own program says how it ended, but takes seconds to start in an
// emulated guest: it starts before the end, and its answer is not waited for.
func (m *machine) awaitCloudInit(ctx context.Context) (status <-chan answer, ended bool) {
	m.p.Activity("waiting for cloud-init's end")
	ctx, over := m.within(ctx, "cloud-init did not end")
	answers := make(chan answer, 1)
	waiting, answered := context.WithCancel(ctx)
	go func() {
		defer over()
		defer answered()
		// It exits with 1 on errors and 2 on warnings; its output says which.
		out, err := m.shell(ctx, "cloud-init status --wait --format json", nil)
		answers <- answer{out, err}
	}()
	// cloud-init writes this file last. Where it never does, its program says so.
	_, _ = m.shell(waiting, "until test -e /run/cloud-init/result.json; do sleep 0.3; done", nil)
	return answers, ctx.Err() == nil
}

// crownLabsWarnings are the parts of what cloud-init's releases say about
// CrownLabs' seed; its schema then says what is meant.
var crownLabsWarnings = []string{"Invalid cloud-config provided", "cloud-config failed schema validation"}

func (m *machine) cloudInit(a answer) found {
	detail, err := m.judgeCloudInit(a)
	return found{checks: []Check{m.check("cloud-init", detail, err)}}
}

func (m *machine) judgeCloudInit(a answer) (string, error) {
	failed, ran := errors.AsType[*vm.RunError](a.err)
	if a.err != nil && (!ran || failed.Status < 0) { // it did not come to its end
		return "", a.err
	}
	status, err := parseCloudInit(a.out)
	if err != nil {
		return "", errors.Join(a.err, err)
	}
	if status.Extended == "" { // before 23.4, only its log has warnings
		status.Recoverable = map[string][]string{"WARNING": m.warnings}
	}
	var allowed []string
	if m.kind.crownLabs {
		allowed = slices.Clone(crownLabsWarnings)
	}
	if m.kind.crownLabs && m.BakedUser { // that seed has a password for a user whom it would make
		allowed = append(allowed, "'passwd' in user-data is ignored for existing user "+m.VMUser)
	}
	return status.verdict(allowed)
}

// keepWarnings keeps the warnings of cloud-init's log: a time, the module's
// file and the level stand before each.
func (m *machine) keepWarnings(out string) (string, error) {
	for line := range strings.Lines(out) {
		if _, message, found := strings.Cut(line, "[WARNING]: "); found {
			m.warnings = append(m.warnings, text.Line(message))
		}
	}
	return "", nil
}

// crownLabsErrors are the two things in CrownLabs' seed that the schema of
// today's cloud-init does not know, in the words of its releases.
var crownLabsErrors = regexp.MustCompile(`mounts: \[\] (is too short|should be non-empty)` +
	`|(network: )?Additional properties are not allowed \('network' was unexpected\)`)

// crownLabsSchema judges what `cloud-init schema --system` says about CrownLabs'
// seed: nothing but the two is allowed.
func crownLabsSchema(out string) (string, error) {
	_, said, wrong := strings.Cut(text.Line(out), "Cloud config schema errors: ")
	if !wrong {
		if strings.Contains(out, "Valid schema") {
			return "nothing to say", nil
		}
		return "", fmt.Errorf("it cannot be asked: %s", text.Line(out))
	}
	said, _, _ = strings.Cut(said, "Cloud config schema deprecations:")
	said, _, _ = strings.Cut(said, "Error: Invalid schema")
	if rest := crownLabsErrors.ReplaceAllString(said, ""); strings.Trim(rest, ",: ") != "" {
		return "", fmt.Errorf("it knows more to say than CrownLabs' network key and empty mounts: %s", said)
	}
	return "the known two at most: " + strings.TrimSpace(said), nil
}

// cloudInitStatus is what `cloud-init status --format json` prints. Releases
// before 23.4 have neither recoverable errors nor an extended status.
type cloudInitStatus struct {
	Status      string              `json:"status"`
	Extended    string              `json:"extended_status"`
	Detail      string              `json:"detail"`
	Errors      []string            `json:"errors"`
	Recoverable map[string][]string `json:"recoverable_errors"` // by level: WARNING, DEPRECATED, …
}

// parseCloudInit reads the status. Waiting, old releases print dots before it.
func parseCloudInit(out string) (cloudInitStatus, error) {
	var s cloudInitStatus
	i := strings.IndexByte(out, '{')
	if i < 0 {
		return s, errors.New("cloud-init printed no status: it has to be in the image and work with a NoCloud seed")
	}
	if err := json.Unmarshal([]byte(out[i:]), &s); err != nil {
		return s, fmt.Errorf("cloud-init's status cannot be read: %w", err)
	}
	if s.Status == "" {
		return s, errors.New("cloud-init's status says nothing")
	}
	return s, nil
}

// name is the status in one word or two: done, error, degraded done.
func (s cloudInitStatus) name() string { return cmp.Or(s.Extended, s.Status) }

// verdict is an error unless cloud-init ended without errors and without
// warnings but those that contain one of allowed.
func (s cloudInitStatus) verdict(allowed []string) (string, error) {
	if s.Status != "done" || len(s.Errors) > 0 {
		return "", fmt.Errorf("it ended with status %s: %s", s.name(), text.Line(strings.Join(append(s.Errors, s.Detail), "; ")))
	}
	var warnings []string
	for level, messages := range s.Recoverable {
		for _, message := range messages {
			if !slices.ContainsFunc(allowed, func(part string) bool { return strings.Contains(message, part) }) {
				warnings = append(warnings, level+": "+text.Line(message))
			}
		}
	}
	if len(warnings) > 0 {
		slices.Sort(warnings)
		return "", fmt.Errorf("it ended with warnings: %s", strings.Join(warnings, "; "))
	}
	return s.name() + ", " + text.Line(s.Detail), nil
}
