package verify

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
)

// insideScript has the functions that looks call.
//
//go:embed inside.sh
var insideScript string

// mark stands before the output of each look, with its number.
const mark = "@@ "

// script puts the looks together. One round trip for all: each costs half a
// second in an emulated guest.
func script(looks []look) string {
	var b strings.Builder
	b.WriteString(insideScript)
	for i, l := range looks {
		fmt.Fprintf(&b, "echo; echo '%s%d'\n(%s\n) </dev/null 2>&1\n", mark, i, l.command)
	}
	fmt.Fprintf(&b, "echo; echo '%s%d'\nexit 0", mark, len(looks))
	return b.String()
}

// sections takes the outputs of n looks apart. A script that broke off is an
// error: nothing may pass because it was not looked at.
func sections(out string, n int) ([]string, error) {
	var all []string
	var section strings.Builder
	next := 0
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) != mark+strconv.Itoa(next) {
			section.WriteString(line)
			continue
		}
		if next > 0 {
			all = append(all, strings.TrimSpace(section.String()))
		}
		section.Reset()
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
	outputs, err := m.answers(ctx, looks, m.BuildUser, m.VMUser, m.guest.AuthorizedKey())
	if err != nil {
		return found{checks: []Check{m.check("in the guest", "", err)}}
	}
	var f found
	for i, l := range looks {
		if detail, err := l.judge(outputs[i]); l.name != "" {
			f.checks = append(f.checks, m.check(l.name, detail, err))
		}
	}
	if picture, err := m.screen(ctx); err == nil {
		f.pictures = append(f.pictures, picture)
	} else if ctx.Err() == nil {
		m.p.Warn(err.Error())
	}
	return f
}

// answers runs the script of all looks and takes its output apart.
func (m *machine) answers(ctx context.Context, looks []look, args ...string) ([]string, error) {
	ctx, over := m.within(ctx, "the looks into the guest did not end")
	defer over()
	out, err := m.ask(ctx, script(looks), args...)
	if ctx.Err() != nil {
		return nil, err
	}
	outputs, errOut := sections(out, len(looks))
	if errOut != nil {
		return nil, errors.Join(err, errOut)
	}
	return outputs, nil
}
