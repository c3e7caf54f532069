package hygiene

import (
	_ "embed"
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

// rule is a Rule with its means: what rules.yaml or a site says, and the code
// of that name.
type rule struct {
	Rule
	looks []look
	code
}

// code is what data cannot say: the files that it reads, and what it finds in
// the tree. It leaves the findings' Rule to its caller.
type code struct {
	reads []pattern
	check func(*tree) []Finding
}

// look finds entries by their paths.
type look struct {
	what    string // the finding's detail
	paths   []pattern
	content bool           // only files that are not empty
	holds   *regexp.Regexp // only files whose content matches, or nil
	repair  string         // repairDelete, repairEmpty or nothing, see Generalise
}

// codes are by the rules' names.
var codes = map[string]code{
	"build-user":     {slices.Concat(accountFiles, sudoers), buildUser},
	"password-hash":  {passwords, passwordHash},
	"private-keys":   {packageLists, privateKeys},
	"build-secrets":  {nil, buildSecrets},
	"world-writable": {nil, worldWritable},
	"nopasswd":       {append(globs(cloudConfig), sudoers...), nopasswd},
	"unmounted":      {globs("/etc/fstab"), unmounted},
}

//go:embed rules.yaml
var builtIn []byte

// rules are those of every image.
var rules = func() []rule {
	policy, err := parsePolicy(builtIn, nil)
	if err != nil {
		panic(err) // embedded at compile time
	}
	return policy.rules
}()

func named(rules []rule) []Rule {
	var all []Rule
	for _, r := range rules {
		all = append(all, r.Rule)
	}
	return all
}

// reading says whether the rule wants to see a file's content.
func (r rule) reading(file string) bool {
	return matchAny(r.reads, file) || slices.ContainsFunc(r.looks, func(l look) bool { return l.holds != nil && matchAny(l.paths, file) })
}

// apply is what the rule finds; of a path, what the first look finds.
func (r rule) apply(t *tree) []Finding {
	var found []Finding
	known := map[string]bool{}
	for _, l := range r.looks {
		for _, e := range t.matching(l.paths...) {
			if detail, wrong := l.judge(e, t.kept[e.path]); wrong && !known[e.path] {
				known[e.path] = true
				found = append(found, Finding{Path: e.path, Detail: detail, repair: l.repair})
			}
		}
	}
	if r.check != nil {
		found = append(found, r.check(t)...)
	}
	return found
}

func (l look) judge(e entry, content []byte) (detail string, wrong bool) {
	switch {
	case l.holds != nil:
		return l.what, e.regular() && l.holds.Match(content)
	case l.content:
		return fmt.Sprintf("%s (%d bytes)", l.what, e.size), e.regular() && e.size > 0
	}
	return l.what, true
}

// The files that name accounts, with the copies that the tools make.
var (
	shadow       = globs("/etc/shadow", "/etc/shadow-")
	passwords    = append(globs("/etc/passwd", "/etc/passwd-"), shadow...)
	accountFiles = append(globs("/etc/group", "/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/subuid", "/etc/subuid-",
		"/etc/subgid", "/etc/subgid-"), passwords...)
	sudoers = globs("/etc/sudoers", "/etc/sudoers.d/**")
)

func buildUser(t *tree) []Finding {
	user := t.BuildUser
	switch {
	case user == "":
		return nil
	case t.BakedUser:
		return t.judge(shadow, func(line string) (string, bool) {
			// Whoever unlocks the account would bring the build's password back.
			fields := strings.Split(line, ":")
			return "the build user " + user + " still has its password, which must be removed, not only locked",
				fields[0] == user && len(fields) > 1 && strings.Contains(fields[1], "$")
		})
	}
	found := t.judge(accountFiles, func(line string) (string, bool) {
		// A record of its own, or a member of a group.
		fields := strings.Split(line, ":")
		return "names the build user " + user, fields[0] == user || slices.Contains(strings.Split(fields[len(fields)-1], ","), user)
	})
	word := regexp.MustCompile(`(?:^|[\s,:=%])` + regexp.QuoteMeta(user) + `(?:$|[\s,:=])`)
	found = append(found, t.judge(sudoers, func(line string) (string, bool) {
		return "gives rights to the build user " + user, word.MatchString(line)
	})...)
	for _, dir := range []string{"/home", "/var/mail", "/var/spool/mail", "/var/spool/cron", "/var/spool/cron/crontabs", "/var/lib/systemd/linger"} {
		if e, ok := t.entries[path.Join(dir, user)]; ok {
			found = append(found, Finding{Path: e.path, Detail: "belonged to the build user " + user})
		}
	}
	return found
}

func passwordHash(t *tree) []Finding {
	return t.judge(passwords, func(line string) (string, bool) {
		fields := strings.Split(line, ":")
		if len(fields) < 2 || fields[1] == "x" || strings.HasPrefix(fields[1], "!") || strings.HasPrefix(fields[1], "*") {
			return "", false
		}
		if fields[1] == "" {
			return "the account " + fields[0] + " needs no password", true
		}
		return "the account " + fields[0] + " has a password", true
	})
}

// packageLists name the files that Debian's packages ship. Those are known to
// everybody, and a key among them is a sample or a test: no leftover of a build.
var packageLists = globs("/var/lib/dpkg/info/*.md5sums")

// samples are the keys that other distributions ship likewise, whose databases
// of packages we do not read: in documentation, in the help of cloud-init's
// modules, in GnuTLS' test of itself.
var samples = globs("/usr/share/doc/**", "/usr/lib/python3*/site-packages/cloudinit/config/**", "/usr/lib64/libgnutls.so*",
	// Stores of certificates in a form that may hold keys, too.
	"/etc/ssl/certs/java/cacerts", "/etc/pki/**/cacerts", "/usr/lib/jvm/**/cacerts")

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
		hits, _ := t.search.in(strings.NewReader(e.path)) // which cannot fail
		for _, name := range hits.secrets {
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

var (
	// noPassword matches the three ways of sudoers(5) to ask for no password.
	noPassword = regexp.MustCompile(`NOPASSWD|!\s*authenticate\b|\bexempt_group\s*=`)
	// ownUser is the login user that a cloud image's cloud-init makes by itself.
	ownUser = regexp.MustCompile(`(?m)^[ \t]+default_user:[ \t]*\n(?:[ \t]+\S.*\n)*?[ \t]+name:[ \t]*["']?([a-z_][a-z0-9_-]*)`)
)

const cloudConfig = "/etc/cloud/cloud.cfg"

// nopasswd tells what the cloud image brings for its login user, and what its
// cloud-init writes at each first boot, from what a build left.
func nopasswd(t *tree) []Finding {
	own := ""
	if m := ownUser.FindSubmatch(t.kept[cloudConfig]); m != nil {
		own = string(m[1])
	}
	return t.judge(sudoers, func(line string) (string, bool) {
		words := strings.Fields(line)
		detail := "lets somebody become root without a password: "
		if own != "" && words[0] == own {
			detail = "the cloud image's own rule for its login user, who becomes root without a password: "
		}
		return detail + strings.Join(words, " "), noPassword.MatchString(line)
	})
}

// unmounted finds file systems that a systemd unit or an automatism mounts
// somewhere, or nobody at all.
func unmounted(t *tree) []Finding {
	var found []Finding
	for _, v := range t.volumes {
		if v.unmounted {
			detail := "no line of /etc/fstab mounts this " + v.kind + " file system, whose files the rules about paths do not reach"
			found = append(found, Finding{Path: v.String(), Detail: detail})
		}
	}
	return found
}
