package hygiene

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Rule is one thing that must hold.
type Rule struct {
	Name    string // as allow-lists and reports call it
	Demands string // what it demands, in one line
}

// rule is a Rule with its means: the files that it reads, and what it finds
// in the tree. A finding's own Rule is filled in by the caller.
type rule struct {
	Rule
	reads []pattern
	check func(*tree) []Finding
}

// Rules are all rules in the order in which they are applied.
func Rules() []Rule {
	var all []Rule
	for _, r := range rules {
		all = append(all, r.Rule)
	}
	return all
}

var rules = []rule{
	{Rule{"build-user", "the build's account is gone with all its traces, or locked and without a password where it is to stay"}, append(accountFiles, sudoers...), buildUser},
	{Rule{"password-hash", "no account can log in with a password, or without one"}, accountFiles, passwordHash},
	{Rule{"authorized-keys", "no ssh key is accepted from anybody"}, authorizedKeyFiles, authorizedKeys},
	{Rule{"ssh-host-keys", "the ssh server has no host keys: each machine makes its own"}, nil,
		present("a host key, which every machine made of this disk would share", "/etc/ssh/ssh_host_*_key*", "/etc/dropbear/dropbear_*_host_key")},
	{Rule{"machine-id", "the machine-id is empty: each machine makes its own"}, machineIDFiles, machineID},
	{Rule{"random-seed", "no random seed and no credential secret is saved: each machine makes its own (an EFI system partition is not looked into for one)"}, nil,
		present("every machine made of this disk would share it", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/lib/urandom/random-seed", "/boot/loader/random-seed", "/boot/efi/loader/random-seed")},
	{Rule{"cloud-init-state", "cloud-init has no memory of an instance: the next boot is a first boot"}, nil,
		both(present("what cloud-init keeps of the machine that built this disk", "/var/lib/cloud/instance", "/var/lib/cloud/instances/*", "/var/lib/cloud/data/*", "/var/lib/cloud/sem/*"),
			content("a seed, which would configure every machine made of this disk", "/var/lib/cloud/seed/**"))},
	{Rule{"network-state", "no lease, network card or generated network setting of the build is left"}, networkFiles, networkState},
	{Rule{"package-caches", "no package lists and no downloaded packages are left"}, nil,
		content("a package cache, which is old where the disk is used", "/var/lib/apt/lists/**", "/var/cache/apt/archives/**/*.deb", "/var/cache/dnf/**", "/var/cache/yum/**")},
	{Rule{"logs", "the logs are empty"}, nil, content("a log of the build", "/var/log/**")},
	{Rule{"shell-history", "no history of commands is left"}, nil,
		content("what somebody typed", "/**/.bash_history", "/**/.zsh_history", "/**/.ash_history", "/**/.sh_history", "/**/.history", "/**/.python_history", "/**/.node_repl_history", "/**/.mysql_history", "/**/.psql_history", "/**/.sqlite_history", "/**/fish_history", "/**/.lesshst", "/**/.viminfo", "/**/.wget-hsts")},
	{Rule{"temporary-files", "/tmp and /var/tmp are empty"}, nil, temporaryFiles},
	{Rule{"build-settings", "nothing is left of what diskforge itself put into the guest: proxies, its certificate authority, Ansible's files"}, globs("/etc/environment"), buildSettings},
	{Rule{"credentials", "no credentials for registries, repositories, clouds or clusters are stored"}, credentialFiles(), storedCredentials},
	{Rule{"private-keys", "no file holds a private key, those that packages ship to everybody excepted, and no partition that is searched as blocks (vfat, swap)"}, packageLists, privateKeys},
	{Rule{"build-secrets", "no secret of this build is on the disk, plain or in base64, in a file or in a freed block"}, nil, buildSecrets},
	{Rule{"world-writable", "not everybody may write a file, or a directory without the sticky bit"}, nil, worldWritable},
	{Rule{"nopasswd", "sudo asks everybody for a password"}, sudoers, nopasswd},
	{Rule{"unmounted", "/etc/fstab mounts every file system with files: elsewhere no rule about a path knows them"}, globs("/etc/fstab"), unmounted},
}

// present finds entries that must not be there.
func present(detail string, texts ...string) func(*tree) []Finding {
	list := globs(texts...)
	return func(t *tree) []Finding {
		var found []Finding
		for _, e := range t.matching(list...) {
			found = append(found, Finding{Path: e.path, Detail: detail})
		}
		return found
	}
}

// content finds files that must be empty.
func content(detail string, texts ...string) func(*tree) []Finding {
	list := globs(texts...)
	return func(t *tree) []Finding {
		var found []Finding
		for _, e := range t.matching(list...) {
			if e.regular() && e.size > 0 {
				found = append(found, Finding{Path: e.path, Detail: fmt.Sprintf("%s (%d bytes)", detail, e.size)})
			}
		}
		return found
	}
}

// both is what either check finds.
func both(one, other func(*tree) []Finding) func(*tree) []Finding {
	return func(t *tree) []Finding { return append(one(t), other(t)...) }
}

// The files that name accounts, with the copies that the tools make.
var (
	accountFiles = globs("/etc/passwd", "/etc/passwd-", "/etc/shadow", "/etc/shadow-", "/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-",
		"/etc/subuid", "/etc/subuid-", "/etc/subgid", "/etc/subgid-")
	sudoers = globs("/etc/sudoers", "/etc/sudoers.d/**")
)

func buildUser(t *tree) []Finding {
	switch {
	case t.BuildUser == "":
		return nil
	case t.BakedUser:
		return bakedUser(t)
	}
	var found []Finding
	for _, e := range t.matching(accountFiles...) {
		if namesAccount(t.lines(e.path), t.BuildUser) {
			found = append(found, Finding{Path: e.path, Detail: "names the build user " + t.BuildUser})
		}
	}
	word := regexp.MustCompile(`(?:^|[\s,:=%])` + regexp.QuoteMeta(t.BuildUser) + `(?:$|[\s,:=])`)
	for _, e := range t.matching(sudoers...) {
		if slices.ContainsFunc(t.lines(e.path), word.MatchString) {
			found = append(found, Finding{Path: e.path, Detail: "gives rights to the build user " + t.BuildUser})
		}
	}
	for _, dir := range []string{"/home", "/var/mail", "/var/spool/mail", "/var/spool/cron", "/var/spool/cron/crontabs", "/var/lib/systemd/linger"} {
		if e, ok := t.entries[path.Join(dir, t.BuildUser)]; ok {
			found = append(found, Finding{Path: e.path, Detail: "belonged to the build user " + t.BuildUser})
		}
	}
	return found
}

// namesAccount says whether one of the lines' fields is the account: a record
// of its own, or a member of a group.
func namesAccount(lines []string, account string) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		fields := strings.Split(line, ":")
		return fields[0] == account || slices.Contains(strings.Split(fields[len(fields)-1], ","), account)
	})
}

func bakedUser(t *tree) []Finding {
	var found []Finding
	for _, file := range []string{"/etc/shadow", "/etc/shadow-"} {
		for _, line := range t.lines(file) {
			fields := strings.Split(line, ":")
			// Whoever unlocks the account would bring the build's password back.
			if fields[0] == t.BuildUser && len(fields) > 1 && strings.Contains(fields[1], "$") {
				found = append(found, Finding{Path: file, Detail: "the build user " + t.BuildUser + " still has its password, which must be removed, not only locked"})
			}
		}
	}
	return found
}

func passwordHash(t *tree) []Finding {
	var found []Finding
	for _, file := range []string{"/etc/passwd", "/etc/passwd-", "/etc/shadow", "/etc/shadow-"} {
		for _, line := range t.lines(file) {
			fields := strings.Split(line, ":")
			if len(fields) < 2 || fields[1] == "x" || strings.HasPrefix(fields[1], "!") || strings.HasPrefix(fields[1], "*") {
				continue
			}
			detail := "the account " + fields[0] + " has a password"
			if fields[1] == "" {
				detail = "the account " + fields[0] + " needs no password"
			}
			found = append(found, Finding{Path: file, Detail: detail})
		}
	}
	return found
}

var authorizedKeyFiles = globs("/**/authorized_keys", "/**/authorized_keys2", "/etc/ssh/authorized_keys*", "/etc/ssh/authorized_keys*/**", "/etc/dropbear/authorized_keys")

func authorizedKeys(t *tree) []Finding {
	var found []Finding
	for _, e := range t.matching(authorizedKeyFiles...) {
		if n := len(t.lines(e.path)); n > 0 {
			// A key that may only be told to log in as another user is a key all the same.
			found = append(found, Finding{Path: e.path, Detail: fmt.Sprintf("accepts %d ssh keys", n)})
		}
	}
	return found
}

var machineIDFiles = globs("/etc/machine-id", "/var/lib/dbus/machine-id")

func machineID(t *tree) []Finding {
	var found []Finding
	for _, e := range t.matching(machineIDFiles...) {
		// systemd's machine-id(5): "uninitialized" means that none was made yet.
		if lines := t.lines(e.path); e.regular() && len(lines) > 0 && lines[0] != "uninitialized" {
			found = append(found, Finding{Path: e.path, Detail: "has an id, which every machine made of this disk would share: it has to be empty"})
		}
	}
	return found
}

var (
	networkLeftovers = both(
		content("a lease of the build's network", "/var/lib/dhcp/*", "/var/lib/dhclient/*", "/var/lib/dhcpcd/*.lease*", "/var/lib/NetworkManager/*.lease", "/var/lib/systemd/network/**"),
		present("written for the machine that built this disk", "/var/lib/NetworkManager/secret_key",
			"/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/75-persistent-net-generator.rules",
			"/etc/netplan/50-cloud-init.yaml", "/etc/network/interfaces.d/50-cloud-init*", "/etc/systemd/network/10-cloud-init-*", "/etc/NetworkManager/system-connections/cloud-init-*"))
	networkFiles = globs("/etc/netplan/*", "/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/systemd/network/*", "/etc/sysconfig/network-scripts/ifcfg-*", "/etc/NetworkManager/system-connections/*")
	macAddress   = regexp.MustCompile(`(?i)(?:macaddress|hwaddr|mac-address|hwaddress|MACAddress)["']?\s*[:= ]\s*(?:ether\s+)?["']?(?:[0-9a-f]{2}:){5}[0-9a-f]{2}`)
)

func networkState(t *tree) []Finding {
	found := networkLeftovers(t)
	named := map[string]bool{}
	for _, f := range found {
		named[f.Path] = true
	}
	for _, e := range t.matching(networkFiles...) {
		if !named[e.path] && slices.ContainsFunc(t.lines(e.path), macAddress.MatchString) {
			found = append(found, Finding{Path: e.path, Detail: "names a network card by its MAC address"})
		}
	}
	return found
}

func temporaryFiles(t *tree) []Finding {
	var found []Finding
	for _, e := range t.matching(globs("/tmp/*", "/var/tmp/*")...) {
		found = append(found, Finding{Path: e.path, Detail: "a temporary file of the build"})
	}
	return found
}

var settingFiles = present("part of diskforge's build, not of the image", "/etc/apt/apt.conf.d/00diskforge-build", "/usr/local/share/ca-certificates/diskforge-build.crt", "/**/.ansible")

func buildSettings(t *tree) []Finding {
	found := settingFiles(t)
	if strings.Contains(string(t.kept["/etc/environment"]), "# diskforge build begin") {
		found = append(found, Finding{Path: "/etc/environment", Detail: "holds the build's proxies"})
	}
	return found
}

// credential is a kind of file that can hold one.
type credential struct {
	globs []pattern
	holds *regexp.Regexp // what tells that it does
	what  string
}

var anything = regexp.MustCompile(`\S`)

var credentials = []credential{
	{globs("/**/.docker/config.json", "/**/.dockercfg", "/**/containers/auth.json", "/var/lib/kubelet/config.json", "/**/helm/registry/config.json"),
		regexp.MustCompile(`"(?:auth|password|identitytoken|registrytoken)"\s*:\s*"[^"]`), "a registry's credentials"},
	{globs("/**/.netrc", "/etc/apt/auth.conf", "/etc/apt/auth.conf.d/*"), regexp.MustCompile(`\bpassword\s+\S`), "passwords of servers"},
	{globs("/**/.git-credentials", "/**/git/credentials"), regexp.MustCompile(`://\S+@`), "git's credentials"},
	{globs("/**/.aws/credentials"), regexp.MustCompile(`(?i)(?:secret_access_key|session_token)\s*=\s*\S`), "a cloud's credentials"},
	{globs("/**/gcloud/credentials.db", "/**/gcloud/application_default_credentials.json", "/**/.azure/msal_token_cache*", "/**/.azure/accessTokens.json"), anything, "a cloud's credentials"},
	{globs("/**/.kube/config", "/etc/kubernetes/*.conf", "/etc/rancher/*/*.yaml"), regexp.MustCompile(`(?m)^[\s-]*(?:token|client-key-data|password)\s*:\s*\S`), "a cluster's credentials"},
	{globs("/**/.npmrc"), regexp.MustCompile(`(?:_authToken|_password|_auth)\s*=\s*\S`), "a package registry's credentials"},
	{globs("/**/.pypirc"), regexp.MustCompile(`(?m)^\s*password\s*[:=]\s*\S`), "a package registry's credentials"},
	{globs("/**/.pgpass", "/**/.vault-token", "/**/.gnupg/private-keys-v1.d/*"), anything, "a credential"},
}

func credentialFiles() []pattern {
	var all []pattern
	for _, c := range credentials {
		all = append(all, c.globs...)
	}
	return all
}

func storedCredentials(t *tree) []Finding {
	var found []Finding
	for _, c := range credentials {
		for _, e := range t.matching(c.globs...) {
			if c.holds.Match(t.kept[e.path]) {
				found = append(found, Finding{Path: e.path, Detail: "holds " + c.what})
			}
		}
	}
	return found
}

// packageLists name the files that Debian's packages ship. Those are known to
// everybody, and a key among them is a sample or a test: no leftover of a build.
var packageLists = globs("/var/lib/dpkg/info/*.md5sums")

// samples are the keys that other distributions ship likewise, whose databases
// of packages we do not read: in documentation, in the help of cloud-init's
// modules, in GnuTLS' test of itself.
var samples = globs("/usr/share/doc/**", "/usr/lib/python3*/site-packages/cloudinit/config/**", "/usr/lib64/libgnutls.so*")

func privateKeys(t *tree) []Finding {
	var keys []string
	for file, hits := range t.hits {
		if hits.key && !matchAny(samples, file) {
			keys = append(keys, file)
		}
	}
	var found []Finding
	shipped := t.shipped(keys)
	for _, file := range keys {
		if !shipped[file] {
			found = append(found, Finding{Path: file, Detail: "holds a private key"})
		}
	}
	return found
}

var compiled = regexp.MustCompile(`/__pycache__/([^/]+)\.cpython-[^/]*\.pyc$`)

// shipped are those of the files that come from Debian packages, or are what
// Python made of one that does.
func (t *tree) shipped(files []string) map[string]bool {
	asked := map[string][]string{} // by the name that a package's list has
	for _, file := range files {
		name := strings.TrimPrefix(compiled.ReplaceAllString(file, "/$1.py"), "/")
		asked[name] = append(asked[name], file)
		// Packages from before the merge of /lib into /usr say "lib/…".
		if old, ok := strings.CutPrefix(name, "usr/"); ok {
			asked[old] = append(asked[old], file)
		}
	}
	shipped := map[string]bool{}
	for _, e := range t.matching(packageLists...) {
		for line := range strings.Lines(string(t.kept[e.path])) {
			_, name, _ := strings.Cut(line, "  ")
			if name, ok := strings.CutSuffix(name, "\n"); ok {
				for _, file := range asked[name] {
					shipped[file] = true
				}
			}
		}
	}
	return shipped
}

func buildSecrets(t *tree) []Finding {
	var found []Finding
	for _, e := range t.entries {
		for _, name := range t.search.inText(e.path) {
			found = append(found, Finding{Path: e.path, Detail: "is named after the build's secret " + name})
		}
	}
	placed := map[string]bool{}
	for file, hits := range t.hits {
		for _, name := range hits.secrets {
			placed[name] = true
			found = append(found, Finding{Path: file, Detail: "holds the build's secret " + name})
		}
	}
	for _, name := range t.inBlocks {
		if !placed[name] {
			found = append(found, Finding{Path: "blocks outside of files", Detail: "hold the build's secret " + name})
		}
	}
	return found
}

// volatile is what the guest fills anew at every boot, and /tmp, which is
// everybody's.
var volatile = []string{"/proc", "/sys", "/dev", "/run", "/tmp"}

func worldWritable(t *tree) []Finding {
	var found []Finding
	for _, e := range t.entries {
		open := e.regular() && e.mode&0o002 != 0 || e.dir() && e.mode&0o1002 == 0o002
		if open && !slices.ContainsFunc(volatile, func(dir string) bool { return below(e.path, dir) }) {
			found = append(found, Finding{Path: e.path, Detail: fmt.Sprintf("everybody may write it (mode %04o)", e.mode&0o7777)})
		}
	}
	return found
}

// noPassword matches the three ways of sudoers(5) to ask for no password.
var noPassword = regexp.MustCompile(`NOPASSWD|!\s*authenticate\b|\bexempt_group\s*=`)

func nopasswd(t *tree) []Finding {
	var found []Finding
	for _, e := range t.matching(sudoers...) {
		if slices.ContainsFunc(t.lines(e.path), noPassword.MatchString) {
			found = append(found, Finding{Path: e.path, Detail: "lets somebody become root without a password (NOPASSWD, !authenticate or exempt_group)"})
		}
	}
	return found
}

// unmounted finds file systems that a systemd unit or an automatism mounts
// somewhere, or nobody at all.
func unmounted(t *tree) []Finding {
	var found []Finding
	for _, v := range t.unmounted {
		found = append(found, Finding{Path: v.String(), Detail: "no line of /etc/fstab mounts this " + v.kind + " file system, whose files the rules about paths do not reach"})
	}
	return found
}
