// Package settings is the one table of diskforge's settings: Config. Its fields
// are what settings mean, typed and checked; their tags say all there is to say
// about each, and whoever needs a list of settings takes it from there (Fields, By):
// the environment, the commands' flags, the README's table, the catalogue's keys,
// what travels to a Dagger engine. To add a setting is to add a field.
package settings

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is what settings mean. The tags of a setting:
//
//	env     its variable and its default, as go-envconfig reads them
//	in      the commands that read it: the others have no flag and refuse nothing of it
//	form    what its text must be: a closed set (a|b) or one of forms
//	key     its key in a catalogue, where an image may have its own
//	plan    carried: it holds on whatever host builds the images of a plan
//	engine  how it gets to a Dagger engine where not as its text: as a folder, file
//	        or secret, by the digest that comes of it, with the address or the login, by
//	        export, or not at all (none, refused), and why
//	help    its flag's help, and the README's words
type Config struct {
	ISOURL           string        `env:"ISO_URL" in:"build provision base" key:"base.url" help:"base image: an http(s) or file URL or a path of a disk image, or a containerdisk: oci://REGISTRY/REPOSITORY with :TAG or @sha256:DIGEST, or a local layout as a build prints it, oci:DIR@sha256:DIGEST"`
	Checksum         string        `env:"ISO_CHECKSUM" in:"build provision base" key:"base.checksum" help:"checksum of the base image: sha256:HEX, sha512:HEX, bare hex, or file: with the path or URL of a SHA256SUMS or SHA512SUMS file; of a containerdisk without a digest in ISO_URL, sha256: with that of its manifest, or inputs: with its input digest"`
	BaseKeyring      string        `env:"BASE_KEYRING" in:"build provision base build-all plan" form:"file" engine:"digest" help:"file with the OpenPGP public keys of which one must have signed the list of ISO_CHECKSUM (default: only Ubuntu's lists must be signed, by Ubuntu's key)"`
	BaseKey          string        `env:"BASE_KEY" in:"build provision base build-all plan refresh run" form:"key" engine:"digest" help:"public key (its file, or NAME://KEY): a base that is a containerdisk must be signed with its private half (diskforge verify-signature), and so must what refresh takes and believes"`
	BaseTimeout      time.Duration `env:"BASE_TIMEOUT" in:"build provision base push" help:"how long to wait for a containerdisk with the input digest of ISO_CHECKSUM, or of push --inputs, e.g. 2h while another job builds it (default: not at all)"`
	BaseFromPackages bool          `env:"BASE_FROM_PACKAGES, default=false" in:"build provision base" key:"base.packages" help:"make the base image from Debian packages instead of ISO_URL"`
	Suite            string        `env:"SUITE" in:"build provision base" form:"bookworm|trixie" key:"base.packages" help:"Debian release for the base from packages: bookworm or trixie (default: the newest that this host's Ansible can manage)"`

	Playbook   string `env:"ANSIBLE_PLAYBOOK" in:"build provision verify" key:"playbook" help:"playbook that provisions the image, a path in the playbook tree"`
	AnsibleDir string `env:"ANSIBLE_DIR" in:"build provision verify run" form:"folder" key:"ansible-dir" engine:"folder" help:"playbook tree on this host; it wins over git"`
	GitURL     string `env:"GIT_ANSIBLE_URL" in:"build provision verify run" key:"git.url" help:"git repository of the playbooks (https, ssh or file); where only GIT_ANSIBLE_BRANCH is set: https://github.com/netgroup-polito/CrownLabs.git"`
	GitBranch  string `env:"GIT_ANSIBLE_BRANCH" in:"build provision verify run" key:"git.branch" help:"branch, tag or full commit of the playbooks; where only GIT_ANSIBLE_URL is set: master"`
	GitPath    string `env:"GIT_ANSIBLE_PATH, default=provisioning/virtual-machines/ansible" in:"build provision verify run" key:"git.path" help:"folder of the playbook tree in the git repository"`
	Desktop    bool   `env:"INSTALL_DESKTOP_ENVIRONMENT, default=false" in:"build capture provision verify run manifest refresh" key:"desktop" help:"install XFCE, served by noVNC on port 6080"`
	ExtraVars  Vars   `env:"EXTRA_VARS" in:"build provision verify run" form:"vars" key:"vars" help:"further variables for Ansible: a JSON or YAML mapping, or @FILE (use a file for secrets)"`

	Packages    string `env:"PACKAGES" in:"build provision verify run" form:"packages" key:"packages" help:"packages of the distribution, separated by commas, for an image without a playbook of one's own: ANSIBLE_PLAYBOOK is then packages, which comes with diskforge"`
	LoginGroups string `env:"LOGIN_GROUPS" in:"build provision verify run" form:"groups" key:"groups" help:"groups that the login user needs for PACKAGES, separated by commas, e.g. docker"`

	CrownLabsMode bool   `env:"CROWNLABS_MODE, default=true" in:"build capture provision verify run manifest refresh" key:"crownlabs-mode" help:"false: an image for a machine of one's own, without settings of a lab; its desktop has a login screen and no noVNC"`
	Keyboard      string `env:"KEYBOARD" in:"build provision verify run" form:"keyboard" key:"keyboard" help:"keyboard layout of the image, e.g. it; several to switch between: us,de"`

	VaultPasswordFile string `env:"ANSIBLE_VAULT_PASSWORD_FILE" in:"build provision build-all plan run" form:"file" engine:"secret" help:"file with the password of what ansible-vault encrypted in the playbook tree; only Ansible is given it"`
	VaultIdentities   string `env:"ANSIBLE_VAULT_IDENTITY_LIST" in:"build provision build-all plan run" form:"vaults" engine:"refused" help:"likewise, for several vaults: LABEL@FILE, separated by commas"`

	MemoryMiB    int           `env:"MEMORY, default=2048" in:"build capture provision verify build-all plan run manifest export refresh" form:"memory" key:"memory" help:"memory of the guest in MiB"`
	CPUs         int           `env:"CPUS" in:"build capture provision verify build-all plan run manifest export refresh" form:"cpus" key:"cpus" plan:"carried" help:"processors of the guest (default: this host's, at most 4; 1 where a QEMU before 8.1 emulates them)"`
	DiskSize     int64         `env:"DISK_SIZE, default=10G" in:"build provision" form:"size" key:"size" help:"virtual size of the disk: 10G, or a number of MiB"`
	Accelerator  string        `env:"ACCELERATOR, default=auto" in:"build capture provision sparsify verify doctor build-all plan run refresh" form:"auto|kvm|tcg" plan:"carried" help:"auto (KVM if it boots a kernel here, else TCG), kvm or tcg"`
	Architecture string        `env:"ARCHITECTURE, default=amd64" in:"build capture provision base pack doctor tools" form:"architecture" key:"architecture" help:"architecture of the image: amd64 or arm64; one that is not this host's is emulated, ten times slower"`
	BootTimeout  time.Duration `env:"BOOT_TIMEOUT" in:"build capture provision verify build-all plan run refresh" key:"boot-timeout" plan:"carried" help:"how long a guest may take until ssh answers (default: 5m with KVM, 15m with TCG)"`

	BuildUser string `env:"BUILD_USER, default=diskforge" in:"build provision verify refresh" form:"user" key:"build-user" help:"user that provisions the guest; it is deleted before the disk is closed"`
	VMUser    string `env:"VM_USER, default=crownlabs" in:"build capture provision verify run refresh" form:"user" key:"vm-user" help:"login user of the virtual machines; cloud-init makes it where they run"`
	BakeUser  bool   `env:"BAKE_USER, default=false" in:"build capture provision verify refresh" key:"bake-user" help:"provision as VM_USER and keep the account, its password locked, for playbooks that write into its home"`

	Outputs string `env:"OUTPUTS, default=containerdisk" in:"build capture export" form:"outputs" key:"outputs" help:"what is made of the verified disk, separated by commas: containerdisk (always), and files in OUTPUT_DIR with their SHA256SUMS: qcow2, raw.zst (CDI's HTTP import), ova (VirtualBox, VMware)"`

	HygieneAllow string `env:"HYGIENE_ALLOW" in:"build capture verify refresh" form:"file" engine:"file" help:"file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree)"`

	FailOnUpdates string `env:"FAIL_ON_UPDATES, default=none" in:"build capture verify build-all plan refresh" form:"none|security|all" plan:"carried" help:"security: an image is not packed as long as the archives of Debian or Ubuntu have a security update for a package in it; all: any update; none"`

	FailOnVulnerabilities string `env:"FAIL_ON_VULNERABILITIES, default=none" in:"build capture verify build-all plan refresh" form:"none|negligible|low|medium|high|critical" plan:"carried" engine:"refused: is not for an engine, whose toolbox has no grype" help:"an image is not packed as long as grype, which this host must have, knows of a vulnerability of that severity or worse in it; none"`
	VulnerabilityExcuses  string `env:"VULNERABILITY_EXCUSES" in:"build capture verify build-all refresh" form:"file" engine:"refused: is not for an engine, whose toolbox has no grype" help:"file that excuses vulnerabilities, with reasons and an end"`

	Sparsify    string `env:"SPARSIFY, default=auto" in:"build capture provision sparsify refresh" form:"auto|trim|virt-sparsify|none" key:"sparsify" help:"auto (trim where the guest trimmed, else virt-sparsify), trim, virt-sparsify or none"`
	Compression string `env:"QCOW2_COMPRESSION, default=zstd" in:"build capture provision sparsify refresh" form:"zstd|zlib|none" key:"compression" help:"compression of the disk: zstd, zlib (Longhorn needs it) or none"`

	TargetRegistry   string `env:"TARGET_REGISTRY" in:"build capture pack push images build-all plan site outdated refresh" engine:"address" help:"registry host, without a scheme; without it nothing is pushed"`
	RegistryPrefix   string `env:"REGISTRY_PREFIX" in:"build capture pack push images build-all plan site outdated refresh" engine:"address" help:"project or path in the registry"`
	ImageName        string `env:"IMAGE_NAME" in:"build capture pack push export" engine:"address" help:"name of the image (default where nothing is pushed: the playbook's)"`
	ImageTag         string `env:"IMAGE_TAG" in:"build capture pack push build-all plan refresh" engine:"address" help:"tag of the image; use a new one for each build (default where build or capture pushes: today's date, 20261129, or 20261129-2 where that is there; build-all: the inputs')"`
	SourceDateEpoch  string `env:"SOURCE_DATE_EPOCH" in:"build capture provision pack build-all" form:"epoch" engine:"none: there an image has its base's date" help:"when the image was made, in seconds since 1970 (reproducible-builds.org; default: the date of its base)"`
	InstanceType     string `env:"INSTANCE_TYPE" in:"build capture pack refresh" help:"KubeVirt instance type that the image hints at, or none (default where the distribution is known: u1.medium)"`
	Preference       string `env:"PREFERENCE" in:"build capture pack refresh" help:"KubeVirt preference that the image hints at, or none (default where the distribution is known: its own, or linux or linux.efi, as the disk's firmware asks for)"`
	ImageInputs      string `env:"IMAGE_INPUTS" in:"build provision" form:"digest" help:"input digest that the image must have, as diskforge plan says it; another is refused before anything is built"`
	RegistryUser     string `env:"REGISTRY_USER" in:"build capture provision base push sign verify-signature inspect manifest images build-all plan run site export outdated refresh" engine:"login" help:"user of the registry, and of the one in ISO_URL; without it the Docker config and its credential helpers are asked"`
	RegistryPass     Secret `env:"REGISTRY_PASS" in:"build capture provision base push sign verify-signature inspect manifest images build-all plan run site export outdated refresh" engine:"login" help:"password of REGISTRY_USER, in the environment only"`
	RegistryPassFile string `env:"REGISTRY_PASS_FILE" in:"build capture provision base push sign verify-signature inspect manifest images build-all plan run site export outdated refresh" form:"file or pipe" engine:"login" help:"file with the password of REGISTRY_USER"`
	Push             bool   `env:"PUSH, default=true" in:"build capture" engine:"address" help:"false: pack the image for TARGET_REGISTRY and leave the upload to diskforge push, which alone then needs the password"`
	SigningKey       string `env:"SIGNING_KEY" in:"build capture push sign revoke build-all refresh" form:"key" engine:"refused: is not for an engine: sign what it pushed with diskforge sign" help:"private key (PEM; cosign's or openssl's, ECDSA P-256 or Ed25519), or NAME://KEY where the program sigstore-kms-NAME keeps it, that signs what is pushed, its provenance and its SBOM"`
	SigningPassword  Secret `env:"SIGNING_PASSWORD" in:"build capture push sign revoke build-all refresh" engine:"refused: is not for an engine: sign what it pushed with diskforge sign" help:"password of SIGNING_KEY where cosign encrypted it, in the environment only"`
	RegistryInsecure bool   `env:"REGISTRY_INSECURE, default=false" in:"build capture provision base push sign verify-signature inspect manifest images build-all plan run site export outdated refresh" plan:"carried" help:"allow plain HTTP to a registry that is not on loopback"`

	OutputDir  string `env:"OUTPUT_DIR, default=out" in:"build capture doctor build-all plan site refresh" form:"path" engine:"export" help:"folder of the results and of the work; one build at a time"`
	CacheDir   string `env:"CACHE_DIR" in:"build capture provision sparsify verify base tools doctor build-all plan run export refresh" form:"path" engine:"none: an engine keeps base images and tools in its own cache" help:"folder of base images, compiled tools and playbooks from git (default: diskforge in the user's cache folder)"`
	AptMirror  string `env:"APT_MIRROR" in:"build verify capture provision base build-all plan run outdated refresh" form:"http" help:"Debian or Ubuntu mirror for the base, for the guest during the build, and for the lists of packages that outdated, refresh and FAIL_ON_UPDATES read"`
	CAFile     string `env:"CA_FILE" in:"build verify capture provision base push sign verify-signature inspect manifest images build-all plan run site export outdated refresh" form:"certificates" engine:"file" help:"PEM file of further certificate authorities: downloads, git, the registry, the guest during the build"`
	HTTPProxy  string `env:"HTTP_PROXY" in:"build provision base build-all plan refresh" form:"http" plan:"carried" help:"proxy for HTTP: downloads, and the guest during the build"`
	HTTPSProxy string `env:"HTTPS_PROXY" in:"build provision base build-all plan refresh" form:"http" plan:"carried" help:"proxy for HTTPS, likewise"`
	NoProxy    string `env:"NO_PROXY" in:"build provision base build-all plan refresh" plan:"carried" help:"hosts that are reached without a proxy, likewise"`
	PackerLog  bool   `env:"PACKER_LOG, default=1" in:"build provision build-all refresh" engine:"none: Packer's log stays in the engine" help:"1: Packer writes its debug log into the work folder; 0: it does not"`

	// What several settings mean together.

	BaseImage BaseImage // in place of ISOURL and Checksum
	Reference string    // REGISTRY/PREFIX/NAME:TAG; empty where nothing is pushed
	TagOfDay  bool      // IMAGE_TAG is not set, and is today's date
	// What a plan read of the base's list of checksums before the digest took its place.
	SignedBy, Release string
}

// BaseImage is a base that is a containerdisk: in a registry or in a layout.
type BaseImage struct {
	Reference string // REGISTRY/REPOSITORY with :TAG, @DIGEST or both; or empty
	Layout    string // absolute path of an OCI layout; or empty
	// Digest of the manifest ("sha256:…") and input digest that the image must
	// have; at least one is set.
	Digest, Inputs string
}

// IsSet says whether the base is a containerdisk.
func (b BaseImage) IsSet() bool { return b.Reference != "" || b.Layout != "" }

// Secret is text that no log, error or listing shows.
type Secret string

// String masks the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString masks the secret.
func (s Secret) GoString() string { return s.String() }

// MarshalText masks the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Field describes one setting.
type Field struct {
	Env, Flag, Default, Help string
	Key                      string // in a catalogue, or empty
	Engine                   string // how it gets to a Dagger engine; empty: as its text
	Bool, Secret             bool
	Carried                  bool // by a plan, to whatever host builds its images
	commands                 []string
	form                     form
	text                     bool // its Go type is text
}

// In says whether the command reads the setting.
func (f Field) In(command string) bool { return slices.Contains(f.commands, command) }

// Value is the setting's text: what was given, else its default. A secret's is masked.
func (f Field) Value(s Settings) string {
	if f.Secret {
		return Secret(s.Get(f.Env)).String()
	}
	return s.Get(f.Env)
}

// Fields lists every setting in the order of the table.
func Fields() []Field { return slices.Clone(table()) }

// By is the setting of that variable.
func By(env string) (Field, bool) {
	i := slices.IndexFunc(table(), func(f Field) bool { return f.Env == env })
	if i < 0 {
		return Field{}, false
	}
	return table()[i], true
}

// table reads the tags once.
var table = sync.OnceValue(func() []Field {
	var all []Field
	for _, sf := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		name, def, _ := strings.Cut(sf.Tag.Get("env"), ", default=")
		if name == "" {
			continue
		}
		f := Field{
			Env: name, Flag: strings.ToLower(strings.ReplaceAll(name, "_", "-")), Default: def,
			Help: sf.Tag.Get("help"), Key: sf.Tag.Get("key"), Engine: sf.Tag.Get("engine"),
			Carried: sf.Tag.Get("plan") == "carried", Bool: sf.Type.Kind() == reflect.Bool, Secret: sf.Type == reflect.TypeFor[Secret](),
			commands: strings.Fields(sf.Tag.Get("in")), text: sf.Type.Kind() == reflect.String,
		}
		f.form = formOf(sf)
		all = append(all, f)
	}
	return all
})

// Settings are settings as they were given: their text, by variable.
type Settings map[string]string

// String lists no values: one may be a password.
func (s Settings) String() string { return strings.Join(slices.Sorted(maps.Keys(s)), " ") }

// GoString is String.
func (s Settings) GoString() string { return s.String() }

// Get is the text of a setting, or its default.
func (s Settings) Get(env string) string {
	if text, given := s[env]; given {
		return text
	}
	f, _ := By(env)
	return f.Default
}

// Only returns the settings that the command reads.
func (s Settings) Only(command string) Settings {
	only := Settings{}
	for _, f := range table() {
		if text, given := s[f.Env]; given && f.In(command) {
			only[f.Env] = text
		}
	}
	return only
}

// Arguments are the flags by which a command is given what it reads of the
// settings. Secrets are not among them.
func (s Settings) Arguments(command string) []string {
	args := []string{}
	for _, f := range table() {
		if text, given := s[f.Env]; given && f.In(command) && !f.Secret {
			args = append(args, "--"+f.Flag+"="+text)
		}
	}
	return args
}

// With returns the settings with other texts for some variables.
func (s Settings) With(values map[string]string) Settings {
	with := Settings{}
	maps.Copy(with, s)
	maps.Copy(with, values)
	return with
}

// Read reads the settings: flags (by variable) win over the environment, and an
// empty variable counts as one that is not set, as Kubernetes and GitHub Actions
// leave many.
func Read(flags map[string]string, environ func(string) (string, bool)) (Settings, error) {
	if environ == nil {
		environ = os.LookupEnv
	}
	s := Settings{}
	for _, f := range table() {
		text, given := flags[f.Env]
		if !given {
			text, _ = environ(f.Env)
			if text == "" && strings.HasSuffix(f.Env, "_PROXY") { // curl's and apt's spelling
				text, _ = environ(strings.ToLower(f.Env))
			}
			given = text != ""
		}
		if given {
			s[f.Env] = text
		}
	}
	// CrownLabs' former builder gave the account these names. They are not taken
	// over: a USERNAME and a PASSWORD may be for anything.
	user, _ := environ("USERNAME")
	password, _ := environ("PASSWORD")
	if s["TARGET_REGISTRY"] != "" && s["REGISTRY_USER"] == "" && user != "" && password != "" {
		return nil, Mistakes{"REGISTRY_USER: is not set, but USERNAME and PASSWORD are: rename them to REGISTRY_USER and REGISTRY_PASS"}
	}
	return s, nil
}
