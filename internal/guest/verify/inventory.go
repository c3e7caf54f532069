package verify

import (
	"bufio"
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// packages lists what is installed, a package a line: its state (ii is
// dpkg's for all is well), name and version between tabs.
const packages = `
if command -v dpkg-query >/dev/null; then
	dpkg-query --show --showformat '${db:Status-Abbrev}\t${Package}\t${Version}\n'
elif command -v rpm >/dev/null; then
	rpm --query --all --queryformat 'ii\t%{NAME}\t%{EVR}\n'
fi`

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
		p := Package{text.Line(fields[1]), text.Line(fields[2])}
		if p.Name != "" && len(p.Name) <= maxField && len(p.Version) <= maxField {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	return slices.Compact(all)
}

// identity prints what no two machines may share, and what further machines can
// be made of the disk: with an EFI system partition, with a driver for SATA.
const identity = `
cat /etc/machine-id
cut -d' ' -f1-2 /etc/ssh/ssh_host_*_key.pub 2>/dev/null
lsblk --noheadings --raw --output PARTTYPE | grep -qi -e c12a7328-f81f-11d2-ba4b-00a0c93ec93b -e '^0xef$' && echo esp
[ -d /sys/firmware/efi ] && echo uefi
modinfo -n ahci >/dev/null 2>&1 && echo ahci
:`

func (m *machine) keepIdentity(out string) (string, error) {
	for line := range strings.Lines(out) {
		switch line = text.Line(line); line {
		case "":
		case "esp":
			m.esp = true
		case "uefi":
			m.uefi = true
		case "ahci":
			m.ahci = true
		default:
			m.identity = append(m.identity, line)
		}
	}
	return "", nil
}

// keepFinish notes when systemd had started everything. It counts from the
// kernel's start, which the console told to a tenth of a second.
func (m *machine) keepFinish(out string) (string, error) {
	value, _ := strings.CutPrefix(out, "FinishTimestampMonotonic=")
	usec, err := strconv.ParseInt(value, 10, 64)
	if err != nil || usec <= 0 || usec > time.Hour.Microseconds() {
		return "", nil // no systemd, or no end: other checks say so
	}
	for _, phase := range m.guest.Moments() {
		if phase.Phase == "kernel" {
			at := phase.At.Sub(m.guest.PowerOn()) + time.Duration(usec)*time.Microsecond
			m.finished = []Moment{{"boot finished", at}}
		}
	}
	return "", nil
}
