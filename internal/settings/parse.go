package settings

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	minMemoryMiB = 256        // less does not boot a cloud image
	maxMemoryMiB = 1 << 20    // 1 TiB: beyond it is a slip of the keyboard
	minDiskSize  = 1 * gib    // a cloud image's least
	maxDiskSize  = 2048 * gib // KubeVirt's templates stay far below
)

// Config is what Settings mean: typed, complete and checked.
type Config struct {
	ISOURL           string
	ISOChecksum      base.Checksum
	BaseImage        BaseImage     // in place of ISOURL and ISOChecksum
	BaseTimeout      time.Duration // 0: BaseImage is not waited for
	BaseFromPackages bool
	Suite            string // empty: the newest that this host's Ansible can manage

	Playbook                       string
	AnsibleDir                     string
	GitURL, GitBranch, GitPath     string // GitURL is empty where the tree is not from git
	Desktop                        bool
	ExtraVars                      map[string]any
	Vault                          playbook.Vault
	MemoryMiB                      int
	CPUs                           int   // 0: as many as suit the accelerator
	DiskSize                       int64 // bytes
	Accelerator                    string
	Architecture                   string
	BootTimeout                    time.Duration // 0: by accelerator
	BuildUser, VMUser              string
	BakeUser                       bool
	HygieneAllow                   string // empty: what the playbook tree has
	Sparsify, Compression          string
	Reference                      string // registry/prefix/name:tag, empty where nothing is pushed
	Push                           bool   // upload what a build packs for Reference
	ImageName, ImageTag            string
	InstanceType, Preference       string // hints; none, or empty for those that suit the disk
	ImageInputs                    string // empty, or what the input digest must be
	RegistryUser                   string
	RegistryPass                   Secret
	RegistryPassFile               string
	RegistryInsecure               bool
	OutputDir, CacheDir            string // absolute
	AptMirror, CAFile              string
	HTTPProxy, HTTPSProxy, NoProxy string
	PackerLog                      bool
}

// Need is something that a command cannot do without.
type Need int

// What commands need beyond settings that are well-formed.
const (
	NeedBase      Need = iota // ISO_URL with ISO_CHECKSUM, or BASE_FROM_PACKAGES
	NeedPlaybook              // ANSIBLE_PLAYBOOK
	NeedReference             // where TARGET_REGISTRY is set, the rest of the address
)

// Parse checks every setting and returns what they mean, or all mistakes at once.
func Parse(s Settings, needs ...Need) (Config, error) {
	p := &parser{}
	c := Config{
		ISOURL:           s.ISOURL,
		BaseTimeout:      p.duration("BASE_TIMEOUT", s.BaseTimeout),
		BaseFromPackages: p.bool("BASE_FROM_PACKAGES", s.BaseFromPackages),
		Suite:            p.oneOf("SUITE", s.Suite, "", "bookworm", "trixie"),
		Playbook:         s.Playbook,
		AnsibleDir:       p.dir("ANSIBLE_DIR", s.AnsibleDir),
		GitPath:          s.GitAnsiblePath,
		Desktop:          p.bool("INSTALL_DESKTOP_ENVIRONMENT", s.InstallDesktop),
		ExtraVars:        p.mapping("EXTRA_VARS", s.ExtraVars),
		Vault:            playbook.Vault{PasswordFile: p.file("ANSIBLE_VAULT_PASSWORD_FILE", s.VaultPasswordFile), Identities: p.identities("ANSIBLE_VAULT_IDENTITY_LIST", s.VaultIdentities)},
		MemoryMiB:        p.memory("MEMORY", s.Memory),
		CPUs:             p.cpus("CPUS", s.CPUs),
		DiskSize:         p.size("DISK_SIZE", s.DiskSize, minDiskSize, maxDiskSize),
		Accelerator:      p.oneOf("ACCELERATOR", s.Accelerator, "auto", "kvm", "tcg"),
		Architecture:     p.architecture("ARCHITECTURE", s.Architecture),
		BootTimeout:      p.duration("BOOT_TIMEOUT", s.BootTimeout),
		BuildUser:        p.user("BUILD_USER", s.BuildUser),
		VMUser:           p.user("VM_USER", s.VMUser),
		BakeUser:         p.bool("BAKE_USER", s.BakeUser),
		HygieneAllow:     p.file("HYGIENE_ALLOW", s.HygieneAllow),
		Sparsify:         p.oneOf("SPARSIFY", s.Sparsify, "auto", "trim", "virt-sparsify", "none"),
		Compression:      p.oneOf("QCOW2_COMPRESSION", s.QCOW2Compression, "zstd", "zlib", "none"),
		ImageName:        s.ImageName,
		ImageTag:         s.ImageTag,
		InstanceType:     p.label("INSTANCE_TYPE", s.InstanceType),
		Preference:       p.label("PREFERENCE", s.Preference),
		ImageInputs:      p.digest("IMAGE_INPUTS", s.ImageInputs),
		RegistryUser:     s.RegistryUser,
		RegistryPass:     s.RegistryPass,
		RegistryPassFile: p.existing("REGISTRY_PASS_FILE", s.RegistryPassFile, false, true),
		Push:             p.bool("PUSH", s.Push),
		RegistryInsecure: p.bool("REGISTRY_INSECURE", s.RegistryInsecure),
		OutputDir:        p.abs("OUTPUT_DIR", s.OutputDir),
		CacheDir:         p.cacheDir(s.CacheDir),
		AptMirror:        p.httpURL("APT_MIRROR", s.AptMirror),
		CAFile:           p.certificates("CA_FILE", s.CAFile),
		HTTPProxy:        p.httpURL("HTTP_PROXY", s.HTTPProxy),
		HTTPSProxy:       p.httpURL("HTTPS_PROXY", s.HTTPSProxy),
		NoProxy:          s.NoProxy,
		PackerLog:        p.bool("PACKER_LOG", s.PackerLog),
	}
	if c.AnsibleDir != "" && c.AnsibleDir == c.OutputDir {
		p.add("OUTPUT_DIR", "is also ANSIBLE_DIR: give results a folder of their own, e.g. out")
	}
	p.git(&c, s)
	p.base(&c, s, slices.Contains(needs, NeedBase))
	p.users(c)
	p.credentials(c)
	if slices.Contains(needs, NeedPlaybook) && c.Playbook == "" {
		p.add("ANSIBLE_PLAYBOOK", "is not set: name the playbook that provisions the image, e.g. debian-base")
	}
	if slices.Contains(needs, NeedReference) {
		building := slices.Contains(needs, NeedBase)
		p.reference(&c, s, building && !c.Push)
	}
	return c, p.err()
}

// parser collects every mistake instead of stopping at the first.
type parser struct{ mistakes Mistakes }

// Mistakes are all that is wrong with the settings, one line each.
type Mistakes []string

// For leaves out mistakes in settings that the command does not read.
func (m Mistakes) For(command string) error {
	left := slices.DeleteFunc(slices.Clone(m), func(mistake string) bool {
		name, _, _ := strings.Cut(mistake, ":")
		return slices.ContainsFunc(fields(), func(f Field) bool { return f.Env == name && !f.In(command) })
	})
	if len(left) == 0 {
		return nil
	}
	return left
}

// Error joins the lines.
func (m Mistakes) Error() string { return strings.Join(m, "\n") }

func (p *parser) add(name, format string, args ...any) {
	p.mistakes = append(p.mistakes, name+": "+fmt.Sprintf(format, args...))
}

func (p *parser) err() error {
	if len(p.mistakes) == 0 {
		return nil
	}
	return p.mistakes
}

func (p *parser) bool(name, v string) bool {
	b, err := strconv.ParseBool(v)
	if err != nil {
		p.add(name, "%q is neither true nor false: give true or false", v)
	}
	return b
}

func (p *parser) oneOf(name, v string, allowed ...string) string {
	if !slices.Contains(allowed, v) {
		p.add(name, "%q is not known: give %s", v, strings.Join(slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" }), ", "))
	}
	return v
}

var sizeForm = regexp.MustCompile(`(?i)^([0-9]{1,12})(Ki?|Mi?|Gi?|Ti?|)B?$`)

// ParseSize reads a size in bytes: 10G, 10g and 10Gi are GiB, 10240M is MiB, a
// bare number is in units of bare bytes. Letters mean powers of 1024, as
// qemu-img's do.
func ParseSize(v string, bare int64) (int64, error) {
	m := sizeForm.FindStringSubmatch(v)
	if m == nil {
		return 0, fmt.Errorf("%q is no size: give e.g. 10G, 10Gi or 10240M", v)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size: %w", v, err)
	}
	unit := bare
	if m[2] != "" {
		unit = 1 << (10 * (1 + strings.IndexByte("KMGT", strings.ToUpper(m[2])[0])))
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is larger than any disk", v)
	}
	return n * unit, nil
}

func (p *parser) size(name, v string, least, most int64) int64 {
	n, err := ParseSize(v, mib) // as Packer reads its disk_size
	if bytes, _ := strconv.ParseInt(v, 10, 64); bytes >= least {
		n = bytes // no disk has so many MiB
	}
	switch {
	case err != nil:
		p.add(name, "%v", err)
	case n < least || n > most:
		p.add(name, "%s is out of range: give %dG to %dG", v, least/gib, most/gib)
	case n%512 != 0:
		p.add(name, "%s is no multiple of 512 bytes: give e.g. 10G", v)
	}
	return n
}

func (p *parser) memory(name, v string) int {
	n, err := ParseSize(v, mib)
	switch {
	case err != nil:
		p.add(name, "%q is no amount of memory: give a number of MiB, e.g. 2048", v)
	case n < minMemoryMiB*mib || n > maxMemoryMiB*mib:
		p.add(name, "%s is out of range: give %d to %d MiB", v, minMemoryMiB, maxMemoryMiB)
	}
	return int(n / mib)
}

func (p *parser) cpus(name, v string) int {
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 64 {
		p.add(name, "%q is no number of processors: give 1 to 64", v)
	}
	return n
}

func (p *parser) duration(name, v string) time.Duration {
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		p.add(name, "%q is no duration: give e.g. 90s or 15m", v)
	}
	return d
}

var ageForm = regexp.MustCompile(`^([0-9]{1,6})(m|h|d|w)$`)

// ParseAge reads how long ago something may have happened: 30d, 12h, 2w. A day
// has 24 hours. There is no m: what was meant as months would be minutes, and
// images that are to stay would go.
func ParseAge(v string) (time.Duration, error) {
	m := ageForm.FindStringSubmatch(v)
	switch {
	case m == nil:
		return 0, fmt.Errorf("%q is no age: give e.g. 7d, 12h or 2w", v)
	case m[2] == "m":
		return 0, fmt.Errorf("%q could be minutes or months: give 12h, 7d or 26w", v)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0, fmt.Errorf("%q is no age: %w", v, err)
	}
	const day = 24 * time.Hour
	unit := map[string]time.Duration{"h": time.Hour, "d": day, "w": 7 * day}[m[2]]
	if n > int(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is older than any image", v)
	}
	return time.Duration(n) * unit, nil
}

func (p *parser) architecture(name, v string) string {
	switch v {
	case "amd64", "x86_64":
		return "amd64"
	}
	p.add(name, "%q cannot be built: give amd64", v)
	return v
}

// userForm is useradd's own rule (NAME_REGEX of shadow), with its 32 characters.
var userForm = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func (p *parser) user(name, v string) string {
	if !userForm.MatchString(v) || v == "root" {
		p.add(name, "%q cannot be a login name: give lower-case letters, digits, - and _, at most 32", v)
	}
	return v
}

func (p *parser) users(c Config) {
	if c.BuildUser == c.VMUser {
		p.add("BUILD_USER", "%q is also VM_USER: give another name, or set BAKE_USER=true to provision as VM_USER", c.BuildUser)
	}
}

func (p *parser) abs(name, v string) string {
	a, err := filepath.Abs(v)
	if err != nil {
		p.add(name, "%v", err)
	}
	return a
}

func (p *parser) cacheDir(v string) string {
	if v != "" {
		return p.abs("CACHE_DIR", v)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		p.add("CACHE_DIR", "is not set and there is no default (%v): set it to a folder", err)
		return ""
	}
	return filepath.Join(dir, "diskforge")
}

// label is a hint, which becomes a label's value.
func (p *parser) label(name, v string) string {
	if v != "" && !oci.LabelValue(v) {
		p.add(name, "%q is no name of Kubernetes: give e.g. u1.medium, ubuntu or none", v)
	}
	return v
}

func (p *parser) digest(name, v string) string {
	if v != "" && !host.ValidDigest(v) {
		p.add(name, "%q is no digest: give sha256: and 64 hexadecimal digits", v)
	}
	return v
}

func (p *parser) dir(name, v string) string { return p.existing(name, v, true, false) }

// file is one that may be read more than once, so a pipe is none.
func (p *parser) file(name, v string) string { return p.existing(name, v, false, false) }

func (p *parser) certificates(name, v string) string {
	before := len(p.mistakes)
	file := p.file(name, v)
	if file == "" || len(p.mistakes) > before {
		return file
	}
	pem, err := host.ReadFile(file, maxFile)
	if err != nil {
		p.add(name, "%v", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		p.add(name, "%s has no certificate in it: give certificates in PEM", v)
	}
	return file
}

// maxFile bounds the files that settings name, in bytes.
const maxFile = 16 << 20

func (p *parser) existing(name, v string, dir, pipe bool) string {
	if v == "" {
		return ""
	}
	info, err := os.Stat(v)
	switch {
	case err != nil:
		p.add(name, "%v", err)
	case dir && !info.IsDir():
		p.add(name, "%s is not a folder", v)
	case !dir && !info.Mode().IsRegular() && (!pipe || info.Mode()&os.ModeNamedPipe == 0):
		p.add(name, "%s is not a file", v)
	case !dir && info.Size() > maxFile:
		p.add(name, "%s has more than %d MiB", v, maxFile>>20)
	}
	return p.abs(name, v)
}

var urlForm = regexp.MustCompile(`^https?://[^\s'"\\]+$`)

func (p *parser) httpURL(name, v string) string {
	if v != "" && !urlForm.MatchString(v) {
		p.add(name, "is no http(s) URL: give e.g. http://host:3128") // not quoted: proxies carry passwords
	}
	return v
}

// identities are vaults' labels with their passwords' files, made absolute.
func (p *parser) identities(name, v string) string {
	if v == "" {
		return ""
	}
	list := strings.Split(v, ",")
	for i, one := range list {
		label, file, found := strings.Cut(strings.TrimSpace(one), "@")
		if !found {
			label, file = "", label
		}
		if file == "" || file == "prompt" {
			p.add(name, "%q asks for a password, and nobody can type one: give LABEL@FILE", one)
			return ""
		}
		list[i] = strings.TrimPrefix(label+"@"+p.file(name, file), "@")
	}
	return strings.Join(list, ",")
}

// maxExtraVars bounds EXTRA_VARS, in bytes: it is settings, not data.
const maxExtraVars = 1 << 20

func (p *parser) mapping(name, v string) map[string]any {
	if v == "" {
		return nil
	}
	text := []byte(v)
	if path, ok := strings.CutPrefix(v, "@"); ok {
		b, err := host.ReadFile(path, maxExtraVars)
		if err != nil {
			p.add(name, "%v", err)
			return nil
		}
		text = b
	}
	m, err := host.YAMLVars(text)
	if err == nil && len(text) > maxExtraVars {
		err = fmt.Errorf("is longer than %d KiB", maxExtraVars>>10)
	}
	if err != nil {
		p.add(name, `%v: give a JSON or YAML mapping, e.g. {"course": "databases"}, or @FILE`, err)
	}
	return m
}

func (p *parser) git(c *Config, s Settings) {
	if s.GitAnsibleURL == "" && s.GitAnsibleBranch == "" {
		return
	}
	c.GitURL, c.GitBranch = s.GitAnsibleURL, s.GitAnsibleBranch
	if c.GitURL == "" {
		c.GitURL = playbook.DefaultGitURL
	}
	if c.GitBranch == "" {
		c.GitBranch = playbook.DefaultGitBranch
	}
	p.check("GIT_ANSIBLE_URL", playbook.ValidateGitURL(c.GitURL))
	p.check("GIT_ANSIBLE_BRANCH", playbook.ValidateGitRef(c.GitBranch))
	p.check("GIT_ANSIBLE_PATH", playbook.ValidateGitPath(c.GitPath))
}

func (p *parser) base(c *Config, s Settings, needed bool) {
	switch {
	case c.BaseFromPackages && s.ISOURL != "":
		p.add("ISO_URL", "is set, and so is BASE_FROM_PACKAGES: choose one")
	case c.BaseFromPackages:
	case s.ISOURL == "" && needed:
		p.add("ISO_URL", "is not set: give the URL of a cloud image, or --base-from-packages to make one from Debian packages")
	case strings.HasPrefix(s.ISOURL, "oci:"):
		c.ISOURL, c.BaseImage = "", p.baseImage(s.ISOURL, s.ISOChecksum)
	case strings.HasPrefix(s.ISOChecksum, "inputs:"):
		p.add("ISO_CHECKSUM", "is of inputs, which only a containerdisk has (oci:// in ISO_URL): give sha256:HEX, sha512:HEX or file:")
	case s.ISOURL != "" && s.ISOChecksum == "":
		p.add("ISO_CHECKSUM", "is not set: give sha256:HEX, sha512:HEX or file: with the path or URL of a SHA256SUMS file")
	case s.ISOChecksum != "":
		sum, err := base.ParseChecksum(s.ISOChecksum)
		p.check("ISO_CHECKSUM", err)
		c.ISOChecksum = sum
	}
}

func (p *parser) credentials(c Config) {
	switch {
	case c.RegistryPass != "" && c.RegistryPassFile != "":
		p.add("REGISTRY_PASS", "is set, and so is REGISTRY_PASS_FILE: choose one")
	case c.RegistryUser != "" && c.RegistryPass == "" && c.RegistryPassFile == "":
		p.add("REGISTRY_PASS", "is not set, but REGISTRY_USER is: set REGISTRY_PASS or REGISTRY_PASS_FILE")
	case c.RegistryUser == "" && (c.RegistryPass != "" || c.RegistryPassFile != ""):
		p.add("REGISTRY_USER", "is not set, but its password is: set REGISTRY_USER")
	}
}

// wholeAddress is registry, path, name and tag in one: the first part is a host
// if it has a dot or a port, or is localhost (as Docker has it).
var wholeAddress = regexp.MustCompile(`^([^/]*[.:][^/]*|localhost)((?:/[^/:]+)*)/([^/:]+)(?::([^/:]+))?$`)

// reference puts the image's address together. Where nothing is pushed the
// image still gets a name, the playbook's by default, that a registry takes. A
// build that another command pushes (left) needs the address at its start:
// diskforge push would miss it only when the image is made.
func (p *parser) reference(c *Config, s Settings, left bool) {
	switch {
	case s.TargetRegistry == "" && left:
		p.add("TARGET_REGISTRY", "is not set, but PUSH=false leaves the image to be pushed: name the registry, or leave out PUSH")
	case s.TargetRegistry == "" && s.RegistryPrefix != "":
		p.add("TARGET_REGISTRY", "is not set, but REGISTRY_PREFIX is: set TARGET_REGISTRY to push, or neither")
	}
	name, tag := s.ImageName, s.ImageTag
	if m := wholeAddress.FindStringSubmatch(name); m != nil && s.TargetRegistry == "" {
		p.add("IMAGE_NAME", "%s is a whole address: set TARGET_REGISTRY=%s REGISTRY_PREFIX=%s IMAGE_NAME=%s IMAGE_TAG=%s", name, m[1], strings.Trim(m[2], "/"), m[3], cmp.Or(m[4], tag, "TAG"))
		return
	}
	if s.TargetRegistry == "" && !left {
		if name == "" && c.Playbook == "" {
			return // a stage of its own, on a disk or layout that has no name
		}
		if name == "" {
			name = strings.ToLower(strings.TrimSuffix(filepath.Base(c.Playbook), filepath.Ext(c.Playbook)))
			c.ImageName = name
		}
		if tag == "" {
			tag = "latest" // only for the check
		}
	}
	ref, err := registry.ParseReference(s.TargetRegistry, s.RegistryPrefix, name, tag)
	p.check("", err)
	c.Reference = ref
}

// check adds what a leaf package says of a setting. Joined errors are several
// mistakes; each then names its setting itself.
func (p *parser) check(name string, err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			p.check(name, e)
		}
		return
	}
	if name == "" {
		p.mistakes = append(p.mistakes, err.Error())
		return
	}
	p.add(name, "%v", err)
}
