package base

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// maxIndex bounds how much of an InRelease file is read: its Date stands in
// the first lines.
const maxIndex = 64 << 10

// archives returns apt's source lines for the suite with its updates and
// security updates, and the date of the newest of the three indices.
func (o Options) archives(ctx context.Context, p progress.Reporter) (lines []string, newest time.Time, err error) {
	p.Activity("asking the mirror")
	security := securityMirror(o.Mirror)
	for _, a := range [][2]string{{o.Mirror, o.Suite}, {o.Mirror, o.Suite + "-updates"}, {security, o.Suite + "-security"}} {
		date, err := indexDate(ctx, a[0]+"/dists/"+a[1]+"/InRelease")
		if answered(err, http.StatusNotFound) && a[1] != o.Suite {
			p.Warn(fmt.Sprintf("%s has no %s: the base image goes without those updates", a[0], a[1]))
			continue
		}
		if err != nil && ctx.Err() == nil {
			err = failure.Wrap(err, "the Debian mirror does not serve "+a[1], "check APT_MIRROR ("+o.Mirror+") and the network")
		}
		if err != nil {
			return nil, newest, err
		}
		lines = append(lines, fmt.Sprintf("deb %s %s main", a[0], a[1]))
		if date.After(newest) {
			newest = date
		}
	}
	return lines, newest, nil
}

// indexDate reads the date of a suite's index. Nothing but the date is taken
// from it: apt reads the index again and checks its signature.
func indexDate(ctx context.Context, index string) (date time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := get(ctx, http.DefaultClient, index, nil)
	if err == nil {
		defer resp.Body.Close()
		date, err = parseDate(io.LimitReader(resp.Body, maxIndex))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", index, err)
	}
	return date, nil
}

// parseDate finds the Date field of a Release file (Debian's repository
// format: "Sat, 06 Sep 2025 09:11:15 UTC").
func parseDate(r io.Reader) (time.Time, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "Date:"); ok {
			return time.Parse(time.RFC1123, strings.TrimSpace(value))
		}
	}
	return time.Time{}, errors.New("no Date in the index")
}
