package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// scans says whether FAIL_ON_VULNERABILITIES is a severity.
func (w *way) scans() bool {
	return w.Config.FailOnVulnerabilities != "" && w.Config.FailOnVulnerabilities != "none"
}

// checkScanner says, before anything slow starts, whether the scanner can work.
func (w *way) checkScanner(ctx context.Context) error {
	if !w.scans() {
		return nil
	}
	return w.show(ctx, "scanner", func(ctx context.Context, _ progress.Reporter) (string, error) {
		return "grype has a database", sbom.CheckScanner(ctx)
	})
}

// maxVulnerabilities bounds the error; the report has them all.
const maxVulnerabilities = 50

// checkVulnerabilities is FAIL_ON_VULNERABILITIES: what is as severe as that and not excused
// is an error, with a check for each and one for the scan. The SBOM is written into dir.
func (w *way) checkVulnerabilities(ctx context.Context, has sbom.Inventory, dir string, p progress.Reporter) ([]report.Check, error) {
	if !w.scans() {
		return nil, nil
	}
	if has.None != "" {
		return nil, failure.New("nobody knows which vulnerabilities it has: "+has.None, "")
	}
	p.Activity("looking for known vulnerabilities")
	err := sbom.Save(dir, sbom.Disk{Digest: w.known.Digest}, has)
	if err != nil {
		return nil, err
	}
	var excuses []sbom.Excuse
	if file := w.Config.VulnerabilityExcuses; file != "" {
		if excuses, err = sbom.ReadExcuses(file); err != nil {
			return nil, err
		}
	}
	limit := w.Config.FailOnVulnerabilities
	found, by, err := sbom.FindVulnerabilities(ctx, dir, limit, excuses, time.Now())
	if err != nil {
		return nil, err
	}
	checks := []report.Check{{Group: "vulnerabilities", Name: "scan", Detail: fmt.Sprintf("%s: %d of %s severity or worse", by, len(found), limit)}}
	var open []string
	for _, v := range found {
		checks = append(checks, report.Check{Group: "vulnerabilities", Name: v.ID, Detail: v.Detail, Excused: v.Excused})
		if v.Excused == "" {
			open = append(open, v.ID+": "+v.Detail)
		}
	}
	if checks[0].OK = len(open) == 0; checks[0].OK {
		return checks, nil
	}
	failed := failure.New(fmt.Sprintf("known vulnerabilities of %s severity or worse: %d, the worst %s", limit, len(open), text.Cut(open[0], 200)),
		"have the playbook upgrade the system, or excuse them in VULNERABILITY_EXCUSES")
	if failed.Lines = open; len(open) > maxVulnerabilities {
		failed.Lines = append(open[:maxVulnerabilities], fmt.Sprintf("… and %d more", len(open)-maxVulnerabilities))
	}
	return checks, failed
}
