package engine

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"dagger.io/dagger"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/httpclient"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// inputs are what the module's function build is given: settings by their
// names, and what is a file or a folder here as one. Defaults stay at home:
// what `dagger call build` makes without them is the same build.
type inputs struct {
	set      settings.Settings
	playbook string
	files    map[string]string // argument to path on this host
	dirs     map[string]string // likewise, folders
	secret   string            // file with the password of the vaults
}

// warn tells of settings that were given and are ignored.
func (b *Build) warn() {
	for _, f := range settings.Fields() {
		if why, ok := strings.CutPrefix(f.Engine, "none: "); ok && f.Value(b.Settings) != f.Default {
			b.UI.Warn(f.Env + " has no effect with --engine dagger: " + why)
		}
	}
}

// inputs sorts the settings by how they travel.
func (b *Build) inputs(ctx context.Context) (inputs, error) {
	s, c := b.Settings, b.Config
	in := inputs{
		set: settings.Settings{}, playbook: s["ANSIBLE_PLAYBOOK"], secret: c.VaultPasswordFile,
		files: map[string]string{"caFile": c.CAFile, "hygieneAllow": c.HygieneAllow},
		dirs:  map[string]string{"ansible": c.AnsibleDir, "baseLayout": c.BaseImage.Layout},
	}
	for _, f := range settings.Fields() {
		travels := f.Engine == "" || f.Engine == "address" && f.Env != "PUSH"
		if why, ok := strings.CutPrefix(f.Engine, "refused: "); ok && f.Value(s) != f.Default {
			return in, failure.New(f.Env+" "+why+", or build with --engine host", "")
		}
		if f.In("build") && travels && f.Env != "ANSIBLE_PLAYBOOK" && f.Value(s) != f.Default {
			in.set[f.Env] = f.Value(s)
		}
	}
	if path, ok := strings.CutPrefix(s["EXTRA_VARS"], "@"); ok {
		in.files["extraVars"] = path
		delete(in.set, "EXTRA_VARS")
	}
	if c.VaultIdentities != "" {
		return in, failure.New("ANSIBLE_VAULT_IDENTITY_LIST names files of this host, which a Dagger engine does not see",
			"give one password, in ANSIBLE_VAULT_PASSWORD_FILE, or build with --engine host")
	}
	if c.TagOfDay {
		return in, failure.New("IMAGE_TAG is not set, and a Dagger engine does not ask the registry which tag is free", "set IMAGE_TAG, e.g. "+c.ImageTag)
	}
	for name, reference := range map[string]string{"ISO_URL": c.BaseImage.Reference, "TARGET_REGISTRY": c.TargetRegistry} {
		if registry, _, _ := strings.Cut(reference, "/"); httpclient.Loopback(registry) {
			return in, failure.New(name+" is on this host's loopback, which a Dagger engine's containers do not reach",
				"name the registry by another address, or give it to dagger call with-registry --service tcp://"+c.TargetRegistry)
		}
	}
	return in, b.localBase(ctx, in)
}

// localBase has a base of this host travel as what it is: the engine sees
// nothing of this host but what it is given.
func (b *Build) localBase(ctx context.Context, in inputs) error {
	url := b.Settings["ISO_URL"]
	list, isList := strings.CutPrefix(b.Config.Checksum, "file:")
	switch image := b.Config.BaseImage; {
	case image.Layout != "":
		in.set["ISO_CHECKSUM"] = image.Digest
		if image.Digest == "" {
			in.set["ISO_CHECKSUM"] = "inputs:" + image.Inputs
		}
	case b.Config.BaseKey != "" && image.Reference != "": // the key is here
		one := pipeline.Build{Settings: b.Settings, Config: b.Config, UI: b.UI, Version: b.Version}
		chain, err := one.VerifySignature(ctx, image.Reference, b.Config.BaseKey, nil)
		in.set["ISO_URL"] = "oci://" + chain.Image
		return err
	case url != "" && !isRemote(url):
		file, err := pipeline.BaseFile(ctx, b.Config)
		if err != nil {
			return err
		}
		in.files["base"], in.set["ISO_CHECKSUM"] = file.Path, file.Digest
	case b.Config.BaseKeyring != "": // the keys are here
		sum, err := pipeline.BaseChecksum(ctx, b.Config)
		in.set["ISO_CHECKSUM"] = sum
		return err
	case isList && !isRemote(list):
		return failure.New("ISO_CHECKSUM names a file of this host, which the engine does not see", "give the list's URL, or the checksum itself")
	default:
		return nil
	}
	delete(in.set, "ISO_URL")
	return nil
}

func isRemote(url string) bool {
	return slices.ContainsFunc([]string{"http://", "https://", "oci://"}, func(scheme string) bool { return strings.HasPrefix(url, scheme) })
}

// arguments are the inputs as the engine takes them; what was not given is
// left to the module.
func (in inputs) arguments(client *dagger.Client) map[string]any {
	set := []string{}
	for _, f := range settings.Fields() {
		if text, given := in.set[f.Env]; given {
			set = append(set, f.Env+"="+text)
		}
	}
	args := map[string]any{"ansiblePlaybook": in.playbook, "set": set}
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
	if in.secret != "" {
		args["vaultPassword"] = client.Secret("file://" + absolute(in.secret))
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
