package engine

import (
	"context"
	"net"
	"path/filepath"
	"strings"

	"dagger.io/dagger"

	"github.com/netgroup-polito/diskforge/internal/base"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// inputs are the arguments of the module's build function. Text and switches
// are passed as they were given; what is a file here travels as one.
type inputs struct {
	text  map[string]string
	flags map[string]bool
	files map[string]string // argument to path on this host
	dirs  map[string]string // likewise, folders
	// secrets are files that no layer and no log may have.
	secrets map[string]string
}

// argument is the module's name of a setting.
func argument(f settings.Field) string {
	var name strings.Builder
	for n, word := range strings.Split(strings.TrimPrefix(f.Flag, "qcow2-"), "-") {
		if n > 0 {
			word = strings.ToUpper(word[:1]) + word[1:]
		}
		name.WriteString(word)
	}
	return name.String()
}

// text are the settings that travel as text, by argument. Defaults stay at
// home: what `dagger call build` made without them is the same build.
func text(s settings.Settings) map[string]string {
	all := map[string]string{}
	for _, f := range settings.Fields() {
		if value := f.Value(s); f.In("build") && f.Engine == "" && !f.Bool && value != f.Default {
			all[argument(f)] = value
		}
	}
	return all
}

// warn tells of settings that were given and are ignored.
func (b *Build) warn() {
	for _, f := range settings.Fields() {
		if why, ok := strings.CutPrefix(f.Engine, "none: "); ok && f.Value(b.Settings) != f.Default {
			b.UI.Warn(f.Env + " has no effect with --engine dagger: " + why)
		}
	}
}

// inputs turns the settings into the function's arguments.
func (b *Build) inputs(ctx context.Context) (inputs, error) {
	s, c := b.Settings, b.Config
	in := inputs{
		text: text(s),
		flags: map[string]bool{
			"baseFromPackages": c.BaseFromPackages, "installDesktopEnvironment": c.Desktop, "bakeUser": c.BakeUser,
			"registryInsecure": c.RegistryInsecure && c.BaseImage.Reference != "",
		},
		files:   map[string]string{"caFile": c.CAFile, "hygieneAllow": c.HygieneAllow},
		dirs:    map[string]string{"ansible": c.AnsibleDir, "baseLayout": c.BaseImage.Layout},
		secrets: map[string]string{"ansibleVaultPassword": s["ANSIBLE_VAULT_PASSWORD_FILE"]},
	}
	if path, ok := strings.CutPrefix(s["EXTRA_VARS"], "@"); ok {
		in.files["extraVarsFile"] = path
		delete(in.text, "extraVars")
	}
	if c.VaultIdentities != "" {
		return in, failure.New("ANSIBLE_VAULT_IDENTITY_LIST names files of this host, which a Dagger engine does not see", "give one password, in ANSIBLE_VAULT_PASSWORD_FILE, or build with --engine host")
	}
	if onLoopback(c.BaseImage.Reference) {
		return in, failure.New("ISO_URL is on this host's loopback, which a Dagger engine's containers do not reach", "name the registry by another address")
	}
	if onLoopback(c.TargetRegistry) {
		return in, failure.New("TARGET_REGISTRY is on this host's loopback, which a Dagger engine's containers do not reach",
			"name it by another address, or give it to dagger call … publish with --registry-service tcp://"+c.TargetRegistry)
	}
	return in, b.localBase(ctx, in)
}

// localBase has a base of this host travel as what it is: the engine sees
// nothing of this host but what it is given.
func (b *Build) localBase(ctx context.Context, in inputs) error {
	url, list := b.Settings["ISO_URL"], b.Config.ISOChecksum.File
	switch image := b.Config.BaseImage; {
	case image.Layout != "":
		in.text["isoChecksum"] = image.Digest
		if image.Digest == "" {
			in.text["isoChecksum"] = "inputs:" + image.Inputs
		}
	case url != "" && !isRemote(url):
		file, err := base.Fetch(ctx, url, b.Config.ISOChecksum, base.DownloadOptions{}, progress.Discard)
		if err != nil {
			return err
		}
		in.files["base"], in.text["isoChecksum"] = file.Path, file.Digest
	case list != "" && !isRemote(list):
		return failure.New("ISO_CHECKSUM names a file of this host, which the engine does not see", "give the list's URL, or the checksum itself")
	default:
		return nil
	}
	delete(in.text, "isoUrl")
	return nil
}

// onLoopback says whether a registry or a reference is on this host's loopback.
func onLoopback(reference string) bool {
	registry, _, _ := strings.Cut(reference, "/")
	host, _, err := net.SplitHostPort(registry)
	if err != nil { // there is no port
		host = registry
	}
	return httpclient.Loopback(host)
}

func isRemote(url string) bool {
	return strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://") || strings.HasPrefix(url, "oci://")
}

// arguments are the inputs as the engine takes them; what was not given is
// left to the module.
func (in inputs) arguments(client *dagger.Client) map[string]any {
	args := map[string]any{}
	for name, value := range in.text {
		args[name] = value
	}
	for name, on := range in.flags {
		if on {
			args[name] = on
		}
	}
	for name, path := range in.files {
		if path != "" {
			args[name] = client.Host().File(absolute(path))
		}
	}
	for name, path := range in.dirs {
		if path != "" {
			args[name] = client.Host().Directory(absolute(path))
		}
	}
	for name, path := range in.secrets {
		if path != "" {
			args[name] = client.Secret("file://" + absolute(path))
		}
	}
	return args
}

// absolute is path from the root: the engine's client has a working directory
// of its own.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
