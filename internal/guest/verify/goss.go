package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// gossDir is in memory: nothing of goss touches the disk. /run would be too,
// but programs may not be started there.
const gossDir = "/dev/shm/diskforge-goss"

// uploadGoss brings goss and the checks into the guest.
func (m *machine) uploadGoss(ctx context.Context) error {
	ctx, over := m.within(ctx, "goss was not taken into the guest")
	defer over()
	if _, err := m.ask(ctx, `rm -rf "$1" && mkdir -m 0700 "$1"`, gossDir); err != nil {
		return err
	}
	upload := func(from, name, mode string) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		return m.guest.Upload(ctx, f, gossDir+"/"+name, mode)
	}
	if err := upload(m.Goss, "goss", "0700"); err != nil {
		return err
	}
	return upload(m.Checks, "checks.yaml", "0600")
}

// goss runs the playbook's own checks in the guest, once cloud-init has ended,
// and returns one check for each thing that they look at. It is brought there
// while the guest still boots.
func (m *machine) goss(ctx context.Context, ended <-chan struct{}) found {
	if m.Checks == "" {
		return found{}
	}
	err := m.uploadGoss(ctx)
	<-ended // comes with the context's end, too
	var checks []Check
	if err == nil {
		checks, err = m.runGoss(ctx)
	}
	if err != nil {
		checks = []Check{{Group: GroupPlaybook, Name: "goss", Detail: text.Line(err.Error())}}
	}
	return found{checks: checks}
}

func (m *machine) runGoss(ctx context.Context) ([]Check, error) {
	ctx, over := m.within(ctx, "the playbook's checks did not end")
	defer over()
	// It fails where checks fail; what it prints says which. No more of them run at once
	// than the guest has processors, or each would use up the others' time.
	const validate = `cd "$1" && ./goss --gossfile checks.yaml validate --max-concurrent "$(nproc)" --format json --no-color
		status=$?; rm -rf "$1"; exit $status`
	out, errRun := m.ask(ctx, validate, gossDir)
	if ctx.Err() != nil {
		return nil, errRun
	}
	checks, err := parseGoss([]byte(out))
	if err != nil {
		return nil, errors.Join(errRun, err)
	}
	return checks, nil
}

// parseGoss turns goss' output into checks. Output that is no complete report
// is an error: nothing must pass because goss broke off.
func parseGoss(out []byte) ([]Check, error) {
	var g struct { // goss 0.4's, as far as it is read
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
	if err := json.Unmarshal(out, &g); err != nil {
		return nil, fmt.Errorf("goss printed no result: %w", err)
	}
	if g.Summary == nil || g.Summary.Count != len(g.Results) {
		return nil, errors.New("goss printed no complete result")
	}
	checks := make([]Check, 0, len(g.Results))
	failed := 0
	for _, r := range g.Results {
		name := strings.TrimSpace(fmt.Sprintf("%s %s %s", strings.ToLower(r.Type), text.Line(r.ID), r.Property))
		detail := text.Line(r.Summary)
		if r.Title != "" {
			detail = text.Line(r.Title) + ": " + detail
		}
		// goss skips what depends on a failed check: that does not hold either,
		// but one line about it is enough.
		if r.Skipped {
			detail = "skipped"
		}
		if !r.Successful {
			failed++
		}
		checks = append(checks, Check{Group: GroupPlaybook, Name: name, OK: r.Successful, Detail: detail})
	}
	if failed != g.Summary.Failed {
		return nil, fmt.Errorf("goss counts %d failed checks and lists %d", g.Summary.Failed, failed)
	}
	return checks, nil
}

// Playbook runs a playbook's own checks in a guest that runs already: a file of goss
// checks with the goss program for the guest.
func Playbook(ctx context.Context, guest *vm.Guest, checks, goss string, timeout time.Duration) []Check {
	m := &machine{Options: Options{Checks: checks, Goss: goss, Timeout: timeout}, guest: guest, shell: guest.Run, p: progress.Discard}
	ended := make(chan struct{})
	close(ended)
	return m.goss(ctx, ended).checks
}
