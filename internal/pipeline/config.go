package pipeline

import (
	"cmp"
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Need is something that a command cannot do without.
type Need int

// What commands need beyond settings that are well-formed.
const (
	NeedBase      Need = iota // ISO_URL with ISO_CHECKSUM, or BASE_FROM_PACKAGES
	NeedPlaybook              // ANSIBLE_PLAYBOOK
	NeedReference             // where TARGET_REGISTRY is set, the rest of the address
	NeedTarget                // likewise for what builds and pushes: IMAGE_TAG is then by default the day's
)

// Parse checks every setting, alone and by the rules of the rooms that it is for,
// and returns what they mean, or all mistakes at once.
func Parse(s settings.Settings, needs ...Need) (settings.Config, error) {
	return settings.Parse(s, func(c *settings.Config, wrong *settings.Mistakes) {
		needed := func(n Need) bool { return slices.Contains(needs, n) }
		if isThere(c.SigningKey) { // a program is asked where the work starts
			_, err := signingKey(context.Background(), *c)
			wrong.Check("SIGNING_KEY", err)
		}
		if isThere(c.BaseKey) {
			_, err := PublicKey(context.Background(), c.BaseKey)
			wrong.Check("BASE_KEY", err)
		}
		if isThere(c.VulnerabilityExcuses) {
			_, err := sbom.ReadExcuses(c.VulnerabilityExcuses)
			wrong.Check("VULNERABILITY_EXCUSES", err)
		}
		checkGit(c, wrong)
		checkBase(c, wrong, needed(NeedBase))
		useVariables(c, wrong)
		if needed(NeedPlaybook) && c.Playbook == "" {
			wrong.Add("ANSIBLE_PLAYBOOK", "is not set: name the playbook that provisions the image, e.g. debian-base, or PACKAGES")
		}
		for env, hint := range map[string]string{"INSTANCE_TYPE": c.InstanceType, "PREFERENCE": c.Preference} {
			if hint != "" && !oci.LabelValue(hint) {
				wrong.Add(env, "%q is no name of Kubernetes: give e.g. u1.medium, ubuntu or none", hint)
			}
		}
		c.Outputs = checkOutputs(c.Outputs, c.Architecture, wrong)
		if whole := needed(NeedTarget); whole || needed(NeedReference) {
			if whole && c.TargetRegistry != "" && c.Push && c.ImageTag == "" {
				// As setup-crownlabs-vm.sh had it (CROWNLABS_REGISTRY_IMAGE_VERSION).
				c.ImageTag, c.TagOfDay = time.Now().UTC().Format("20060102"), true
			}
			checkReference(c, wrong, whole && !c.Push)
		}
	})
}

// checkOutputs is the list without the containerdisk, which is made in any case.
func checkOutputs(list, architecture string, wrong *settings.Mistakes) string {
	names := slices.DeleteFunc(strings.Split(list, ","), func(name string) bool { return name == "containerdisk" || name == "" })
	if slices.Contains(names, "ova") && architecture != arch.Default {
		wrong.Add("OUTPUTS", "ova is for machines of %s alone: leave it out, or ARCHITECTURE=%s", arch.Default, architecture)
	}
	for _, name := range names {
		if known := disk.Outputs(); !slices.Contains(known, name) {
			wrong.Add("OUTPUTS", "%q is not known: give containerdisk, %s", name, strings.Join(known, ", "))
		}
	}
	return strings.Join(names, ",")
}

// useVariables gives the settings that are variables of playbooks to the playbook;
// where there are none of somebody's own, PACKAGES has one that takes it.
func useVariables(c *settings.Config, wrong *settings.Mistakes) {
	ours := c.AnsibleDir == "" && c.GitURL == ""
	if c.Packages != "" && c.Playbook == "" && ours {
		c.Playbook = "packages"
	}
	if name := strings.TrimSuffix(filepath.Base(c.Playbook), ".yml"); ours && c.Playbook != "" && name != "packages" {
		for env, list := range map[string]string{"PACKAGES": c.Packages, "LOGIN_GROUPS": c.LoginGroups} {
			if list != "" {
				wrong.Add(env, "is nothing that the playbook %s takes: start from an image that it made"+
					" (ISO_URL, from: in a catalogue), with the playbook packages", name)
			}
		}
	}
	names := func(list string) []any {
		var all []any
		for name := range strings.SplitSeq(list, ",") {
			all = append(all, name)
		}
		return all
	}
	vars := maps.Clone(c.ExtraVars)
	for _, v := range []struct {
		env, name string
		given     bool
		value     any
	}{
		{"PACKAGES", "packages", c.Packages != "", names(c.Packages)},
		{"LOGIN_GROUPS", "login_groups", c.LoginGroups != "", names(c.LoginGroups)},
		{"KEYBOARD", "keyboard", c.Keyboard != "", c.Keyboard},
		{"CROWNLABS_MODE", "crownlabs_mode", !c.CrownLabsMode, false},
	} {
		if _, too := vars[v.name]; v.given && too {
			wrong.Add(v.env, "EXTRA_VARS has %s, too: choose one of them", v.name)
		} else if v.given {
			if vars == nil {
				vars = settings.Vars{}
			}
			vars[v.name] = v.value
		}
	}
	// What is checked follows from it: playbooks and diskforge must mean the same.
	if mode, given := vars["crownlabs_mode"]; given {
		c.CrownLabsMode = mode != false && mode != "false"
	}
	c.ExtraVars = vars
}

// checkGit has either of URL and branch bring the other's default.
func checkGit(c *settings.Config, wrong *settings.Mistakes) {
	if c.GitURL == "" && c.GitBranch == "" {
		return
	}
	c.GitURL, c.GitBranch = cmp.Or(c.GitURL, playbook.DefaultGitURL), cmp.Or(c.GitBranch, playbook.DefaultGitBranch)
	wrong.Check("GIT_ANSIBLE_URL", playbook.ValidateGitURL(c.GitURL))
	wrong.Check("GIT_ANSIBLE_BRANCH", playbook.ValidateGitRef(c.GitBranch))
	wrong.Check("GIT_ANSIBLE_PATH", playbook.ValidateGitPath(c.GitPath))
}

// isThere says whether there is such a file: one that is missing is told already.
func isThere(path string) bool {
	_, err := os.Stat(path)
	return path != "" && err == nil
}

func checkBase(c *settings.Config, wrong *settings.Mistakes, needed bool) {
	if isThere(c.BaseKeyring) {
		wrong.Check("BASE_KEYRING", base.CheckKeyring(c.BaseKeyring))
		if c.BaseFromPackages || c.ISOURL != "" && !strings.HasPrefix(c.Checksum, "file:") {
			wrong.Add("BASE_KEYRING", "is set, but there is no ISO_CHECKSUM that is a list and signed: "+
				"give file: with the list that is signed, or leave out BASE_KEYRING")
		}
	}
	switch url, checksum := c.ISOURL, c.Checksum; {
	case c.BaseFromPackages && url != "":
		wrong.Add("ISO_URL", "is set, and so is BASE_FROM_PACKAGES: choose one")
	case c.BaseFromPackages:
		c.Checksum = ""
	case url == "" && needed:
		try := "give the URL of a cloud image, and its ISO_CHECKSUM"
		if !host.InPod() { // a restricted pod has no user namespaces, which that takes
			try += ", or --base-from-packages to make one from Debian packages"
		}
		wrong.Add("ISO_URL", "is not set: %s", try)
	case strings.HasPrefix(url, "oci:"):
		c.ISOURL, c.Checksum = "", ""
		if c.BaseImage = baseImage(url, checksum, wrong); c.BaseImage.Layout != "" && c.BaseKey != "" {
			wrong.Add("BASE_KEY", "asks for a signature, which a layout has none of: push it, sign it, and give oci:// with its address in ISO_URL")
		}
	case strings.HasPrefix(checksum, "inputs:"):
		wrong.Add("ISO_CHECKSUM", "is of inputs, which only a containerdisk has (oci:// in ISO_URL): give sha256:HEX, sha512:HEX or file:")
	case url != "" && checksum == "":
		wrong.Add("ISO_CHECKSUM", "is not set: give sha256:HEX, sha512:HEX or file: with the path or URL of a SHA256SUMS file")
	case checksum != "":
		var err error
		c.Checksum, err = base.ParseChecksum(checksum)
		wrong.Check("ISO_CHECKSUM", err)
	}
}

// baseImage reads oci://REGISTRY/REPOSITORY:TAG, …@sha256:DIGEST and
// oci:DIR@sha256:DIGEST, with what ISO_CHECKSUM adds.
func baseImage(url, checksum string, wrong *settings.Mistakes) (b settings.BaseImage) {
	at, inRegistry := strings.CutPrefix(url, "oci://")
	if authority, _, _ := strings.Cut(at, "/"); inRegistry && strings.Contains(authority, "@") {
		wrong.Add("ISO_URL", "has a user in it: that is REGISTRY_USER") // not quoted: it may hold a password
		return b
	}
	if b = splitImage(url); inRegistry {
		wrong.Check("ISO_URL", registry.CheckStored(b.Reference))
	} else {
		var err error
		if b.Layout == "" {
			wrong.Add("ISO_URL", "names no folder: give oci://REGISTRY/REPOSITORY:TAG, or oci:DIR@sha256:DIGEST as a build prints it")
		} else if b.Layout, err = settings.Folder(b.Layout); err != nil {
			wrong.Check("ISO_URL", err)
		}
		if b.Digest != "" && !host.ValidDigest(b.Digest) {
			wrong.Add("ISO_URL", "ends in what is no digest: give sha256: and 64 hexadecimal digits behind @")
		}
	}
	imageChecksum(&b, checksum, wrong)
	return b
}

// splitImage takes oci://REGISTRY/REPOSITORY with :TAG or @DIGEST, and oci:DIR
// with @DIGEST or without, apart, and checks nothing.
func splitImage(url string) (b settings.BaseImage) {
	at, inRegistry := strings.CutPrefix(url, "oci://")
	at = strings.TrimPrefix(at, "oci:")
	if i := strings.LastIndex(at, "@sha256:"); i >= 0 {
		b.Digest = at[i+1:]
	}
	if inRegistry {
		b.Reference = at
	} else {
		b.Layout = strings.TrimSuffix(at, "@"+b.Digest)
	}
	return b
}

// imageChecksum reads ISO_CHECKSUM of a base that is a containerdisk.
func imageChecksum(b *settings.BaseImage, checksum string, wrong *settings.Mistakes) {
	const forms = "give sha256: with the digest of its manifest, or inputs:sha256: with its input digest"
	inputs, ofInputs := strings.CutPrefix(checksum, "inputs:")
	switch {
	case checksum == "" && b.Digest == "":
		wrong.Add("ISO_CHECKSUM", "is not set, and ISO_URL has no digest: %s, or write @sha256:DIGEST into ISO_URL", forms)
	case checksum == "":
	case ofInputs && host.ValidDigest(inputs):
		b.Inputs = inputs
	case !host.ValidDigest(checksum):
		wrong.Add("ISO_CHECKSUM", "%q is none of a containerdisk: %s", checksum, forms)
	case b.Digest != "" && b.Digest != checksum:
		wrong.Add("ISO_CHECKSUM", "is another digest than that in ISO_URL: leave out one of them")
	default:
		b.Digest = checksum
	}
}

// wholeAddress is registry, path, name and tag in one: the first part is a host
// if it has a dot or a port, or is localhost (as Docker has it).
var wholeAddress = regexp.MustCompile(`^([^/]*[.:][^/]*|localhost)((?:/[^/:]+)*)/([^/:]+)(?::([^/:]+))?$`)

// checkReference puts the image's address together. Where nothing is pushed the
// image still gets a name, the playbook's by default, that a registry takes. A
// build that another command pushes (left) needs the address at its start:
// diskforge push would miss it only when the image is made.
func checkReference(c *settings.Config, wrong *settings.Mistakes, left bool) {
	here := c.TargetRegistry == ""
	switch {
	case here && left:
		wrong.Add("TARGET_REGISTRY", "is not set, but PUSH=false leaves the image to be pushed: name the registry, or leave out PUSH")
	case here && c.RegistryPrefix != "":
		wrong.Add("TARGET_REGISTRY", "is not set, but REGISTRY_PREFIX is: set TARGET_REGISTRY to push, or neither")
	}
	if m := wholeAddress.FindStringSubmatch(c.ImageName); m != nil && here {
		wrong.Add("IMAGE_NAME", "%s is a whole address: set TARGET_REGISTRY=%s REGISTRY_PREFIX=%s IMAGE_NAME=%s IMAGE_TAG=%s",
			c.ImageName, m[1], strings.Trim(m[2], "/"), m[3], cmp.Or(m[4], c.ImageTag, "TAG"))
		return
	}
	tag := c.ImageTag
	if here && !left {
		if c.ImageName == "" && c.Playbook == "" {
			return // a stage of its own, on a disk or layout that has no name
		}
		if c.ImageName == "" {
			c.ImageName = strings.ToLower(strings.TrimSuffix(filepath.Base(c.Playbook), filepath.Ext(c.Playbook)))
		}
		tag = cmp.Or(tag, "latest") // only for the check
	}
	ref, err := registry.ParseReference(c.TargetRegistry, c.RegistryPrefix, c.ImageName, tag)
	wrong.Check("", err)
	c.Reference = ref
}
