package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

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
		return s, errors.New("cloud-init told no status: it has to be in the image and work with a NoCloud seed")
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
func (s cloudInitStatus) name() string {
	if s.Extended != "" {
		return s.Extended
	}
	return s.Status
}

// warnings are the messages of everything that cloud-init recovered from,
// except those that contain one of allowed.
func (s cloudInitStatus) warnings(allowed []string) []string {
	var all []string
	for level, messages := range s.Recoverable {
		for _, m := range messages {
			if !slices.ContainsFunc(allowed, func(part string) bool { return strings.Contains(m, part) }) {
				all = append(all, level+": "+oneLine(m))
			}
		}
	}
	slices.Sort(all)
	return all
}

// verdict is an error unless cloud-init ended without errors and without
// warnings but the allowed ones.
func (s cloudInitStatus) verdict(allowed []string) (string, error) {
	if s.Status != "done" || len(s.Errors) > 0 {
		return "", fmt.Errorf("it ended with status %s: %s", s.name(), oneLine(strings.Join(append(s.Errors, s.Detail), "; ")))
	}
	if w := s.warnings(allowed); len(w) > 0 {
		return "", fmt.Errorf("it ended with warnings: %s", strings.Join(w, "; "))
	}
	return s.name() + ", " + oneLine(s.Detail), nil
}
