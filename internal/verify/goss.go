package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// gossDir is in memory: nothing of goss touches the disk. /run would be too,
// but programs may not be started there.
const gossDir = "/dev/shm/diskforge-goss"

// goss runs the playbook's own checks in the guest and returns one check for
// each thing that they look at.
func (v *verification) goss(ctx context.Context) ([]Check, error) {
	if _, err := v.ask(ctx, `rm -rf "$1" && mkdir -m 0700 "$1"`, gossDir); err != nil {
		return nil, err
	}
	for _, f := range [][3]string{{v.Goss, gossDir + "/goss", "0700"}, {v.Checks, gossDir + "/checks.yaml", "0600"}} {
		if err := v.upload(ctx, f[0], f[1], f[2]); err != nil {
			return nil, err
		}
	}
	// It fails where checks fail; what it prints says which.
	out, errRun := v.ask(ctx, `cd "$1" && ./goss --gossfile checks.yaml validate --format json --no-color`, gossDir)
	_, errRemove := v.ask(ctx, `rm -rf "$1"`, gossDir)
	checks, err := parseGoss([]byte(out))
	if err != nil {
		return nil, errors.Join(errRun, err)
	}
	return checks, errRemove
}

func (v *verification) upload(ctx context.Context, from, to, mode string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return v.guest.Upload(ctx, f, to, mode)
}

// gossOutput is goss 0.4's JSON output, as far as it is read.
type gossOutput struct {
	Results []struct {
		Successful bool   `json:"successful"`
		Skipped    bool   `json:"skipped"`
		Type       string `json:"resource-type"`
		ID         string `json:"resource-id"`
		Property   string `json:"property"`
		Title      string `json:"title"`
		Summary    string `json:"summary-line-compact"`
	} `json:"results"`
	Summary *struct {
		Count  int `json:"test-count"`
		Failed int `json:"failed-count"`
	} `json:"summary"`
}

// parseGoss turns goss' output into checks. Output that is no complete report
// is an error: nothing must pass because goss broke off.
func parseGoss(out []byte) ([]Check, error) {
	var g gossOutput
	if err := json.Unmarshal(out, &g); err != nil {
		return nil, fmt.Errorf("goss told no result: %w", err)
	}
	if g.Summary == nil || g.Summary.Count != len(g.Results) {
		return nil, errors.New("goss told no complete result")
	}
	checks := make([]Check, 0, len(g.Results))
	failed := 0
	for _, r := range g.Results {
		name := strings.TrimSpace(fmt.Sprintf("%s %s %s", strings.ToLower(r.Type), oneLine(r.ID), r.Property))
		detail := oneLine(r.Summary)
		if r.Title != "" {
			detail = oneLine(r.Title) + ": " + detail
		}
		// goss skips what depends on a failed check: that does not hold either,
		// but one line about it is enough.
		if r.Skipped {
			detail = "skipped"
		}
		if !r.Successful {
			failed++
		}
		checks = append(checks, Check{Name: name, OK: r.Successful, Detail: detail})
	}
	if failed != g.Summary.Failed {
		return nil, fmt.Errorf("goss counts %d failed checks and lists %d", g.Summary.Failed, failed)
	}
	return checks, nil
}
