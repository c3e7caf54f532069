package settings

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sethvargo/go-envconfig"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

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
	err := envconfig.ProcessWith(context.Background(), &envconfig.Config{
		Target: &p.Config, Lookuper: envconfig.MapLookuper(s), Mutators: []envconfig.Mutator{envconfig.MutatorFunc(p.read)},
	})
	if err != nil {
		return Config{}, fmt.Errorf("reading the settings: %w", err)
	}
	needed := func(n Need) bool { return slices.Contains(needs, n) }
	p.folders()
	p.git()
	p.base(needed(NeedBase))
	p.accounts()
	if needed(NeedPlaybook) && p.Playbook == "" {
		p.add("ANSIBLE_PLAYBOOK", "is not set: name the playbook that provisions the image, e.g. debian-base")
	}
	if needed(NeedReference) {
		p.reference(needed(NeedBase) && !p.Push)
	}
	if len(p.mistakes) > 0 {
		return p.Config, p.mistakes
	}
	return p.Config, nil
}

// parser collects every mistake instead of stopping at the first.
type parser struct {
	Config
	mistakes Mistakes
}

// read is go-envconfig's hook between the text of a setting and its type. What
// has not its form is a mistake, and counts as not set.
func (p *parser) read(_ context.Context, env, _, _, text string) (string, bool, error) {
	f, _ := By(env)
	if text == "" && f.Default == "" {
		return "", false, nil
	}
	read, err := f.form(text)
	if p.check(env, err); err != nil && !f.text {
		read = ""
	}
	return read, false, nil
}

func (p *parser) add(name, format string, args ...any) {
	p.mistakes = append(p.mistakes, name+": "+fmt.Sprintf(format, args...))
}

// check adds what the owner of a form says of a setting. Joined errors are
// several mistakes; without a name, each names its setting itself.
func (p *parser) check(name string, err error) {
	switch many, joined := err.(interface{ Unwrap() []error }); {
	case err == nil:
	case joined:
		for _, one := range many.Unwrap() {
			p.check(name, one)
		}
	case name == "":
		p.mistakes = append(p.mistakes, err.Error())
	default:
		p.add(name, "%v", err)
	}
}

func (p *parser) folders() {
	if p.AnsibleDir != "" && p.AnsibleDir == p.OutputDir {
		p.add("OUTPUT_DIR", "is also ANSIBLE_DIR: give results a folder of their own, e.g. out")
	}
	if p.CacheDir != "" {
		return
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		p.add("CACHE_DIR", "is not set and there is no default (%v): set it to a folder", err)
		return
	}
	p.CacheDir = filepath.Join(dir, "diskforge")
}

// git has either of URL and branch bring the other's default.
func (p *parser) git() {
	if p.GitURL == "" && p.GitBranch == "" {
		return
	}
	p.GitURL, p.GitBranch = cmp.Or(p.GitURL, playbook.DefaultGitURL), cmp.Or(p.GitBranch, playbook.DefaultGitBranch)
	p.check("GIT_ANSIBLE_URL", playbook.ValidateGitURL(p.GitURL))
	p.check("GIT_ANSIBLE_BRANCH", playbook.ValidateGitRef(p.GitBranch))
	p.check("GIT_ANSIBLE_PATH", playbook.ValidateGitPath(p.GitPath))
}

func (p *parser) base(needed bool) {
	url, checksum := p.ISOURL, p.Checksum
	switch {
	case p.BaseFromPackages && url != "":
		p.add("ISO_URL", "is set, and so is BASE_FROM_PACKAGES: choose one")
	case p.BaseFromPackages:
	case url == "" && needed:
		p.add("ISO_URL", "is not set: give the URL of a cloud image, or --base-from-packages to make one from Debian packages")
	case strings.HasPrefix(url, "oci:"):
		p.ISOURL, p.BaseImage = "", p.baseImage(url, checksum)
	case strings.HasPrefix(checksum, "inputs:"):
		p.add("ISO_CHECKSUM", "is of inputs, which only a containerdisk has (oci:// in ISO_URL): give sha256:HEX, sha512:HEX or file:")
	case url != "" && checksum == "":
		p.add("ISO_CHECKSUM", "is not set: give sha256:HEX, sha512:HEX or file: with the path or URL of a SHA256SUMS file")
	case checksum != "":
		var err error
		p.ISOChecksum, err = base.ParseChecksum(checksum)
		p.check("ISO_CHECKSUM", err)
	}
}

func (p *parser) accounts() {
	if p.BuildUser == p.VMUser {
		p.add("BUILD_USER", "%q is also VM_USER: give another name, or set BAKE_USER=true to provision as VM_USER", p.BuildUser)
	}
	switch given := p.RegistryPass != "" || p.RegistryPassFile != ""; {
	case p.RegistryPass != "" && p.RegistryPassFile != "":
		p.add("REGISTRY_PASS", "is set, and so is REGISTRY_PASS_FILE: choose one")
	case p.RegistryUser != "" && !given:
		p.add("REGISTRY_PASS", "is not set, but REGISTRY_USER is: set REGISTRY_PASS or REGISTRY_PASS_FILE")
	case p.RegistryUser == "" && given:
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
func (p *parser) reference(left bool) {
	here := p.TargetRegistry == ""
	switch {
	case here && left:
		p.add("TARGET_REGISTRY", "is not set, but PUSH=false leaves the image to be pushed: name the registry, or leave out PUSH")
	case here && p.RegistryPrefix != "":
		p.add("TARGET_REGISTRY", "is not set, but REGISTRY_PREFIX is: set TARGET_REGISTRY to push, or neither")
	}
	if m := wholeAddress.FindStringSubmatch(p.ImageName); m != nil && here {
		p.add("IMAGE_NAME", "%s is a whole address: set TARGET_REGISTRY=%s REGISTRY_PREFIX=%s IMAGE_NAME=%s IMAGE_TAG=%s",
			p.ImageName, m[1], strings.Trim(m[2], "/"), m[3], cmp.Or(m[4], p.ImageTag, "TAG"))
		return
	}
	tag := p.ImageTag
	if here && !left {
		if p.ImageName == "" && p.Playbook == "" {
			return // a stage of its own, on a disk or layout that has no name
		}
		if p.ImageName == "" {
			p.ImageName = strings.ToLower(strings.TrimSuffix(filepath.Base(p.Playbook), filepath.Ext(p.Playbook)))
		}
		tag = cmp.Or(tag, "latest") // only for the check
	}
	ref, err := registry.ParseReference(p.TargetRegistry, p.RegistryPrefix, p.ImageName, tag)
	p.check("", err)
	p.Reference = ref
}
