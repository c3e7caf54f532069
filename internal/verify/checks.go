package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/boot"
)

// check looks at one thing in the guest. It returns what it found in one
// line, or an error that says what is wrong.
type check struct {
	name string
	look func(context.Context) (string, error)
}

// checks are those that hold for every image. cloud-init comes first: the
// others look at a guest that has finished its boot.
func (v *verification) checks() []check {
	all := []check{
		{"cloud-init", v.cloudInit},
		{"login user", v.loginUser},
		{"hostname", v.hostname},
		{"machine-id", v.machineID},
	}
	if v.VirtualSize > 0 {
		all = append(all, check{"root file system", v.rootGrew})
	}
	if v.BakedUser {
		all = append(all, check{"baked user", v.bakedUserLocked})
	}
	// Who builds as the login user stays as the login user.
	if v.BuildUser != "" && !(v.BakedUser && v.BuildUser == v.VMUser) {
		all = append(all, check{"build user", v.buildUserGone})
	}
	return all
}

// ask runs a script in the guest as root, with args as $1 and so on, and returns what it printed.
func (v *verification) ask(ctx context.Context, script string, args ...string) (string, error) {
	cmd := "sudo -n sh -c " + boot.Quote(script) + " sh"
	for _, a := range args {
		cmd += " " + boot.Quote(a)
	}
	out, err := v.guest.Run(ctx, cmd, nil)
	return strings.TrimSpace(out), err
}

func (v *verification) cloudInit(ctx context.Context) (string, error) {
	// It exits with 1 on errors and 2 on warnings; its output says which.
	out, err := v.guest.Run(ctx, "cloud-init status --wait --format json", nil)
	v.result.CloudInitDone = time.Since(v.start)
	status, errParse := parseCloudInit(out)
	if errParse != nil {
		return "", errors.Join(err, errParse)
	}
	v.result.CloudInit = status.name()
	return status.verdict(v.AllowedWarnings)
}

func (v *verification) loginUser(ctx context.Context) (string, error) {
	// That we talk to it shows user and key; the id shows that 1000 was free.
	out, err := v.ask(ctx, `id -u "$1"`, v.VMUser)
	if err != nil {
		return "", err
	}
	if out != "1000" {
		return "", fmt.Errorf("%s of the seed got the uid %s, because 1000 was taken", v.VMUser, out)
	}
	return v.VMUser + " of the seed has uid 1000", nil
}

func (v *verification) hostname(ctx context.Context) (string, error) {
	out, err := v.ask(ctx, "hostname")
	if err != nil {
		return "", err
	}
	if out != hostname {
		return "", fmt.Errorf("the seed's hostname %s is not in force, it is %q", hostname, out)
	}
	return out, nil
}

// machineID tells an id that systemd made at this boot from one that came
// with the disk: the file that was empty at rest was written after power on.
func (v *verification) machineID(ctx context.Context) (string, error) {
	out, err := v.ask(ctx, `cat /etc/machine-id; echo $(( $(date +%s) - $(stat -c %Y /etc/machine-id) )) $(cut -d. -f1 /proc/uptime)`)
	if err != nil {
		return "", err
	}
	var id string
	var age, up int64
	if n, err := fmt.Sscan(out, &id, &age, &up); n != 3 || len(id) != 32 {
		return "", fmt.Errorf("machine-id was not set at boot: %q (%v)", out, err)
	}
	if age > up+1 { // both in whole seconds
		return "", fmt.Errorf("the disk carries the machine-id %s, which every machine made of it would share: it has to be empty", id)
	}
	return "made at this boot", nil
}

func (v *verification) rootGrew(ctx context.Context) (string, error) {
	out, err := v.ask(ctx, "df -B1 --output=size / | tail -n 1")
	if err != nil {
		return "", err
	}
	size, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return "", fmt.Errorf("the size of the root file system cannot be read: %w", err)
	}
	// Partition table, boot partitions and the file system's own tables take
	// a part; without growing, the root would be below the disk's old size.
	if size < v.VirtualSize {
		return "", fmt.Errorf("it has %d MiB on a disk of %d MiB: it did not grow with the disk (cloud-init's growpart and resizefs)", size>>20, v.machineSize()>>20)
	}
	return fmt.Sprintf("%d MiB on a disk of %d MiB", size>>20, v.machineSize()>>20), nil
}

// buildUserTraces prints a line for each thing that the build's user left.
const buildUserTraces = `
getent passwd "$1" >/dev/null && echo "it is in /etc/passwd"
getent group "$1" >/dev/null && echo "its group is in /etc/group"
test -e "/home/$1" && echo "its home /home/$1 is there"
test -e "/var/mail/$1" && echo "its mailbox /var/mail/$1 is there"
test -e "/var/spool/cron/crontabs/$1" && echo "its crontab is there"
grep -lsw -- "$1" /etc/sudoers /etc/sudoers.d/* /etc/subuid /etc/subgid | sed 's/^/it is named in /'
for f in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
	case $f in "/home/$2/"*) continue;; esac
	# A line of options that only says which user to log in as opens nothing.
	if test -s "$f" && grep -v '^ *#' "$f" | grep -v 'command="echo .*Please login as the user' | grep -q .; then
		echo "$f lets somebody in"
	fi
done
exit 0`

func (v *verification) buildUserGone(ctx context.Context) (string, error) {
	out, err := v.ask(ctx, buildUserTraces, v.BuildUser, v.VMUser)
	if err != nil {
		return "", err
	}
	if out != "" {
		return "", fmt.Errorf("%s is not gone: %s", v.BuildUser, strings.ReplaceAll(out, "\n", "; "))
	}
	return v.BuildUser + " is gone", nil
}

// bakedUserLocked checks the account that stays in the image by request: it
// may have no password and no key but the seed's.
func (v *verification) bakedUserLocked(ctx context.Context) (string, error) {
	out, err := v.ask(ctx, `passwd -S "$1" | cut -d' ' -f2; cat "$(getent passwd "$1" | cut -d: -f6)/.ssh/authorized_keys" | grep -vc '^ *#'`, v.VMUser)
	if err != nil {
		return "", err
	}
	if state, keys, _ := strings.Cut(out, "\n"); state != "L" {
		return "", fmt.Errorf("%s stays in the image, and its password is not locked (passwd -S says %q)", v.VMUser, state)
	} else if keys != "1" {
		return "", fmt.Errorf("%s stays in the image, and %s keys let somebody in where only the seed's may", v.VMUser, keys)
	}
	return v.VMUser + " stays, with its password locked and no key", nil
}
