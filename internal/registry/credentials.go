package registry

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// login returns the credentials for a registry: those of the options or the
// Docker config's. None is no problem.
func (o Options) login(ctx context.Context, registry name.Registry) (authn.AuthConfig, *failure.Error) {
	if o.Username != "" {
		return authn.AuthConfig{Username: o.Username, Password: o.Password}, nil
	}
	login, err := dockerLogin(ctx, registry)
	if err != nil {
		return authn.AuthConfig{}, dockerProblem(err, registry.RegistryStr())
	}
	return login, nil
}

// dockerLogin asks the Docker config and its credential helpers.
func dockerLogin(ctx context.Context, registry name.Registry) (authn.AuthConfig, error) {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, registry)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	login, err := authn.Authorization(ctx, auth)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	return *login, nil
}

// loggedIn says whether the Docker config has a login for the host.
func loggedIn(ctx context.Context, host string) bool {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return false
	}
	login, err := dockerLogin(ctx, registry)
	return err == nil && login != authn.AuthConfig{}
}

// dockerProblem names the file and the key that give no login.
func dockerProblem(err error, registry string) *failure.Error {
	const instead = ", or set REGISTRY_USER and REGISTRY_PASS"
	file, _ := config.Load(os.Getenv("DOCKER_CONFIG")) // err says what is wrong with it
	key, helper := "credsStore", file.CredentialsStore
	if own := file.CredentialHelpers[registry]; own != "" {
		key, helper = "credHelpers", own
	}
	if helper == "" {
		return failure.Wrap(err, "the login for "+registry+" in "+file.Filename+" cannot be read", "correct that file"+instead)
	}
	program := "docker-credential-" + helper
	if _, missing := exec.LookPath(program); missing != nil {
		what := fmt.Sprintf("%s in %s names %s, which is not installed", key, file.Filename, program)
		return &failure.Error{What: what, Try: "take that key out of the file, or install the program" + instead, Err: err}
	}
	return failure.Wrap(err, fmt.Sprintf("%s, which %s in %s names, gives no login for %s", program, key, file.Filename, registry),
		"repair it, or take that key out of the file"+instead)
}
