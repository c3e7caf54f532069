package pipeline

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// secrets are what a build knows and nobody else may: the disk must not hold
// it, and nothing that is shown may repeat it. Of what may be a secret, all is.
func secrets(c settings.Config, password string) []hygiene.Secret {
	found := map[string]string{"the registry's password": password, "SIGNING_PASSWORD": string(c.SigningPassword)}
	for name, address := range map[string]string{
		"ISO_URL": c.ISOURL, "ISO_CHECKSUM": strings.TrimPrefix(c.Checksum, "file:"), "GIT_ANSIBLE_URL": c.GitURL,
		"HTTP_PROXY": c.HTTPProxy, "HTTPS_PROXY": c.HTTPSProxy,
	} {
		addressSecrets(found, name, address)
	}
	for name, value := range c.ExtraVars {
		variableSecrets(found, name, value, false)
	}
	for i, password := range PlaybookOptions(c).Vault.Passwords() {
		found[fmt.Sprintf("a vault's password (%d)", i+1)] = password
	}
	var all []hygiene.Secret
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name] != "" {
			all = append(all, hygiene.Secret{Name: name, Value: found[name]})
		}
	}
	return all
}

// addressSecrets finds the password of a URL, and tokens in its query.
func addressSecrets(found map[string]string, name, address string) {
	u, err := url.Parse(address)
	if err != nil {
		return
	}
	if u.User != nil {
		found["the password in "+name], _ = u.User.Password()
	}
	for key, values := range u.Query() {
		if isSecret(key) {
			found[key+" in "+name] = strings.Join(values, "")
		}
	}
}

// variableSecrets finds the values of a variable that is called like a secret,
// or is part of one that is. A public key is none, whatever it is called.
func variableSecrets(found map[string]string, name string, value any, within bool) {
	within = within || isSecret(name[strings.LastIndexByte(name, '.')+1:])
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			variableSecrets(found, name+"."+key, inner, within)
		}
	case []any:
		for i, inner := range v {
			variableSecrets(found, fmt.Sprintf("%s[%d]", name, i), inner, within)
		}
	case nil, bool:
	default:
		text := fmt.Sprint(v)
		if within && !strings.HasPrefix(text, "ssh-") && !strings.HasPrefix(text, "ecdsa-") {
			found["the extra variable "+name] = text
		}
	}
}

var (
	wordStart  = regexp.MustCompile(`([a-z0-9])([A-Z])`)
	secretWord = regexp.MustCompile(`(?:^|[^a-z])(?:pass|passwd|password|passphrase|secret|token|key|apikey|sig|signature|credential)s?(?:[^a-z]|$)`)
)

// isSecret says whether one of the words of a name is what secrets are called:
// db_password and apiKey are, keyboard_layout is not.
func isSecret(name string) bool {
	return secretWord.MatchString(strings.ToLower(wordStart.ReplaceAllString(name, "${1}_${2}")))
}

// masked is the error without secrets: a task that fails may
// repeat its whole command.
func masked(err error, mask *strings.Replacer) error {
	if err == nil {
		return nil
	}
	f, detailed := failure.In(err)
	if detailed {
		f.What, f.Try = mask.Replace(f.What), mask.Replace(f.Try)
		for i := range f.Lines {
			f.Lines[i] = mask.Replace(f.Lines[i])
		}
	}
	said := mask.Replace(err.Error())
	switch {
	case said == err.Error():
		return err
	case detailed: // what err wraps would say it, but the evidence stays
		return &failure.Error{What: said, Lines: f.Lines, Log: f.Log}
	}
	return errors.New(said)
}
