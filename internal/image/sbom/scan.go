package sbom

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// Excuse lets a vulnerability pass until a day: grype's own rules and VEX documents know no end.
type Excuse struct {
	Vulnerability string // its id, or that of the same one elsewhere
	Package       string // the binary or the source package; empty: any
	Reason        string // why that is right; reports show it
	Until         string // the last day, "2027-01-31" (UTC)
}

// maxExcuses bounds a list of excuses in bytes; it is written by hand.
const maxExcuses = 1 << 20

// ReadExcuses reads a YAML list of excuses, of which only package may be missing.
func ReadExcuses(path string) (all []Excuse, err error) {
	content, err := host.ReadFile(path, maxExcuses)
	if err != nil {
		return nil, err
	}
	d := yaml.NewDecoder(bytes.NewReader(content))
	d.KnownFields(true)
	if err := d.Decode(&all); err != nil && !errors.Is(err, io.EOF) {
		return nil, failure.New(path+": "+text.Line(err.Error()), "give a YAML list of vulnerability, package, reason and until")
	}
	for i, e := range all {
		if _, err := time.Parse(time.DateOnly, e.Until); err != nil || e.Vulnerability == "" || e.Reason == "" {
			what := fmt.Sprintf("%s: excuse %d, of %q, lacks its vulnerability, its reason or its end (until: %q)", path, i+1, e.Vulnerability, e.Until)
			return nil, failure.New(what, "say which one may pass, why, and until which day, e.g. until: 2027-01-31")
		}
	}
	return all, nil
}

// Vulnerability is a known one that packages have.
type Vulnerability struct {
	ID      string
	Detail  string // how severe it is, in which packages, what is without it
	Excused string // why and until when it may pass, or empty
}

// match is one package's of a vulnerability, in grype's JSON (its presenter/models).
type match struct {
	Vulnerability struct {
		ID, Severity string
		Fix          struct{ Versions []string }
	}
	RelatedVulnerabilities []struct{ ID string }
	Artifact               struct {
		Name, Version string
		Upstreams     []struct{ Name string }
	}
}

func (e Excuse) covers(m match) bool {
	ids, packages := []string{m.Vulnerability.ID}, []string{m.Artifact.Name, ""}
	for _, same := range m.RelatedVulnerabilities {
		ids = append(ids, same.ID)
	}
	for _, source := range m.Artifact.Upstreams {
		packages = append(packages, source.Name)
	}
	return slices.Contains(ids, e.Vulnerability) && slices.Contains(packages, e.Package)
}

// grype is a run of the user's. It is offline, and learns none of our secrets; its own
// variables and its configuration file mean what they always do.
func grype(args ...string) host.Cmd {
	env := host.Env("GRYPE_DB_AUTO_UPDATE=false", "GRYPE_CHECK_FOR_APP_UPDATE=false")
	env = append(env, slices.DeleteFunc(os.Environ(), func(v string) bool { return !strings.HasPrefix(v, "GRYPE_") })...)
	return host.Cmd{Program: "grype", Args: args, Env: env}
}

// CheckScanner says whether grype is there, with a database that it takes.
func CheckScanner(ctx context.Context) error {
	switch err := host.Run(ctx, grype("db", "status")); {
	case errors.Is(err, exec.ErrNotFound):
		return failure.New("FAIL_ON_VULNERABILITIES needs grype, which is not installed (nor in the toolbox)",
			"install it from https://github.com/anchore/grype, with its database (grype db update), or leave the setting out")
	case err != nil:
		return failure.Wrap(err, "grype has no database that it takes", "get one with grype db update, or grype db import FILE")
	}
	return nil
}

const (
	aboveItsLimit = 2         // grype's exit code where its own fail-on-severity is reached: ours is another
	maxScan       = 512 << 20 // bytes that grype may say: a match takes some KiB
)

// severities are grype's, the least first. One that it does not know is below all.
var severities = []string{"negligible", "low", "medium", "high", "critical"}

// FindVulnerabilities has grype look for known vulnerabilities of a severity or worse in a
// document that Save wrote into dir: the worst come first. Excuses count up to their last
// day. By is grype's version and the date of its database.
func FindVulnerabilities(ctx context.Context, dir, severity string, excuses []Excuse, today time.Time) (found []Vulnerability, by string, err error) {
	out := filepath.Join(dir, "grype.json")
	err = host.Run(ctx, grype("sbom:"+filepath.Join(dir, CycloneDXFile), "-o", "json="+out))
	if exit, ran := errors.AsType[*exec.ExitError](err); err != nil && !(ran && exit.ExitCode() == aboveItsLimit) {
		return nil, "", err
	}
	content, err := host.ReadFile(out, maxScan)
	if err != nil {
		return nil, "", err
	}
	var said struct {
		Matches    []match
		Descriptor struct {
			Version string
			DB      struct{ Status struct{ Built string } }
		}
	}
	if err := json.Unmarshal(content, &said); err != nil {
		return nil, "", fmt.Errorf("reading what grype found: %w", err)
	}
	rank := func(m match) int { return slices.Index(severities, strings.ToLower(m.Vulnerability.Severity)) }
	slices.SortStableFunc(said.Matches, func(a, b match) int {
		return cmp.Or(rank(b)-rank(a), strings.Compare(a.Vulnerability.ID, b.Vulnerability.ID))
	})
	for _, m := range said.Matches {
		if rank(m) < slices.Index(severities, severity) {
			break
		}
		v := Vulnerability{ID: text.Line(m.Vulnerability.ID), Detail: fmt.Sprintf("%s, in %s %s", severities[rank(m)], m.Artifact.Name, m.Artifact.Version)}
		if fixed := m.Vulnerability.Fix.Versions; len(fixed) > 0 {
			v.Detail += ", fixed in " + strings.Join(fixed, ", ")
		}
		for _, e := range excuses {
			switch {
			case !e.covers(m):
			case e.Until < today.UTC().Format(time.DateOnly):
				v.Detail += ", whose excuse ended on " + e.Until
			default:
				v.Excused = fmt.Sprintf("%s (until %s)", e.Reason, e.Until)
			}
		}
		v.Detail = text.Line(v.Detail)
		found = append(found, v)
	}
	return found, text.Line(fmt.Sprintf("grype %s with the database of %s", said.Descriptor.Version, said.Descriptor.DB.Status.Built)), nil
}
