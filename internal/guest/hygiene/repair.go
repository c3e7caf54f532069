package hygiene

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// What becomes of what a look finds.
const (
	repairDelete = "delete"
	repairEmpty  = "empty" // whoever writes it needs it, or its owner and mode
)

// GeneraliseOptions say what is generalised, and who may stay.
type GeneraliseOptions struct {
	Options        // its Disk is changed
	VMUser  string // login user that cloud-init makes where the machine runs
}

// Generalised is what came of it.
type Generalised struct {
	Repaired []Finding // in the order of the rules
	System   string    // as its os-release calls it: "debian-12", or empty
}

// uid is that of the first account that somebody makes, which CrownLabs expects of
// the login user.
const uid = "1000"

// Generalise takes from the disk of a machine that was used what must not be in two:
// what the rules find and have a repair for, and the passwords of accounts, which stay.
// Nothing boots: libguestfs changes the files. A disk whose file system was not
// closed, and one that no machine could use that is started with a seed, are refused
// before anything is changed. Findings without a repair are left to Scan.
func Generalise(ctx context.Context, o GeneraliseOptions, p progress.Reporter) (Generalised, error) {
	o.closed = true
	t, err := read(ctx, o.Options, p)
	if err == nil {
		err = t.generalisable(o)
	}
	if err != nil {
		return Generalised{}, ended(ctx, err)
	}
	id, version := t.system()
	g := Generalised{System: strings.Trim(id+"-"+version, "-")}
	var script strings.Builder
	for _, rule := range t.rules {
		for _, f := range rule.apply(t) {
			switch f.repair {
			case repairDelete:
				fmt.Fprintf(&script, "rm-rf %s\n", quoted(f.Path))
			case repairEmpty:
				fmt.Fprintf(&script, "truncate %s\n", quoted(f.Path))
			default:
				continue
			}
			f.Rule = rule.Name
			g.Repaired = append(g.Repaired, f)
		}
	}
	dir, err := os.MkdirTemp(o.Dir, "diskforge-capture-")
	if err != nil {
		return g, err
	}
	defer os.RemoveAll(dir)
	for i, e := range t.matching(passwords...) {
		content, locked := lock(string(t.kept[e.path]))
		if len(locked) == 0 {
			continue
		}
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return g, err
		}
		fmt.Fprintf(&script, "upload %s %s\n", quoted(file), quoted(e.path)) // into the file that is there, with its mode
		g.Repaired = append(g.Repaired, Finding{Rule: "password-hash", Path: e.path, Detail: "locked " + strings.Join(locked, ", ")})
	}
	if script.Len() == 0 {
		return g, nil
	}
	return g, ended(ctx, t.change(ctx, dir, script.String()))
}

// ended is the context's error where it has ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// generalisable says what stands against it.
func (t *tree) generalisable(o GeneraliseOptions) error {
	if _, ok := t.entries["/usr/bin/cloud-init"]; !ok {
		return failure.New("the machine has no cloud-init, which makes the login user where KubeVirt starts it",
			"install it in the machine (apt-get install cloud-init), shut the machine down and capture it again")
	}
	isThere := false
	for line := range strings.Lines(string(t.kept["/etc/passwd"])) {
		fields := strings.Split(line, ":")
		isThere = isThere || fields[0] == o.VMUser
		switch {
		case len(fields) < 3 || fields[2] != uid && fields[0] != o.VMUser || o.BakedUser && fields[0] == o.VMUser:
		case fields[0] == o.VMUser:
			return failure.New("the machine has the account "+o.VMUser+" already", "set BAKE_USER=true if it is the login user's, which stays with its home")
		default:
			return failure.New(fmt.Sprintf("the account %s has UID %s, which the login user %s has to get", fields[0], uid, o.VMUser),
				fmt.Sprintf("set VM_USER=%s BAKE_USER=true to log in as it, with its home, or delete it in the machine and capture that again", fields[0]))
		}
	}
	if o.BakedUser && !isThere {
		return failure.New("the machine has no account "+o.VMUser+", which BAKE_USER=true keeps", "leave BAKE_USER out, or name its account with VM_USER")
	}
	return nil
}

// lock takes the passwords out of a passwd(5) or shadow(5), and names whose.
func lock(content string) (without string, whose []string) {
	lines := slices.Collect(strings.Lines(content))
	for i, line := range lines {
		fields := strings.Split(line, ":")
		// A hash behind the ! of usermod --lock is one that could be tried.
		if len(fields) < 2 || fields[1] == "x" || strings.Trim(fields[1], "!*") == "" && fields[1] != "" {
			continue
		}
		fields[1] = "*"
		lines[i] = strings.Join(fields, ":")
		whose = append(whose, fields[0])
	}
	return strings.Join(lines, ""), whose
}

// quoted is a path as guestfish takes it, whatever bytes it has: names on the disk
// are somebody's.
func quoted(path string) string {
	escape := func(s string) string { return `\x` + strings.ReplaceAll(fmt.Sprintf("% x", s), " ", `\x`) }
	return `"` + unquotable.ReplaceAllStringFunc(path, escape) + `"`
}

var unquotable = regexp.MustCompile(`[^!#-\[\]-~]`)

// change runs guestfish's commands on the disk, which it mounts as the guest would.
func (t *tree) change(ctx context.Context, dir, script string) error {
	disk, err := filepath.Abs(t.Disk)
	if err != nil {
		return err
	}
	c := t.fish(dir, "--rw", "--format="+t.Format, "--add", disk, "--inspector")
	c.Env = append(c.Env, "TMPDIR="+dir, "LIBGUESTFS_TMPDIR="+dir)
	c.Stdin = strings.NewReader(script)
	t.p.Activity("changing the files with libguestfs")
	err = host.RunAppliance(ctx, c)
	if _, explained := failure.In(err); err != nil && !explained {
		err = failure.Wrap(err, "libguestfs cannot change the disk", "it needs one Linux system whose /etc/fstab names its file systems, "+
			"and on this host a readable /boot/vmlinuz*: libguestfs-test-tool says more")
	}
	return err
}
