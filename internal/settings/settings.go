// Package settings holds the settings of diskforge: read from the environment
// and from flags of the same names, and checked in one place before anything
// slow starts.
package settings

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/sethvargo/go-envconfig"
)

// Settings are the settings as they were given: text, by the names that users
// know. Parse turns them into a Config. The tags say all there is to say about
// a setting: its variable and default (env), its flag's help (help), and the
// commands that read it (in).
type Settings struct {
	ISOURL           string `env:"ISO_URL" in:"build provision base" help:"base image: an http(s) or file URL or a path of a disk image, or a containerdisk: oci://REGISTRY/REPOSITORY with :TAG or @sha256:DIGEST, or a local layout as a build prints it, oci:DIR@sha256:DIGEST"`
	ISOChecksum      string `env:"ISO_CHECKSUM" in:"build provision base" help:"checksum of the base image: sha256:HEX, sha512:HEX, bare hex, or file: with the path or URL of a SHA256SUMS or SHA512SUMS file; of a containerdisk without a digest in ISO_URL, sha256: with that of its manifest, or inputs: with its input digest"`
	BaseTimeout      string `env:"BASE_TIMEOUT" in:"build provision base" help:"how long to wait for a containerdisk with the input digest of ISO_CHECKSUM, e.g. 2h while another job builds it (default: not at all)"`
	BaseFromPackages string `env:"BASE_FROM_PACKAGES, default=false" in:"build provision base" kind:"bool" help:"make the base image from Debian packages instead of ISO_URL"`
	Suite            string `env:"SUITE" in:"build provision base" help:"Debian release for the base from packages: bookworm or trixie (default: the newest that this host's Ansible can manage)"`

	Playbook         string `env:"ANSIBLE_PLAYBOOK" in:"build provision verify" help:"playbook that provisions the image, a path in the playbook tree"`
	AnsibleDir       string `env:"ANSIBLE_DIR" in:"build provision verify" help:"playbook tree on this host; it wins over git"`
	GitAnsibleURL    string `env:"GIT_ANSIBLE_URL" in:"build provision verify" help:"git repository of the playbooks (https, ssh or file); where only GIT_ANSIBLE_BRANCH is set: https://github.com/netgroup-polito/CrownLabs.git"`
	GitAnsibleBranch string `env:"GIT_ANSIBLE_BRANCH" in:"build provision verify" help:"branch, tag or full commit of the playbooks; where only GIT_ANSIBLE_URL is set: master"`
	GitAnsiblePath   string `env:"GIT_ANSIBLE_PATH, default=provisioning/virtual-machines/ansible" in:"build provision verify" help:"folder of the playbook tree in the git repository"`
	InstallDesktop   string `env:"INSTALL_DESKTOP_ENVIRONMENT, default=false" in:"build provision verify" kind:"bool" help:"install XFCE, served by noVNC on port 6080"`
	ExtraVars        string `env:"EXTRA_VARS" in:"build provision verify" help:"further variables for Ansible: a JSON or YAML mapping, or @FILE (use a file for secrets)"`

	VaultPasswordFile string `env:"ANSIBLE_VAULT_PASSWORD_FILE" in:"build provision build-all plan" help:"file with the password of what ansible-vault encrypted in the playbook tree; only Ansible is given it"`
	VaultIdentities   string `env:"ANSIBLE_VAULT_IDENTITY_LIST" in:"build provision build-all plan" help:"likewise, for several vaults: LABEL@FILE, separated by commas"`

	Memory       string `env:"MEMORY, default=2048" in:"build provision verify build-all plan" help:"memory of the guest in MiB"`
	CPUs         string `env:"CPUS" in:"build provision verify build-all plan" help:"processors of the guest (default: this host's, at most 4; 1 where a QEMU before 8.1 emulates them)"`
	DiskSize     string `env:"DISK_SIZE, default=10G" in:"build provision" help:"virtual size of the disk: 10G, or a number of MiB"`
	Accelerator  string `env:"ACCELERATOR, default=auto" in:"build provision sparsify verify doctor build-all plan" help:"auto (KVM if it boots a kernel here, else TCG), kvm or tcg"`
	Architecture string `env:"ARCHITECTURE, default=amd64" in:"build provision base pack" help:"architecture of the image: amd64"`
	BootTimeout  string `env:"BOOT_TIMEOUT" in:"build provision verify build-all plan" help:"how long a guest may take until ssh answers (default: 5m with KVM, 15m with TCG)"`

	BuildUser string `env:"BUILD_USER, default=diskforge" in:"build provision verify" help:"user that provisions the guest; it is deleted before the disk is closed"`
	VMUser    string `env:"VM_USER, default=crownlabs" in:"build provision verify" help:"login user of the virtual machines; cloud-init makes it where they run"`
	BakeUser  string `env:"BAKE_USER, default=false" in:"build provision verify" kind:"bool" help:"provision as VM_USER and keep the account, its password locked, for playbooks that write into its home"`

	HygieneAllow string `env:"HYGIENE_ALLOW" in:"build verify" help:"file that excuses findings of the hygiene gate, with reasons, and may add rules (default: tests/PLAYBOOK.allow.yaml in the playbook tree)"`

	Sparsify         string `env:"SPARSIFY, default=auto" in:"build provision sparsify" help:"auto (trim where the guest trimmed, else virt-sparsify), trim, virt-sparsify or none"`
	QCOW2Compression string `env:"QCOW2_COMPRESSION, default=zstd" in:"build provision sparsify" help:"compression of the disk: zstd, zlib (Longhorn needs it) or none"`

	TargetRegistry   string `env:"TARGET_REGISTRY" in:"build pack push images build-all plan" help:"registry host, without a scheme; without it nothing is pushed"`
	RegistryPrefix   string `env:"REGISTRY_PREFIX" in:"build pack push images build-all plan" help:"project or path in the registry"`
	ImageName        string `env:"IMAGE_NAME" in:"build pack push" help:"name of the image (default where nothing is pushed: the playbook's)"`
	ImageTag         string `env:"IMAGE_TAG" in:"build pack push build-all plan" help:"tag of the image; use a new one for each build"`
	InstanceType     string `env:"INSTANCE_TYPE" in:"build pack" help:"KubeVirt instance type that the image hints at, or none (default where the distribution is known: u1.medium)"`
	Preference       string `env:"PREFERENCE" in:"build pack" help:"KubeVirt preference that the image hints at, or none (default where the distribution is known: its own, or linux or linux.efi, as the disk's firmware asks for)"`
	ImageInputs      string `env:"IMAGE_INPUTS" in:"build provision" help:"input digest that the image must have, as diskforge plan tells it; another is refused before anything is built"`
	RegistryUser     string `env:"REGISTRY_USER" in:"build provision base push inspect images build-all plan" help:"user of the registry, and of the one in ISO_URL; without it the Docker config and its credential helpers are asked"`
	RegistryPass     Secret `env:"REGISTRY_PASS" in:"build provision base push inspect images build-all plan" help:"password of REGISTRY_USER, in the environment only"`
	RegistryPassFile string `env:"REGISTRY_PASS_FILE" in:"build provision base push inspect images build-all plan" help:"file with the password of REGISTRY_USER"`
	Push             string `env:"PUSH, default=true" in:"build" kind:"bool" help:"false: pack the image for TARGET_REGISTRY and leave the upload to diskforge push, which alone then needs the password"`
	RegistryInsecure string `env:"REGISTRY_INSECURE, default=false" in:"build provision base push inspect images build-all plan" kind:"bool" help:"allow plain HTTP to a registry that is not on loopback"`

	OutputDir  string `env:"OUTPUT_DIR, default=out" in:"build doctor build-all plan" help:"folder of the results and of the work; one build at a time"`
	CacheDir   string `env:"CACHE_DIR" in:"build provision sparsify verify base tools doctor build-all plan" help:"folder of base images and compiled tools (default: diskforge in the user's cache folder)"`
	AptMirror  string `env:"APT_MIRROR" in:"build provision base build-all plan" help:"Debian or Ubuntu mirror for the base and for the guest during the build"`
	CAFile     string `env:"CA_FILE" in:"build provision base push inspect images build-all plan" help:"PEM file of further certificate authorities: downloads, the registry, the guest during the build"`
	HTTPProxy  string `env:"HTTP_PROXY" in:"build provision base build-all plan" help:"proxy for HTTP: downloads, and the guest during the build"`
	HTTPSProxy string `env:"HTTPS_PROXY" in:"build provision base build-all plan" help:"proxy for HTTPS, likewise"`
	NoProxy    string `env:"NO_PROXY" in:"build provision base build-all plan" help:"hosts that are reached without a proxy, likewise"`
	PackerLog  string `env:"PACKER_LOG, default=1" in:"build provision build-all" kind:"bool" help:"1: Packer writes its debug log into the work folder; 0: it does not"`
}

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

// Field describes one setting for flags and for documents.
type Field struct {
	Env, Flag, Default, Help string
	Bool, Secret             bool
	commands                 []string
	index                    int // in Settings
}

// Value is the setting's text in s; a secret's is masked.
func (f Field) Value(s Settings) string { return fmt.Sprint(reflect.ValueOf(s).Field(f.index)) }

// In says whether the command reads the setting.
func (f Field) In(command string) bool { return slices.Contains(f.commands, command) }

// Fields lists every setting in the order of Settings.
func Fields() []Field { return slices.Clone(fields()) }

// fields reads the tags once.
var fields = sync.OnceValue(func() []Field {
	t := reflect.TypeFor[Settings]()
	fields := make([]Field, 0, t.NumField())
	for i := range t.NumField() {
		sf := t.Field(i)
		name, def, _ := strings.Cut(sf.Tag.Get("env"), ", default=")
		fields = append(fields, Field{
			Env:      name,
			Flag:     strings.ToLower(strings.ReplaceAll(name, "_", "-")),
			Default:  def,
			Help:     sf.Tag.Get("help"),
			Bool:     sf.Tag.Get("kind") == "bool",
			Secret:   sf.Type == reflect.TypeFor[Secret](),
			commands: strings.Fields(sf.Tag.Get("in")),
			index:    i,
		})
	}
	return fields
})

// Read reads the settings: flags (by variable name) win over the environment,
// and an empty variable counts as one that is not set, as Kubernetes and
// GitHub Actions leave many.
func Read(ctx context.Context, flags map[string]string, environ func(string) (string, bool)) (Settings, error) {
	if environ == nil {
		environ = os.LookupEnv
	}
	lookup := lookuper(func(key string) (string, bool) {
		if v, ok := flags[key]; ok {
			return v, true
		}
		v, ok := environ(key)
		if !ok && strings.HasSuffix(key, "_PROXY") { // curl's and apt's spelling
			v, ok = environ(strings.ToLower(key))
		}
		return v, ok && v != ""
	})
	if old(lookup) {
		return Settings{}, Mistakes{"REGISTRY_USER: is not set, but USERNAME and PASSWORD are: rename them to REGISTRY_USER and REGISTRY_PASS"}
	}
	var s Settings
	if err := envconfig.ProcessWith(ctx, &envconfig.Config{Target: &s, Lookuper: lookup}); err != nil {
		return Settings{}, fmt.Errorf("reading the settings: %w", err)
	}
	return s, nil
}

// old says whether the registry's account has the names that CrownLabs' former
// builder gave it. They are not taken over: a USERNAME and a PASSWORD may be for
// anything.
func old(l lookuper) bool {
	for _, name := range []string{"TARGET_REGISTRY", "USERNAME", "PASSWORD"} {
		if _, set := l(name); !set {
			return false
		}
	}
	_, user := l("REGISTRY_USER")
	return !user
}

// Only returns the settings with what the command does not read at its
// default.
func (s Settings) Only(command string) Settings {
	unset, err := Read(context.Background(), nil, func(string) (string, bool) { return "", false })
	if err != nil {
		panic(err) // the tags are wrong: every test fails
	}
	to, from := reflect.ValueOf(&unset).Elem(), reflect.ValueOf(s)
	for _, f := range Fields() {
		if f.In(command) {
			to.Field(f.index).Set(from.Field(f.index))
		}
	}
	return unset
}

// With returns the settings with values for some variables.
func (s Settings) With(values map[string]string) Settings {
	to := reflect.ValueOf(&s).Elem()
	for _, f := range fields() {
		if v, ok := values[f.Env]; ok {
			to.Field(f.index).SetString(v)
		}
	}
	return s
}

type lookuper func(string) (string, bool)

func (l lookuper) Lookup(key string) (string, bool) { return l(key) }
