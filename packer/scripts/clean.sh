#!/bin/sh
# Removes from the guest every trace of the build, so that the disk holds what
# the playbook made of the base and nothing else.
#
#   clean.sh clean  USER BAKE   while the build user is still needed
#   clean.sh finish USER BAKE   its account, the last files, trim, power off
#
# USER is the build user; BAKE is true where its account stays (locked).
# The lines that begin with "diskforge:" are read by the provision stage.
set -eu
export LC_ALL=C
phase=${1:?} user=${2:?} bake=${3:?}

# A guest that could not be cleaned powers off all the same: Packer would wait
# for it. The build fails, because the script's last word is missing.
ended() {
  status=$?
  [ "$status" != 0 ] || return 0
  echo "diskforge: $phase failed"
  [ "$phase" != finish ] || systemctl poweroff
}
trap ended EXIT

# have says whether a command is installed.
have() { command -v "$1" >/dev/null 2>&1; }

# build_settings removes what the seed installed for the build alone: proxies
# and the additional certificate authority.
build_settings() {
  rm -f /etc/apt/apt.conf.d/00diskforge-build
  if grep -qs '^# diskforge build begin' /etc/environment; then
    sed -i '/^# diskforge build begin/,/^# diskforge build end/d' /etc/environment
  fi
  if [ -e /usr/local/share/ca-certificates/diskforge-build.crt ]; then
    rm -f /usr/local/share/ca-certificates/diskforge-build.crt
    update-ca-certificates --fresh >/dev/null
  fi
}

packages() {
  if have apt-get; then
    apt-get clean
    rm -rf /var/lib/apt/lists/*
    rm -f /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old
  fi
}

# identity removes what must differ between two machines made from this disk.
# An empty machine-id is filled at the next boot; a missing one would leave
# that boot without network where networkd derives its DHCP identity from it.
identity() {
  rm -f /etc/ssh/ssh_host_*
  truncate -s 0 /etc/machine-id
  [ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
  # Stopping the service saves the seed: only then is it gone for good.
  systemctl stop systemd-random-seed.service 2>/dev/null || true
  rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
  # Docker, iSCSI and NVMe make theirs at the next start.
  rm -f /etc/docker/key.json /var/lib/docker/engine-id /etc/nvme/hostid /etc/nvme/hostnqn
  [ ! -e /etc/iscsi/initiatorname.iscsi ] || echo GenerateName=yes >/etc/iscsi/initiatorname.iscsi
  rm -f /var/lib/dhcp/*.leases /var/lib/dhclient/* /var/lib/NetworkManager/*.lease /var/lib/NetworkManager/secret_key
}

# cloud_init makes the next boot a first boot, once this boot's run has ended. The network settings that it
# generated here name this machine's network card.
cloud_init() {
  have cloud-init || return 0
  seconds=0
  while [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/result.json ] && [ "$seconds" -lt 300 ]; do
    sleep 1
    seconds=$((seconds + 1))
  done
  cloud-init clean --logs
  for file in /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-*; do
    [ ! -e "$file" ] || rm -f "$file"
  done
}

# keys removes the build's key from every account, and no other key.
keys() {
  for file in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
    [ -f "$file" ] || continue
    sed -i '/ diskforge-build$/d' "$file"
    [ -s "$file" ] || rm -f "$file"
  done
  for home in /root /home/*; do
    rm -rf "$home/.ansible" "$home/.bash_history" "$home/.cache/motd.legal-displayed" "$home/.sudo_as_admin_successful"
    rmdir "$home/.ssh" "$home/.cache" 2>/dev/null || true
  done
}

# account takes the build user's rights and, unless it is to stay, the user;
# the former versions of the account files would still name it.
account() {
  rm -f /etc/sudoers.d/90-cloud-init-users
  if [ "$bake" = true ]; then
    usermod --lock "$user"
    backups
    return
  fi
  # -f: this very session belongs to the user.
  userdel --force --remove "$user" 2>/dev/null || true
  if id "$user" >/dev/null 2>&1; then
    echo "diskforge: the build user $user could not be deleted"
    return 1
  fi
  rm -rf "/home/${user:?}" "/var/mail/$user" "/var/spool/mail/$user" "/var/spool/cron/crontabs/$user" "/var/lib/systemd/linger/$user"
  backups
}

backups() {
  rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-
}

# logs come last, because everything above writes some. The journal goes on
# in memory, so that nothing is written between here and the power off.
logs() {
  systemctl stop syslog.socket rsyslog.service 2>/dev/null || true
  if have journalctl; then
    journalctl --relinquish-var 2>/dev/null || true
    rm -rf /var/log/journal/*
  fi
  find /var/log -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.old' -o -name '*.[0-9]' \) -delete
  find /var/log -xdev -type f -exec truncate -s 0 {} +
  # Powering off is written there, where it is there; the next boot makes it anew.
  rm -f /var/log/wtmp
}

temporary() {
  find /tmp /var/tmp -xdev -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' -exec rm -rf {} +
}

# trim gives the free blocks back to the host. Blocks freed a moment ago are
# only trimmed once the journal of the file system is written.
trim() {
  sync
  fstrim -av 2>&1 | sed 's/^/diskforge: trim /' || true
}

case $phase in
clean)
  build_settings
  packages
  cloud_init
  ;;
finish)
  account
  keys
  identity
  logs
  temporary
  trim
  echo "diskforge: clean"
  systemctl poweroff
  ;;
*)
  echo "usage: $0 clean|finish USER BAKE" >&2
  exit 2
  ;;
esac
