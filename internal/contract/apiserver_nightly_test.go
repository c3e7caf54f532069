//go:build nightly

package contract_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// apiServer is Kubernetes' own.
type apiServer struct{ *testkit.Kube }

// newAPIServer starts one that has the definitions in crds. Without them the test is
// skipped.
func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	newCluster(t)
	api := &apiServer{testkit.StartKube(t, "../../.ci/nightly", "")}
	require.NoError(t, api.run("", "apply", "--server-side", "-f", crds))
	require.NoError(t, api.run("", "wait", "--for", "condition=Established", "--timeout", "1m", "crd", "--all"))
	for _, name := range []string{"lab-1", "lab-2", "workspace-tea"} {
		require.NoError(t, api.run("", "create", "namespace", name))
	}
	return api
}

// run is kubectl's own error.
func (a *apiServer) run(stdin string, args ...string) error {
	_, err := a.Ctl(stdin, args...)
	return err
}

// apply is what a person does with the objects.
func (a *apiServer) apply(stream string) error {
	return a.run(stream, "apply", "--server-side", "--validate=strict", "-f", "-")
}

// As a user applies them: an API server with the definitions of KubeVirt, CDI and
// CrownLabs takes all objects, twice and from a folder, and refuses each mistake. Their
// controllers and webhooks do not run.
func TestAnAPIServerTakesTheObjectsAndRefusesMistakes(t *testing.T) {
	api := newAPIServer(t)
	for name := range variants {
		t.Run(name, func(t *testing.T) {
			text := asked(t, name)
			require.NoError(t, api.apply(text), text)
			require.NoError(t, api.apply(text), "again")
			require.NoError(t, api.run(text, "diff", "--server-side", "-f", "-"), "what is stored is what was given")
			require.NoError(t, api.run(text, "delete", "-f", "-"))
		})
	}
	t.Run("a folder", func(t *testing.T) {
		r, m := golden(t, ubuntuHints...)
		all, err := r.Manifests(complete(m))
		require.NoError(t, err)
		for _, kustomize := range []bool{false, true} {
			dir, how := t.TempDir(), "-f"
			if kustomize {
				how = "-k"
			}
			require.NoError(t, contract.SaveManifests(dir, all, kustomize))
			require.NoError(t, api.run("", "apply", "--server-side", "--validate=strict", how, dir))
			require.NoError(t, api.run("", "delete", how, dir))
		}
	})
	for right, wrong := range mistakes {
		t.Run(wrong, func(t *testing.T) {
			assert.Error(t, api.run(mistaken(t, right, wrong), "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-"))
		})
	}
}
