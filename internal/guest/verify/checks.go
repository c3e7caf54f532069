package verify

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// loginUser shows that the name and the uid of the seed's user were free:
// KubeVirt's consumers count on both.
const loginUser = `
uid=$(id -u "$2") || uid=none
[ "$uid" = 1000 ] || echo "$2 of the seed got the uid $uid, because 1000 was taken by $(getent passwd 1000 | cut -d: -f1)"
`

// loginUserIsNew looks for a user that was in the image already: cloud-init
// then says that it makes none, and the home is older than the boot (%W is 0
// or - where the file system does not know).
const loginUserIsNew = `
grep -qs "User $2 already exists" /var/log/cloud-init.log && echo "the image has a user $2 already, which is the seed's to make"
home=$(getent passwd "$2" | cut -d: -f6)
[ -d "$home" ] || echo "$2 has no home"
born=$(stat -c %W "$home")
[ "${born:--}" = - ] || [ "$born" -eq 0 ] || [ "$born" -ge "$boot" ] || echo "$home was in the image already"
`

func (m *machine) loginUserScript() string {
	if m.BakedUser {
		return loginUser // it is there by request
	}
	return loginUser + loginUserIsNew
}

func hostnameInForce(out string) (string, error) {
	if out != hostname {
		return "", fmt.Errorf("the seed's hostname %s is not in force, it is %q", hostname, out)
	}
	return out, nil
}

// virtiofs is how KubeVirt shares file systems; modprobe also knows what is
// built into the kernel.
const virtiofs = `
grep -qw virtiofs /proc/filesystems || modprobe -q virtiofs
grep -qw virtiofs /proc/filesystems || echo "the kernel $(uname -r) has no virtiofs, which shared folders need"
`

// aptSources compares what apt would fetch from, after cloud-init may have
// written it anew, with the system's own release (os-release(5)). Archives of
// Debian and Ubuntu, and their mirrors, end in their name.
const aptSources = `
command -v apt-get >/dev/null || exit 0
. "${OS_RELEASE:-/etc/os-release}"
apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 2>/dev/null | sort -u | while read -r uri release; do
	case "$uri" in
	*/debian/ | */debian-security/) of=debian ;;
	*/ubuntu/ | */ubuntu-ports/) of=ubuntu ;;
	*) continue ;;
	esac
	case " $ID $ID_LIKE " in
	*" $of "*) ;;
	*) echo "apt fetches from $uri, which is $of's, on $ID"; continue ;;
	esac
	case "${release%%[-/]*}" in
	"$VERSION_CODENAME" | "$UBUNTU_CODENAME" | "$DEBIAN_CODENAME" | stable | testing | unstable | sid) ;;
	*) echo "apt fetches $release from $uri, on $VERSION_CODENAME" ;;
	esac
done
`

const machineID = `cat /etc/machine-id; echo "$boot $(stat -c %Y /etc/machine-id)"`

// machineIDOfThisBoot tells an id that systemd made at this boot from one that
// came with the disk: the file that was empty at rest was written after power
// on.
func machineIDOfThisBoot(out string) (string, error) {
	var id string
	var boot, written int64
	if n, err := fmt.Sscan(out, &id, &boot, &written); n != 3 || len(id) != 32 {
		return "", fmt.Errorf("machine-id was not set at boot: %q (%v)", out, err)
	}
	if written < boot {
		return "", fmt.Errorf("the disk carries the machine-id %s, which every machine made of it would share: it has to be empty", id)
	}
	return "made at this boot", nil
}

// hostKeys: also those that the seed brings were written at this boot.
const hostKeys = `
for f in /etc/ssh/ssh_host_*_key; do
	[ -e "$f" ] || continue
	[ "$(stat -c %Y "$f")" -ge "$boot" ] || echo "$f came with the disk: every machine made of it would share it"
done`

// authorizedKeys reads every home's, once cloud-init wrote there what it was
// told. A line of options that only says which user to log in as opens nothing.
const authorizedKeys = `
mine=$(getent passwd "$2" | cut -d: -f6)
getent passwd | cut -d: -f6 | sort -u | while read -r home; do
	for f in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
		[ -s "$f" ] || continue
		grep -v '^ *#' "$f" | grep . | grep -v 'command="echo .*Please login as the user' | grep -qvxF -- "$3" && echo "$f lets somebody in"
		[ "$home" = "$mine" ] || ! grep -qxF -- "$3" "$f" || echo "$f has the key of the seed's user $2"
	done
done
:`

// passwords are looked for in the running guest, too, because cloud-init
// unlocks and sets them: a configuration in the image may tell it to.
const passwords = `
{
	awk -F: '$2 == "" { print $1 " needs no password" } $2 ~ /^[^!*]/ { print $1 " has a password" }' /etc/shadow || echo "/etc/shadow cannot be read"
}`

func (m *machine) passwordsScript() string {
	if m.kind.crownLabs {
		return passwords + ` | grep -vxF "$2 has a password"; :` // the seed gave it
	}
	return passwords
}

// sudoRules: cloud-init adds the seed's rule to a file that may hold others.
// sudoers(5) has three ways to ask for no password, and #1000 is no comment but
// a user.
const sudoRules = `
grep -rsnE -e '(^|[^[:alnum:]_])NOPASSWD([^[:alnum:]_]|$)' -e '![[:space:]]*authenticate' -e 'exempt_group[[:space:]]*=' /etc/sudoers /etc/sudoers.d | grep -vE '^[^:]*:[0-9]*:[[:space:]]*#([^0-9]|$)' |
	awk -v user="$2" -F: '{ rule = $0; sub(/^[^:]*:[0-9]*:/, "", rule); split(rule, word, /[ \t]+/)
		if (!($1 == "/etc/sudoers.d/90-cloud-init-users" && word[1] == user)) print $1 ":" $2 ": " rule }'
:`

// writable looks at what is made anew at each boot (tmpfiles, services,
// cloud-init's write_files); the disk at rest is looked at elsewhere, file by
// file, which would take seconds here.
const writable = `find /run /etc /dev/shm -xdev ! -type l ! -type s -perm -0002 ! -perm -1000 2>/dev/null | sed 's/$/ can be written by everybody/' | head -n 20`

// environment looks for names that say secret, and for URLs with a password,
// in the environment of everything that runs: a setting of the build that
// became one of a service (a drop-in, /etc/environment, a proxy). The value is
// not shown.
const environment = `
grep -soazE '^([A-Za-z0-9]+_)*(PASS|PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|pass|password|token|secret)=.|^[A-Za-z0-9_]+=[a-z]+://[^/@:]*:[^/@]*@' /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' |
	while IFS=/: read -r none proc pid file rest; do
		{ read -r name </proc/$pid/comm; } 2>/dev/null || name="process $pid"
		echo "$name has ${rest%%=*} in its environment"
	done | sort -u | head -n 20`

func (m *machine) rootGrew(out string) (string, error) {
	size, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return "", fmt.Errorf("the size of the root file system cannot be read: %w", err)
	}
	// Partition table, boot partitions and the file system's own tables take
	// a part; without growing, the root would be below the disk's old size.
	if size < m.VirtualSize {
		return "", fmt.Errorf("it has %d MiB on a disk of %d MiB: it did not grow with the disk (cloud-init's growpart and resizefs)", size>>20, m.machineSize()>>20)
	}
	return fmt.Sprintf("%d MiB on a disk of %d MiB", size>>20, m.machineSize()>>20), nil
}

// buildUserTraces prints a line for each thing that the build's user left.
const buildUserTraces = `
getent passwd "$1" >/dev/null && echo "it is in /etc/passwd"
getent group "$1" >/dev/null && echo "its group is in /etc/group"
test -e "/home/$1" && echo "its home /home/$1 is there"
test -e "/var/mail/$1" && echo "its mailbox /var/mail/$1 is there"
test -e "/var/spool/cron/crontabs/$1" && echo "its crontab is there"
grep -lsw -- "$1" /etc/sudoers /etc/sudoers.d/* /etc/subuid /etc/subgid | sed 's/^/it is named in /'
:`

// noDesktop looks for who listens on TCP 6080 (17C0), the loopback aside: who
// probes that port would take the machine for one with a desktop.
const noDesktop = `awk '$4 == "0A" && $2 ~ /:17C0$/ && $2 !~ /^(0100007F|00000000000000000000000001000000):/ {
	print "something listens on TCP 6080, and no desktop was asked for: set INSTALL_DESKTOP_ENVIRONMENT=true for an image with one"; exit }' /proc/net/tcp /proc/net/tcp6 2>/dev/null; :`

// units waits for the end of the boot, which comes soon after cloud-init's.
const units = `
state=$(timeout 300 systemctl is-system-running --wait)
echo "$state"
case $state in
running) ;;
starting) systemctl list-jobs --plain --no-legend ;;
*) systemctl list-units --failed --plain --no-legend ;;
esac`

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
	return "", errors.New("failed: " + strings.Join(failed, ", ") + "; systemctl status and journalctl in the guest say why")
}
