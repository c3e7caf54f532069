#!/bin/sh
# shellcheck disable=SC2016,SC2317,SC2329 # programs for awk and formats for apt; looks.go calls the functions
#
# What verify looks at in a running guest, a function each. Most print a line
# for each thing that is wrong, the others what looks.go judges. They run as
# root.

build_user=$1 # who built the image, or empty
vm_user=$2    # the login user, whom the seed makes
seed_key=$3   # which the seed lets in

# When the guest started, in seconds since 1970, with two seconds for rounding:
# what is older came with the disk.
read -r up _ </proc/uptime
boot=$(($(date +%s) - ${up%.*} - 2))

# That the name and the uid of the seed's user were free: KubeVirt's consumers
# count on both.
login_user() {
	uid=$(id -u "$vm_user") || uid=none
	# useradd takes the next after the highest below 60000 (UID_MAX), not the first that is free.
	[ "$uid" = 1000 ] || echo "$vm_user of the seed got the uid $uid and not 1000, because of $(
		awk -F: -v user="$vm_user" '$3 >= 1000 && $3 < 60000 && $1 != user { print $1 " (" $3 ")" }' /etc/passwd | paste -sd, -)"
}

# A user that was in the image already: cloud-init then says that it makes none,
# and the home is older than the boot (%W is 0 or - where the file system does
# not know).
login_user_is_new() {
	grep -qs "User $vm_user already exists" /var/log/cloud-init.log && echo "the image has a user $vm_user already, which is the seed's to make"
	home=$(getent passwd "$vm_user" | cut -d: -f6)
	[ -d "$home" ] || echo "$vm_user has no home"
	born=$(stat -c %W "$home")
	[ "${born:--}" = - ] || [ "$born" -eq 0 ] || [ "$born" -ge "$boot" ] || echo "$home was in the image already"
}

# virtiofs is how KubeVirt shares file systems; modprobe also knows what is
# built into the kernel.
virtiofs() {
	grep -qw virtiofs /proc/filesystems || modprobe -q virtiofs
	grep -qw virtiofs /proc/filesystems || echo "the kernel $(uname -r) has no virtiofs, which shared folders need"
}

# The id, when the guest started, and when the id was written.
machine_id() {
	cat /etc/machine-id
	echo "$boot $(stat -c %Y /etc/machine-id)"
}

# Also the keys that the seed brings were written at this boot.
host_keys() {
	for f in /etc/ssh/ssh_host_*_key; do
		[ -e "$f" ] || continue
		[ "$(stat -c %Y "$f")" -ge "$boot" ] || echo "$f came with the disk: every machine made of it would share it"
	done
}

# Every home's, once cloud-init wrote there what it was told. A line of options
# that only says which user to log in as opens nothing.
authorized_keys() {
	mine=$(getent passwd "$vm_user" | cut -d: -f6)
	getent passwd | cut -d: -f6 | sort -u | while read -r home; do
		for f in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
			[ -s "$f" ] || continue
			grep -v '^ *#' "$f" | grep . | grep -v 'command="echo .*Please login as the user' | grep -qvxF -- "$seed_key" && echo "$f lets somebody in"
			[ "$home" = "$mine" ] || ! grep -qxF -- "$seed_key" "$f" || echo "$f has the key of the seed's user $vm_user"
		done
	done
}

# Looked for in the running guest, too, because cloud-init unlocks and sets
# passwords: a configuration in the image may tell it to.
passwords() {
	awk -F: '$2 == "" { print $1 " needs no password" } $2 ~ /^[^!*]/ { print $1 " has a password" }' /etc/shadow || echo "/etc/shadow cannot be read"
}

# cloud-init adds the seed's rule to a file that may hold others. sudoers(5) has
# three ways to ask for no password, and #1000 is no comment but a user.
sudo_rules() {
	grep -rsnE -e '(^|[^[:alnum:]_])NOPASSWD([^[:alnum:]_]|$)' -e '![[:space:]]*authenticate' -e 'exempt_group[[:space:]]*=' /etc/sudoers /etc/sudoers.d |
		grep -vE '^[^:]*:[0-9]*:[[:space:]]*#([^0-9]|$)' |
		awk -v user="$vm_user" -F: '{ rule = $0; sub(/^[^:]*:[0-9]*:/, "", rule); split(rule, word, /[ \t]+/)
			if (!($1 == "/etc/sudoers.d/90-cloud-init-users" && word[1] == user)) print $1 ":" $2 ": " rule }'
}

# What is made anew at each boot (tmpfiles, services, cloud-init's write_files);
# the hygiene gate looks at the disk at rest, file by file, which would take
# seconds here.
writable() {
	find /run /etc /dev/shm -xdev ! -type l ! -type s -perm -0002 ! -perm -1000 2>/dev/null | sed 's/$/ can be written by everybody/' | head -n 20
}

# Names that say secret, and URLs with a password, in the environment of
# everything that runs: a setting of the build that became one of a service (a
# drop-in, /etc/environment, a proxy). The value is not shown.
environment() {
	grep -soazE '^([A-Za-z0-9]+_)*(PASS|PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|pass|password|token|secret)=.|^[A-Za-z0-9_]+=[a-z]+://[^/@:]*:[^/@]*@' /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' |
		while IFS=/: read -r _ _ pid _ rest; do
			{ read -r name <"/proc/$pid/comm"; } 2>/dev/null || name="process $pid"
			echo "$name has ${rest%%=*} in its environment"
		done | sort -u | head -n 20
}

# What apt would fetch from, after cloud-init may have written it anew, against
# the system's own release (os-release(5)). Archives of Debian and Ubuntu, and
# their mirrors, end in their name.
apt_sources() {
	command -v apt-get >/dev/null || return 0
	# shellcheck disable=SC1090 # a test has its own
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
}

root_size() { df -B1 --output=size / | tail -n 1; }

# Who listens on TCP 6080 (17C0), the loopback aside: who probes that port would
# take the machine for one with a desktop.
no_desktop() {
	awk '$4 == "0A" && $2 ~ /:17C0$/ && $2 !~ /^(0100007F|00000000000000000000000001000000):/ {
		print "something listens on TCP 6080, and no desktop was asked for: set INSTALL_DESKTOP_ENVIRONMENT=true for an image with one"; exit }' /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

# What the build's user left.
build_user_traces() {
	getent passwd "$build_user" >/dev/null && echo "it is in /etc/passwd"
	getent group "$build_user" >/dev/null && echo "its group is in /etc/group"
	test -e "/home/$build_user" && echo "its home /home/$build_user is there"
	test -e "/var/mail/$build_user" && echo "its mailbox /var/mail/$build_user is there"
	test -e "/var/spool/cron/crontabs/$build_user" && echo "its crontab is there"
	grep -lsw -- "$build_user" /etc/sudoers /etc/sudoers.d/* /etc/subuid /etc/subgid | sed 's/^/it is named in /'
}

cloud_init_warnings() { grep -hs '\[WARNING\]' /var/log/cloud-init.log; }

# What is installed, a package a line: its state (ii is dpkg's for all is well),
# name and version between tabs.
packages() {
	if command -v dpkg-query >/dev/null; then
		dpkg-query --show --showformat '${db:Status-Abbrev}\t${Package}\t${Version}\n'
	elif command -v rpm >/dev/null; then
		rpm --query --all --queryformat 'ii\t%{NAME}\t%{EVR}\n'
	fi
}

# What no two machines may share, what started this one (UEFI specification, 3.3:
# SecureBoot is 1, behind four bytes of attributes, where signatures are checked), and
# whether there is a driver for SATA.
identity() {
	cat /etc/machine-id
	cut -d' ' -f1-2 /etc/ssh/ssh_host_*_key.pub 2>/dev/null
	[ -d /sys/firmware/efi ] && echo uefi
	od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c 2>/dev/null | grep -q 1 && echo secure
	modinfo -n ahci >/dev/null 2>&1 && echo ahci
}

# Waits until the console shows a prompt, but not for long: not every image has
# one.
login_prompt() {
	[ -c /dev/vcs1 ] && timeout 15 sh -c 'until grep -qa "login:" /dev/vcs1; do sleep 0.3; done'
}

# Waits for the end of the boot, which comes soon after cloud-init's.
units() {
	state=$(timeout 300 systemctl is-system-running --wait)
	echo "$state"
	case $state in
	running) ;;
	starting) systemctl list-jobs --plain --no-legend ;;
	*) systemctl list-units --failed --plain --no-legend ;;
	esac
}

# Installs what has been published since, as the owner of the machine would, and the
# kernel in any case: its packages make the initramfs and the boot loader's menu anew.
# The last line says what came of it.
updates() {
	command -v apt-get >/dev/null || { echo "no apt-get is here: nothing was installed"; return; }
	export DEBIAN_FRONTEND=noninteractive
	set -- -qy -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold
	apt-get "$@" update && apt-get "$@" full-upgrade || return
	kernel=$(dpkg-query -W -f '${Version} ${db:Status-Status} ${Package}\n' 'linux-image-[0-9]*' | grep ' installed ' | sort -V | tail -n 1 | cut -d' ' -f3)
	# The archive may not have it any more.
	apt-get "$@" install --reinstall "$kernel" || { update-initramfs -u && update-grub; } || return
	echo "upgraded packages: $(grep -c ' upgrade ' /var/log/dpkg.log); installed $kernel again"
}
