package verify

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// look is a command that runs in the guest, where inside.sh's functions are,
// and what follows from its output. One without a name is no check: it asks for
// something.
type look struct {
	name    string
	command string
	judge   judge
}

// judge says what the output of a look shows, or what is wrong.
type judge func(out string) (detail string, err error)

// looks are those that hold for every image, those that follow from the
// options, and what a report wants to know.
func (m *machine) looks() []look {
	loginUser, passwords := "login_user; login_user_is_new", "passwords"
	if m.BakedUser {
		loginUser = "login_user" // it is there by request
	}
	if m.kind.crownLabs {
		passwords = `passwords | grep -vxF "$vm_user has a password"` // the seed gave it
	}
	all := []look{
		{"login user", loginUser, clean(m.VMUser + " of the seed has uid 1000")},
		{"hostname", "cat /proc/sys/kernel/hostname", hostnameInForce},
		{"virtiofs", "virtiofs", clean("there")},
		{"machine-id", "machine_id", machineIDOfThisBoot},
		{"ssh host keys", "host_keys", m.excusable("ssh-host-keys", "", "made at this boot")},
		{"authorized keys", "authorized_keys", m.excusable("authorized-keys", "", "only the seed's")},
		{"passwords", passwords, m.excusable("password-hash", "/etc/shadow", "none")},
		{"sudo", "sudo_rules", m.excusable("nopasswd", "", "no rule without password but the seed's")},
		{"writable by all", "writable", m.excusable("world-writable", "", "nothing that is made at boot")},
		{"environment", "environment", clean("no secret in any service's")},
		{"apt's sources", "apt_sources", clean("of this release")},
	}
	if m.VirtualSize > 0 {
		all = append(all, look{"root file system", "root_size", m.rootGrew})
	}
	if !m.Desktop {
		all = append(all, look{"port 6080", "no_desktop", clean("closed")})
	}
	// Who builds as the login user stays as the login user.
	if m.BuildUser != "" && !(m.BakedUser && m.BuildUser == m.VMUser) {
		all = append(all, look{"build user", "build_user_traces", clean(m.BuildUser + " is gone")})
	}
	if m.kind.crownLabs {
		all = append(all, look{"cloud-init's schema", "cloud-init schema --system", crownLabsSchema})
	}
	return append(all,
		look{"", "cloud_init_warnings", m.keepWarnings},
		look{"", "packages", m.keepPackages},
		look{"", "identity", m.keepIdentity},
		look{"", "login_prompt", func(string) (string, error) { return "", nil }},
		// Last: it waits for the end of the boot, which is a desktop's, too.
		look{"units", "units", allUnitsRun},
		look{"", "systemctl show --property=FinishTimestampMonotonic", m.keepFinish},
	)
}

// clean judges a look that prints a line for each thing that is wrong.
func clean(detail string) judge {
	return func(out string) (string, error) {
		if out != "" {
			return "", errors.New(joined(out))
		}
		return detail, nil
	}
}

// excusable judges like clean what the hygiene gate looks for by that rule,
// too: what may be on the disk may be in the guest. Each line is about one
// file, which it begins with where none is given.
func (m *machine) excusable(rule, file, detail string) judge {
	return func(out string) (string, error) {
		var left []string
		for line := range strings.Lines(out) {
			about, reason := file, ""
			if about == "" {
				about = line[:max(0, strings.IndexAny(line, ": "))]
			}
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

func hostnameInForce(out string) (string, error) {
	if out != hostname {
		return "", fmt.Errorf("the seed's hostname %s is not in force, it is %q", hostname, out)
	}
	return out, nil
}

// machineIDOfThisBoot tells an id that systemd made at this boot from one that
// came with the disk: the file that was empty at rest was written after power
// on.
func machineIDOfThisBoot(out string) (string, error) {
	var id string
	var boot, written int64
	if _, err := fmt.Sscan(out, &id, &boot, &written); err != nil {
		return "", fmt.Errorf("machine-id was not set at boot: %q (%w)", out, err)
	}
	if len(id) != 32 {
		return "", fmt.Errorf("machine-id was not set at boot: %q", out)
	}
	if written < boot {
		return "", fmt.Errorf("the disk carries the machine-id %s, which every machine made of it would share: it has to be empty", id)
	}
	return "made at this boot", nil
}

func (m *machine) rootGrew(out string) (string, error) {
	size, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return "", fmt.Errorf("the size of the root file system cannot be read: %w", err)
	}
	detail := fmt.Sprintf("%d MiB on a disk of %d MiB", size>>20, m.machineSize()>>20)
	// Partition table, boot partitions and the file system's own tables take
	// a part; without growing, the root would be below the disk's old size.
	if size < m.VirtualSize {
		return "", fmt.Errorf("it has %s: it did not grow with the disk (cloud-init's growpart and resizefs)", detail)
	}
	return detail, nil
}

func allUnitsRun(out string) (string, error) {
	state, rest, _ := strings.Cut(out, "\n")
	switch {
	case state == "running":
		return "all run", nil
	case state == "starting":
		return "", fmt.Errorf("the guest's boot has not ended after five minutes; still waiting: %s", joined(rest))
	case strings.TrimSpace(rest) == "":
		return "", fmt.Errorf("systemd says %q", text.Line(out))
	}
	var failed []string
	for line := range strings.Lines(rest) {
		if fields := strings.Fields(line); len(fields) > 0 {
			failed = append(failed, fields[0])
		}
	}
	return "", fmt.Errorf("failed: %s; systemctl status and journalctl in the guest say why", strings.Join(failed, ", "))
}

// maxPackages and maxField bound what is believed of a guest.
const (
	maxPackages = 20000
	maxField    = 200 // bytes of a name or version
)

func (m *machine) keepPackages(out string) (string, error) {
	m.result.Packages = parsePackages(out)
	return "", nil
}

func parsePackages(out string) []Package {
	var all []Package
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() && len(all) < maxPackages {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 || strings.TrimSpace(fields[0]) != "ii" {
			continue
		}
		p := Package{Name: text.Line(fields[1]), Version: text.Line(fields[2])}
		if p.Name != "" && len(p.Name) <= maxField && len(p.Version) <= maxField {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return slices.Compact(all)
}

func (m *machine) keepIdentity(out string) (string, error) {
	for line := range strings.Lines(out) {
		switch line = text.Line(line); line {
		case "":
		case "uefi":
			m.uefi = true
		case "secure":
			m.secure = true
		case "ahci":
			m.ahci = true
		default:
			m.identity = append(m.identity, line)
		}
	}
	return "", nil
}

// keepFinish notes when systemd had started everything. It counts from the
// kernel's start, which the console shows to a tenth of a second.
func (m *machine) keepFinish(out string) (string, error) {
	value, _ := strings.CutPrefix(out, "FinishTimestampMonotonic=")
	usec, _ := strconv.ParseInt(value, 10, 64) // no systemd, or no end: other checks say so
	if usec <= 0 || usec > time.Hour.Microseconds() {
		return "", nil
	}
	for _, phase := range m.guest.Moments() {
		if phase.Phase == "kernel" {
			m.happened("boot finished", phase.At.Sub(m.guest.PowerOn())+time.Duration(usec)*time.Microsecond)
		}
	}
	return "", nil
}
