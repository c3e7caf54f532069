package hygiene_test

import (
	"encoding/base64"
	"encoding/pem"
	"io/fs"
	"os/exec"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
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
	{"credentials", "/root/.config/gh/hosts.yml", file{"github.com:\n    oauth_token: gho_0000000000000000000000000000000000aa\n", 0o600}},
	{"credentials", "/opt/app/.env", file{"AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI0000000000000000000EXAMPLEKEY\n", 0}},
	{"credentials", "/etc/NetworkManager/system-connections/campus.nmconnection", file{"[wifi-security]\npsk=campus-wifi-secret\n", 0o600}},
	{"credentials", "/etc/netplan/70-wifi.yaml", file{"network:\n  wifis:\n    w:\n      access-points: {campus: {password: \"campus-wifi-secret\"}}\n", 0o600}},
	{"machine-identity", "/etc/iscsi/initiatorname.iscsi", file{"InitiatorName=iqn.1993-08.org.debian:01:5b5f2d1c9e7\n", 0o600}},
	{"machine-identity", "/etc/nvme/hostid", file{"0e6a5a3e-1111-2222-3333-444455556666\n", 0}},
	{"machine-identity", "/var/lib/docker/engine-id", file{"0e6a5a3e-1111-2222-3333-444455556666", 0o600}},
	{"machine-identity", "/etc/wireguard/wg0.conf", file{"[Interface]\nPrivateKey = QPVQ5Y0m0000000000000000000000000000000000A=\nAddress = 10.0.0.2/24\n", 0o600}},
	{"machine-identity", "/etc/wireguard/private", file{"QPVQ5Y0m0000000000000000000000000000000000A=\n", 0o600}},
	{"machine-identity", "/var/lib/tailscale/tailscaled.state", file{`{"_machinekey":"cHJpdmtleTowMTIz"}`, 0o600}},
	{"machine-identity", "/var/lib/zerotier-one/identity.secret", file{"a1b2c3d4e5:0:pub:secretsecretsecret", 0o600}},
	{"machine-identity", "/etc/salt/minion_id", file{"minion7\n", 0}},
	{"machine-identity", "/var/lib/rancher/k3s/server/token", file{"K10abcdef::server:0123456789abcdef", 0o600}},
	// Docker's is a JSON Web Key, so two rules find it.
	{"machine-identity", "/etc/docker/key.json", file{jwk, 0o600}},
	{"private-keys", "/etc/docker/key.json", file{jwk, 0o600}},
	{"private-keys", "/home/ops/.ssh/id.ppk", file{"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nPrivate-Lines: 1\nAAAAIEx\nPrivate-MAC: 00\n", 0o600}},
	{"private-keys", "/opt/pkcs1.der", file{der("genrsa", "-traditional", "1024"), 0o600}},
	{"private-keys", "/opt/pkcs8.der", file{der("genpkey", "-algorithm", "ed25519"), 0o600}},
	{"private-keys", "/opt/sec1.der", file{der("ecparam", "-name", "prime256v1", "-genkey", "-noout"), 0o600}},
	{"private-keys", "/opt/encrypted.p8", file{der("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:word"), 0o600}},
	{"private-keys", "/opt/server.p12", file{pkcs12(), 0o600}},
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

const jwk = `{"crv":"P-256","d":"bm90LWEtcmVhbC1rZXktYnV0LWxvbmctZW5vdWdoLTEyMzQ","kid":"ABCD:EFGH","kty":"EC","x":"eA","y":"eQ"}`

// der is a key that openssl makes, without its PEM armour.
func der(args ...string) string {
	armoured, err := exec.Command("openssl", args...).Output()
	if err != nil {
		panic(err)
	}
	block, _ := pem.Decode(armoured)
	return string(block.Bytes)
}

// pkcs12 is a store that openssl makes of a key and its certificate.
func pkcs12() string {
	store, err := exec.Command("sh", "-c", `d=$(mktemp -d) && cd "$d" &&
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k -out c -subj /CN=x -days 1 2>/dev/null &&
openssl pkcs12 -export -inkey k -in c -passout pass: && rm -r "$d"`).Output()
	if err != nil {
		panic(err)
	}
	return string(store)
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
