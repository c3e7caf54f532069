package settings

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sethvargo/go-envconfig"
)

// Check checks what the table cannot: settings together, or by the rules of what they
// are for. It completes the configuration and adds what is wrong to the mistakes.
type Check func(*Config, *Mistakes)

// Parse checks every setting and returns what they mean, or all mistakes at once.
func Parse(s Settings, further ...Check) (c Config, err error) {
	var mistakes Mistakes
	err = envconfig.ProcessWith(context.Background(), &envconfig.Config{
		Target: &c, Lookuper: envconfig.MapLookuper(s), Mutators: []envconfig.Mutator{envconfig.MutatorFunc(mistakes.read)},
	})
	if err != nil {
		return Config{}, fmt.Errorf("reading the settings: %w", err)
	}
	for _, check := range append([]Check{folders, accounts}, further...) {
		check(&c, &mistakes)
	}
	if len(mistakes) > 0 {
		return c, mistakes
	}
	return c, nil
}

func folders(c *Config, wrong *Mistakes) {
	if c.AnsibleDir != "" && c.AnsibleDir == c.OutputDir {
		wrong.Add("OUTPUT_DIR", "is also ANSIBLE_DIR: give results a folder of their own, e.g. out")
	}
	if c.CacheDir != "" {
		return
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		wrong.Add("CACHE_DIR", "is not set and there is no default (%v): set it to a folder", err)
		return
	}
	c.CacheDir = filepath.Join(dir, "diskforge")
}

func accounts(c *Config, wrong *Mistakes) {
	if c.BuildUser == c.VMUser {
		wrong.Add("BUILD_USER", "%q is also VM_USER: give another name, or set BAKE_USER=true to provision as VM_USER", c.BuildUser)
	}
	switch given := c.RegistryPass != "" || c.RegistryPassFile != ""; {
	case c.RegistryPass != "" && c.RegistryPassFile != "":
		wrong.Add("REGISTRY_PASS", "is set, and so is REGISTRY_PASS_FILE: choose one")
	case c.RegistryUser != "" && !given:
		wrong.Add("REGISTRY_PASS", "is not set, but REGISTRY_USER is: set REGISTRY_PASS or REGISTRY_PASS_FILE")
	case c.RegistryUser == "" && given:
		wrong.Add("REGISTRY_USER", "is not set, but its password is: set REGISTRY_USER")
	}
}

// Mistakes are all that is wrong with the settings, one line each.
type Mistakes []string

// Error joins the lines.
func (m Mistakes) Error() string { return strings.Join(m, "\n") }

// Add adds what is wrong with a setting.
func (m *Mistakes) Add(env, format string, args ...any) {
	*m = append(*m, env+": "+fmt.Sprintf(format, args...))
}

// Check adds what the owner of a form says of a setting. Joined errors are
// several mistakes; without a name, each names its setting itself.
func (m *Mistakes) Check(env string, err error) {
	switch many, joined := err.(interface{ Unwrap() []error }); {
	case err == nil:
	case joined:
		for _, one := range many.Unwrap() {
			m.Check(env, one)
		}
	case env == "":
		*m = append(*m, err.Error())
	default:
		text := err.Error() // it may be told where nobody puts the name before it
		text = strings.TrimPrefix(strings.TrimPrefix(text, env+": "), env+" ")
		m.Add(env, "%s", text)
	}
}

// read is go-envconfig's hook between the text of a setting and its type. What
// has not its form is a mistake, and counts as not set.
func (m *Mistakes) read(_ context.Context, env, _, _, text string) (string, bool, error) {
	f, _ := By(env)
	if text == "" && f.Default == "" {
		return "", false, nil
	}
	read, err := f.form(text)
	if m.Check(env, err); err != nil && !f.text {
		read = ""
	}
	return read, false, nil
}

// For leaves out mistakes in settings that the command does not read.
func (m Mistakes) For(command string) error {
	left := slices.DeleteFunc(slices.Clone(m), func(mistake string) bool {
		name, _, _ := strings.Cut(mistake, ":")
		f, known := By(name)
		return known && !f.In(command)
	})
	if len(left) == 0 {
		return nil
	}
	return left
}
