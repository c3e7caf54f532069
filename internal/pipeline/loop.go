package pipeline

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// beginning is the snapshot of the guest before the playbook ran in it.
const beginning = "beginning"

// prepareLoop gets what the loop needs, before anything is booted: a playbook that this
// host's Ansible takes and, where it has checks, goss. They are in the directory.
func (w *way) prepareLoop(ctx context.Context, dir string) (err error) {
	if w.controller, err = w.rooms.controller(ctx); err != nil {
		return err
	}
	if err = w.show(ctx, "playbook", func(ctx context.Context, p progress.Reporter) (string, error) {
		return w.takePlaybook(ctx, dir, p)
	}); err != nil || w.playbook.Checks == "" {
		return err
	}
	return w.show(ctx, "tools", w.compile)
}

// takePlaybook copies the playbook as it is now, and checks it.
func (w *way) takePlaybook(ctx context.Context, dir string, p progress.Reporter) (string, error) {
	o := PlaybookOptions(w.Config)
	o.Dir = filepath.Join(dir, "playbooks")
	source, _, err := w.rooms.playbook(ctx, o, w.Config.ExtraVars, w.controller, p)
	if err != nil {
		return "", err
	}
	w.playbook = source
	return source.File, nil
}

// loop is an author's: it runs the playbook in the guest, then its checks, as it is and
// again each time a line is read, which may say r to go back to the guest before the
// first run, or q to end. The error is of the last run.
func (w *way) loop(ctx context.Context, guest *vm.Guest, dir string, d Desk) error {
	keys := make(chan string)
	go func() {
		defer close(keys)
		lines := bufio.NewScanner(d.Keys)
		for lines.Scan() {
			select {
			case keys <- strings.TrimSpace(lines.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	restore := w.begin(ctx, guest)
	for first := true; ; first = false {
		var last error
		if !first {
			_, last = w.takePlaybook(ctx, dir, progress.Discard)
		}
		if last == nil {
			last = w.tryPlaybook(ctx, guest, d)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was ended, as ever
		}
		if last != nil {
			if err := d.Say("failed", w.mask().Replace(text.Line(last.Error()))); err != nil {
				return err
			}
		}
		next := "Enter runs it again, q ends"
		if restore {
			next = "Enter runs it again, r goes back to before the first run and runs it, q ends"
		}
		if err := d.Say("next", next); err != nil {
			return err
		}
		var key string
		var more bool
		select {
		case <-ctx.Done():
			return nil
		case <-guest.Done():
			return d.Say("end", "the guest has powered off")
		case key, more = <-keys:
		}
		switch {
		case !more || key == "q":
			return last
		case key == "r" && restore:
			if err := w.show(ctx, "back", func(ctx context.Context, _ progress.Reporter) (string, error) {
				return "", guest.Restore(ctx, beginning)
			}); err != nil {
				return err
			}
		default: // the playbook may have rebooted it
			if err := guest.Reconnect(ctx); err != nil {
				return err
			}
		}
	}
}

// begin waits for cloud-init's end, keeps the guest, and says whether it could.
func (w *way) begin(ctx context.Context, guest *vm.Guest) bool {
	kept := false
	_ = w.show(ctx, "snapshot", func(ctx context.Context, p progress.Reporter) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, bootTimeout(w.Config, w.accel))
		defer cancel()
		p.Activity("waiting for the end of cloud-init")
		_, _ = guest.Run(ctx, "cloud-init status --wait", nil) // it fails for a warning, too
		p.Activity("keeping the guest")
		if err := guest.Save(ctx, beginning); err != nil {
			p.Warn("there is no way back to the beginning: " + text.Line(err.Error()))
			return "none", nil
		}
		kept = true
		return "", nil
	})
	return kept
}

// tryPlaybook runs the playbook and its checks once.
func (w *way) tryPlaybook(ctx context.Context, guest *vm.Guest, d Desk) error {
	dir := filepath.Dir(w.playbook.Root)
	inventory, vars := filepath.Join(dir, "inventory"), filepath.Join(dir, "vars.json")
	of := provision.Options{Desktop: w.Config.Desktop, VMUser: w.Config.VMUser, ExtraVars: w.Config.ExtraVars, AptMirror: w.Config.AptMirror}
	if err := os.WriteFile(inventory, []byte(guest.Inventory(playbook.GuestAlias)), 0o600); err != nil {
		return err
	}
	if err := playbook.WriteExtraVars(vars, of.Variables()); err != nil {
		return err
	}
	began := time.Now()
	err := host.Run(ctx, host.Cmd{
		Program: "ansible-playbook", Dir: w.playbook.Root, Env: host.Env(append(w.playbook.Env(), "ANSIBLE_PIPELINING=1")...), Confined: true,
		Args: []string{"--inventory", inventory, "--extra-vars", "@" + vars, filepath.Join(w.playbook.Root, filepath.FromSlash(w.playbook.File))},
		OnLine: func(line string) {
			if line = text.Line(line); line != "" {
				d.Line(w.mask().Replace(line))
			}
		},
	})
	if err != nil {
		return failure.Wrap(err, "the playbook failed", "correct it and run it again")
	}
	if err := d.Say("playbook", "ran in "+text.Span(time.Since(began))); err != nil || w.playbook.Checks == "" {
		return err
	}
	if err := guest.Reconnect(ctx); err != nil {
		return err
	}
	checks := verify.Playbook(ctx, guest, w.playbook.Checks, w.tools.Goss, bootTimeout(w.Config, w.accel))
	wrong := verify.Failed(checks)
	for _, line := range wrong {
		d.Line("✗ " + line)
	}
	if len(wrong) > 0 {
		return failure.New(fmt.Sprintf("%d of %d checks failed: %s", len(wrong), len(checks), wrong[0]), "correct the playbook or its checks")
	}
	return d.Say("checks", fmt.Sprintf("all %d hold", len(checks)))
}
