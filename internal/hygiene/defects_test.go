package hygiene_test

import (
	"encoding/base64"
	"io/fs"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/hygiene"
)

// The secrets of the build that planted the defects.
const (
	token    = "tok-5f0e9c1b7a"
	password = "correct horse"
)

func secrets() []hygiene.Secret {
	return []hygiene.Secret{{Name: "REGISTRY_PASS", Value: password + "\n"}, {Name: "EXTRA_VARS", Value: token}}
}

// defect is something that a build left, and the rule that must find it.
type defect struct {
	rule, path string
	file       file
}

// defects are at least one a rule. They do not disturb each other.
var defects = []defect{
	{"build-user", "/etc/passwd", file{"root:x:0:0::/root:/bin/sh\npacker:x:999:999::/home/packer:/bin/sh\n", 0}},
	{"build-user", "/etc/group", file{"sudo:x:27:me,packer\n", 0}},
	{"build-user", "/etc/subuid", file{"packer:100000:65536\n", 0}},
	{"build-user", "/etc/gshadow-", file{"sudo:*::packer\n", 0}},
	{"build-user", "/etc/sudoers.d/50-build", file{"packer ALL=(ALL) ALL\n", 0o440}},
	{"build-user", "/home/packer", file{"", fs.ModeDir | 0o700}},
	{"build-user", "/var/spool/mail/packer", file{"mail", 0o600}},
	{"build-user", "/var/spool/cron/crontabs/packer", file{"@daily true", 0o600}},
	{"build-user", "/var/lib/systemd/linger/packer", file{"", 0}},
	{"password-hash", "/etc/shadow", file{"root:$y$j9T$abc$def:20000:::::\n", 0o640}},
	{"password-hash", "/etc/shadow-", file{"guest::20000:::::\n", 0o640}},
	{"authorized-keys", "/home/somebody/.ssh/authorized_keys", file{"ssh-ed25519 AAAA me\n", 0o600}},
	{"authorized-keys", "/root/.ssh/authorized_keys", file{`no-pty,command="echo 'Please login as the user'" ssh-ed25519 AAAA me` + "\n", 0o600}},
	{"authorized-keys", "/etc/ssh/authorized_keys.d/me", file{"ssh-ed25519 AAAA me\n", 0}},
	{"ssh-host-keys", "/etc/ssh/ssh_host_ed25519_key", file{"key", 0o600}},
	{"ssh-host-keys", "/etc/ssh/ssh_host_ed25519_key.pub", file{"key", 0}},
	{"machine-id", "/etc/machine-id", file{"0123456789abcdef0123456789abcdef\n", 0}},
	{"machine-id", "/var/lib/dbus/machine-id", file{"0123456789abcdef0123456789abcdef\n", 0}},
	{"random-seed", "/var/lib/systemd/random-seed", file{"seed", 0o600}},
	{"random-seed", "/var/lib/systemd/credential.secret", file{"secret", 0o400}},
	{"cloud-init-state", "/var/lib/cloud/instance", file{"instances/i-1", fs.ModeSymlink}},
	{"cloud-init-state", "/var/lib/cloud/instances/i-1", file{"", fs.ModeDir | 0o755}},
	{"cloud-init-state", "/var/lib/cloud/data/instance-id", file{"i-1\n", 0}},
	{"cloud-init-state", "/var/lib/cloud/seed/nocloud/user-data", file{"#cloud-config\n", 0}},
	{"network-state", "/var/lib/dhcp/dhclient.ens3.leases", file{"lease {}\n", 0}},
	{"network-state", "/etc/udev/rules.d/70-persistent-net.rules", file{"SUBSYSTEM==\"net\"\n", 0}},
	{"network-state", "/etc/netplan/50-cloud-init.yaml", file{"network: {}\n", 0o600}},
	{"network-state", "/etc/netplan/60-mine.yaml", file{"network:\n  ethernets:\n    a:\n      match: {macaddress: \"52:54:00:12:34:56\"}\n", 0o600}},
	{"network-state", "/etc/sysconfig/network-scripts/ifcfg-eth0", file{"DEVICE=eth0\nHWADDR=52:54:00:12:34:56\n", 0}},
	{"package-caches", "/var/lib/apt/lists/deb.debian.org_debian_dists_trixie_main_binary-amd64_Packages", file{"Package: a\n", 0}},
	{"package-caches", "/var/cache/apt/archives/partial/a_1_all.deb", file{"!<arch>\n", 0}},
	{"logs", "/var/log/journal/0123/system.journal", file{"LPKSHHRH", 0o640}},
	{"logs", "/var/log/wtmp", file{"boot", 0o664}},
	{"shell-history", "/root/.bash_history", file{"ls\n", 0o600}},
	{"shell-history", "/home/somebody/.lesshst", file{".less-history-file:\n", 0o600}},
	{"temporary-files", "/tmp/ansible-tmp", file{"", fs.ModeDir | 0o700}},
	{"temporary-files", "/var/tmp/.hidden", file{"", 0o600}},
	{"build-settings", "/etc/apt/apt.conf.d/00diskforge-build", file{"Acquire::http::Proxy \"http://proxy\";\n", 0}},
	{"build-settings", "/etc/environment", file{"# diskforge build begin\nhttp_proxy=http://proxy\n# diskforge build end\n", 0}},
	{"build-settings", "/root/.ansible", file{"", fs.ModeDir | 0o700}},
	{"credentials", "/root/.docker/config.json", file{`{"auths": {"registry.example": {"auth": "bWU6bWU="}}}`, 0o600}},
	{"credentials", "/home/somebody/.config/containers/auth.json", file{`{"auths": {"r": {"identitytoken": "x"}}}`, 0o600}},
	{"credentials", "/home/somebody/.netrc", file{"machine a login me password x\n", 0o600}},
	{"credentials", "/home/somebody/.git-credentials", file{"https://me:x@git.example\n", 0o600}},
	{"credentials", "/home/somebody/.aws/credentials", file{"[default]\naws_secret_access_key = x\n", 0o600}},
	{"credentials", "/home/somebody/.kube/config", file{"users:\n- name: a\n  user:\n    token: x\n", 0o600}},
	{"private-keys", "/etc/ssl/private/ssl-cert-snakeoil.key", file{privateKey, 0o640}},
	{"private-keys", "/opt/service.json", file{`{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7` + `"}`, 0}},
	{"private-keys", "/opt/encrypted.pem", file{"-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n", 0}},
	{"build-secrets", "/opt/plain.conf", file{"password=" + password + "\n", 0}},
	{"build-secrets", "/opt/base64.conf", file{"auth=" + base64.StdEncoding.EncodeToString([]byte("me:"+token+":")) + "\n", 0}},
	{"build-secrets", "/opt/" + token, file{"", 0}},
	{"world-writable", "/opt/anybody", file{"", 0o666}},
	{"world-writable", "/var/lib/anybody", file{"", fs.ModeDir | 0o777}},
	{"nopasswd", "/etc/sudoers.d/authenticate", file{"Defaults:me env_reset, ! authenticate\n", 0o440}},
	{"nopasswd", "/etc/sudoers.d/exempt", file{"Defaults exempt_group = sudo\n", 0o440}},
	{"nopasswd", "/etc/sudoers.d/90-cloud-init-users", file{"me ALL=(ALL) NOPASSWD:ALL\n", 0o440}},
}

// planted is the clean tree with all defects.
func planted() map[string]file {
	more := map[string]file{}
	for _, d := range defects {
		more[d.path] = d.file
	}
	return with(more)
}

// expected lists what must be found as "rule path".
func expected() []string {
	var all []string
	for _, d := range defects {
		all = append(all, d.rule+" "+strings.ReplaceAll(d.path, token, "***"))
	}
	return all
}

func found(r hygiene.Result) []string {
	var all []string
	for _, f := range r.Findings {
		all = append(all, f.Rule+" "+f.Path)
	}
	return all
}
