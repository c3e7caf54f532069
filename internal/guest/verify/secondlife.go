package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// secondLife is a machine whose disk is kept, as one is that CDI imports into a volume:
// it reaches the network, installs updates and starts again, twice.
var secondLife = kind{name: "second life", persistent: true}

// restarts is how often such a machine starts again. What the first start sets up the
// second one has to find; what an update sets up, too.
const restarts = 2

// live has the machine live on. The error is the context's; what is wrong is in the
// result.
func (m *machine) live(ctx context.Context) error {
	m.p.Activity("installing updates")
	out, err := m.asked(ctx, "no end of the updates", "updates")
	m.add("updates", lastLine(out), err)
	for n := 1; n <= restarts && err == nil && ctx.Err() == nil; n++ {
		m.p.Activity(fmt.Sprintf("starting again (%d of %d)", n, restarts))
		var detail string
		detail, err = m.restart(ctx)
		m.add(fmt.Sprintf("start %d", n+1), detail, err)
	}
	if err == nil && m.Desktop && ctx.Err() == nil {
		shown := m.servedDesktop(ctx, m.guest.Address(DesktopPort), usual)
		m.result.Checks = append(m.result.Checks, shown.checks...)
	}
	return context.Cause(ctx)
}

func (m *machine) add(name, detail string, err error) {
	m.result.Checks = append(m.result.Checks, m.check(name, detail, err))
}

// asked is what a function of inside.sh printed. Its failure is told by the last line
// of that.
func (m *machine) asked(ctx context.Context, late, function string) (string, error) {
	ctx, cancel := m.within(ctx, late)
	defer cancel()
	out, err := m.ask(ctx, insideScript+"\n"+function+" </dev/null 2>&1", m.BuildUser, m.VMUser, m.guest.AuthorizedKey())
	if err != nil && out != "" {
		return "", errors.New(lastLine(out))
	}
	return out, err
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return text.Line(lines[len(lines)-1])
}

// restart starts the guest again from inside, and looks whether it is who it was and
// whether all runs.
func (m *machine) restart(ctx context.Context) (string, error) {
	began, boot := time.Now(), ""
	ctx, cancel := m.within(ctx, "it did not come back")
	defer cancel()
	boot, err := m.ask(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	_, _ = m.ask(ctx, "systemctl reboot") // which may end the connection before it is answered
	for now := boot; now == boot || err != nil; {
		if err := host.Sleep(ctx, time.Second); err != nil {
			return "", err
		}
		if err := m.guest.Reconnect(ctx); err != nil {
			return "", restartFailure(ctx, err)
		}
		now, err = m.ask(ctx, "cat /proc/sys/kernel/random/boot_id")
	}
	took := time.Since(began)
	units, err := m.asked(ctx, "no end of the boot", "units")
	if err == nil {
		_, err = allUnitsRun(units)
	}
	if err != nil {
		return "", err
	}
	is := &machine{}
	out, err := m.asked(ctx, "no answer", "identity")
	if err != nil {
		return "", err
	}
	_, _ = is.keepIdentity(out)
	if !slices.Equal(m.identity, is.identity) {
		return "", fmt.Errorf("it has another identity now: %s", strings.Join(is.identity, ", "))
	}
	return "ssh after " + text.Span(took) + ", all units run, with the identity of the first start", nil
}

// restartFailure is what a guest that does not come back shows of itself.
func restartFailure(ctx context.Context, err error) error {
	if f, ok := failure.In(err); ok && ctx.Err() == nil && len(f.Lines) > 0 {
		return fmt.Errorf("it did not come back: %s: %s", f.What, f.Lines[len(f.Lines)-1])
	}
	return fmt.Errorf("it did not come back: %w", err)
}
