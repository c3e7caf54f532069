package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
)

// look is a part of the one script that runs in the guest, and what follows
// from its output. A part without a name is no check: it asks for something.
type look struct {
	name   string
	script string // $1 is the build user, $2 the login user, $3 its key in the seed; $boot is when the guest started
	judge  func(out string) (detail string, err error)
}

// prelude gives the parts of the script $boot, in seconds since 1970, with two
// seconds for rounding: what is older came with the disk.
const prelude = `read -r up idle </proc/uptime
boot=$(($(date +%s) - ${up%.*} - 2))
`

// mark stands before the output of each part, with its number and the guest's
// uptime.
const mark = "@@ "

// script puts the parts together. One round trip for all: each costs half a
// second in an emulated guest.
func script(looks []look) string {
	var b strings.Builder
	b.WriteString(prelude)
	at := func(i int) { fmt.Fprintf(&b, "read -r up idle </proc/uptime; echo; echo \"%s%d $up\"\n", mark, i) }
	for i, l := range looks {
		at(i)
		fmt.Fprintf(&b, "(%s\n) </dev/null 2>&1\n", l.script)
	}
	at(len(looks))
	b.WriteString("exit 0")
	return b.String()
}

// section is the output of one part of the script.
type section struct {
	text string
	took time.Duration
}

// sections takes the output of a script with n parts apart. One that broke off
// is an error: nothing may pass because it was not looked at.
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
	f.moments = m.finished
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

// looks are those that hold for every image, those that follow from the
// options, and what a report wants to know.
func (m *machine) looks() []look {
	all := []look{
		{"login user", m.loginUserScript(), clean(m.VMUser + " of the seed has uid 1000")},
		{"hostname", "cat /proc/sys/kernel/hostname", hostnameInForce},
		{"virtiofs", virtiofs, clean("there")},
		{"machine-id", machineID, machineIDOfThisBoot},
		{"ssh host keys", hostKeys, m.excusable("ssh-host-keys", "", "made at this boot")},
		{"authorized keys", authorizedKeys, m.excusable("authorized-keys", "", "only the seed's")},
		{"passwords", m.passwordsScript(), m.excusable("password-hash", "/etc/shadow", "none")},
		{"sudo", sudoRules, m.excusable("nopasswd", "", "no rule without password but the seed's")},
		{"writable by all", writable, m.excusable("world-writable", "", "nothing that is made at boot")},
		{"environment", environment, clean("no secret in any service's")},
		{"apt's sources", aptSources, clean("of this release")},
	}
	if m.VirtualSize > 0 {
		all = append(all, look{"root file system", "df -B1 --output=size / | tail -n 1", m.rootGrew})
	}
	if !m.Desktop {
		all = append(all, look{"port 6080", noDesktop, clean("closed")})
	}
	// Who builds as the login user stays as the login user.
	if m.BuildUser != "" && !(m.BakedUser && m.BuildUser == m.VMUser) {
		all = append(all, look{"build user", buildUserTraces, clean(m.BuildUser + " is gone")})
	}
	if m.kind.crownLabs {
		all = append(all, look{"cloud-init's schema", "cloud-init schema --system", crownLabsSchema})
	}
	return append(all,
		look{"", "grep -hs '\\[WARNING\\]' /var/log/cloud-init.log", m.keepWarnings},
		look{"", packages, m.keepPackages},
		look{"", identity, m.keepIdentity},
		look{"", login, func(string) (string, error) { return "", nil }},
		// Last: it waits for the end of the boot, which is a desktop's, too.
		look{"units", units, allUnitsRun},
		look{"", "systemctl show --property=FinishTimestampMonotonic", m.keepFinish},
	)
}

// excusable judges like clean what the hygiene gate looks for by that rule,
// too: what may be on the disk may be in the guest. Each line is about one
// file, which it begins with where none is given.
func (m *machine) excusable(rule, file, detail string) func(string) (string, error) {
	return func(out string) (string, error) {
		var left []string
		for line := range strings.Lines(out) {
			about := file
			if about == "" {
				about = line[:max(0, strings.IndexAny(line, ": "))]
			}
			reason := ""
			if m.Excused != nil {
				reason = m.Excused(rule, about)
			}
			if reason == "" {
				left = append(left, line)
			} else {
				detail += fmt.Sprintf("; %s is excused: %s", about, reason)
			}
		}
		return clean(detail)(strings.Join(left, ""))
	}
}

// clean judges a script that prints a line for each thing that is wrong.
func clean(detail string) func(string) (string, error) {
	return func(out string) (string, error) {
		if out != "" {
			return "", errors.New(joined(out))
		}
		return detail, nil
	}
}
