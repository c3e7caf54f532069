package verify

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
)

// insideScript has the functions that looks call.
//
//go:embed inside.sh
var insideScript string

// mark stands before the output of each look, with its number and the guest's
// uptime.
const mark = "@@ "

// script puts the looks together. One round trip for all: each costs half a
// second in an emulated guest.
func script(looks []look) string {
	var b strings.Builder
	b.WriteString(insideScript)
	at := func(i int) { fmt.Fprintf(&b, "read -r up _ </proc/uptime; echo; echo \"%s%d $up\"\n", mark, i) }
	for i, l := range looks {
		at(i)
		fmt.Fprintf(&b, "(%s\n) </dev/null 2>&1\n", l.command)
	}
	at(len(looks))
	b.WriteString("exit 0")
	return b.String()
}

// section is the output of one look.
type section struct {
	text string
	took time.Duration
}

// sections takes the output of n looks apart. A script that broke off is an
// error: nothing may pass because it was not looked at.
func sections(out string, n int) ([]section, error) {
	var all []section
	var text strings.Builder
	var since float64
	next := 0
	for line := range strings.Lines(out) {
		up, found := strings.CutPrefix(strings.TrimSpace(line), mark+strconv.Itoa(next)+" ")
		if !found {
			text.WriteString(line)
			continue
		}
		now, err := strconv.ParseFloat(up, 64)
		if err != nil {
			return nil, fmt.Errorf("the guest's uptime cannot be read: %w", err)
		}
		if next > 0 {
			took := time.Duration(max(0, min(now-since, 1e6)) * float64(time.Second))
			all = append(all, section{strings.TrimSpace(text.String()), took})
		}
		text.Reset()
		since = now
		next++
	}
	if len(all) != n {
		return nil, fmt.Errorf("only %d of %d looks into the guest came to their end", len(all), n)
	}
	return all, nil
}

// ask runs a script in the guest as root, with args as $1 and so on, and returns what it printed.
func (m *machine) ask(ctx context.Context, script string, args ...string) (string, error) {
	cmd := "sudo -n sh -c " + vm.Quote(script) + " sh"
	for _, a := range args {
		cmd += " " + vm.Quote(a)
	}
	out, err := m.shell(ctx, cmd, nil)
	return strings.TrimSpace(out), err
}

// inside looks at everything in the guest that its shell can tell, once
// cloud-init has ended.
func (m *machine) inside(ctx context.Context) found {
	looks := m.looks()
	parts, err := m.answers(ctx, looks, m.BuildUser, m.VMUser, m.guest.AuthorizedKey())
	if err != nil {
		return found{checks: []Check{m.check("in the guest", "", err)}}
	}
	var f found
	for i, l := range looks {
		detail, err := l.judge(parts[i].text)
		if l.name == "" {
			continue
		}
		c := m.check(l.name, detail, err)
		c.Took = parts[i].took
		f.checks = append(f.checks, c)
	}
	if picture, err := m.screen(ctx); err == nil {
		f.pictures = append(f.pictures, picture)
	} else if ctx.Err() == nil {
		m.p.Warn(err.Error())
	}
	return f
}

// answers runs the script of all looks and takes its output apart.
func (m *machine) answers(ctx context.Context, looks []look, args ...string) ([]section, error) {
	ctx, over := m.within(ctx, "the looks into the guest did not end")
	defer over()
	out, err := m.ask(ctx, script(looks), args...)
	if ctx.Err() != nil {
		return nil, err
	}
	parts, errParts := sections(out, len(looks))
	if errParts != nil {
		return nil, errors.Join(err, errParts)
	}
	return parts, nil
}
