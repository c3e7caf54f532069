//go:build nightly

package contract_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// apiServer is a kube-apiserver with an etcd of its own, both on loopback.
type apiServer struct {
	kubectl string
	dir     string // kubectl's home
}

// tools is the module that pins the programs.
const tools = "../../.ci/nightly"

// serve starts a program that the test's end stops, with its output in a file.
func serve(t *testing.T, log, program string, args ...string) {
	t.Helper()
	f, err := os.Create(log)
	require.NoError(t, err)
	defer f.Close()
	c := exec.Command(program, args...)
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill() // both keep nothing that another test needs
		_ = c.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("%s: …%s", filepath.Base(log), text[max(0, len(text)-4000):])
		}
	})
}

// newAPIServer starts one that has the definitions in crds. Without them the test is
// skipped.
func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	newCluster(t)
	dir := t.TempDir()
	etcd, peer := "http://"+testkit.FreeAddress(t), "http://"+testkit.FreeAddress(t)
	serve(t, filepath.Join(dir, "etcd.log"), testkit.Tool(t, tools, "go.etcd.io/etcd/server/v3"), "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	accounts, tokens := filepath.Join(dir, "accounts.pem"), filepath.Join(dir, "tokens.csv")
	require.NoError(t, os.WriteFile(accounts, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
	token := rand.Text()
	require.NoError(t, os.WriteFile(tokens, []byte(token+",test,test,system:masters\n"), 0o600))
	address := testkit.FreeAddress(t)
	_, port, _ := strings.Cut(address, ":")
	serve(t, filepath.Join(dir, "kube-apiserver.log"), testkit.Tool(t, tools, "kube-apiserver"),
		"--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--secure-port", port, "--cert-dir", dir,
		"--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/24",
		"--authorization-mode", "RBAC", "--token-auth-file", tokens, "--service-account-issuer", "https://test.invalid",
		"--service-account-key-file", accounts, "--service-account-signing-key-file", accounts)

	config := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: me, user: {token: %s}}]
contexts: [{name: here, context: {cluster: it, user: me}}]
current-context: here
`, address, filepath.Join(dir, "apiserver.crt"), token)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600))
	api := &apiServer{kubectl: testkit.Tool(t, tools, "kubectl"), dir: dir}
	require.Eventually(t, func() bool { return api.run("", "get", "--raw", "/readyz") == nil }, 2*time.Minute, time.Second)
	require.NoError(t, api.run("", "apply", "--server-side", "-f", crds))
	require.NoError(t, api.run("", "wait", "--for", "condition=Established", "--timeout", "1m", "crd", "--all"))
	for _, name := range []string{"lab-1", "lab-2", "workspace-tea"} {
		require.NoError(t, api.run("", "create", "namespace", name))
	}
	return api
}

// run is kubectl's own error.
func (a *apiServer) run(stdin string, args ...string) error {
	c := exec.Command(a.kubectl, args...)
	c.Env = append(os.Environ(), "HOME="+a.dir, "KUBECONFIG="+filepath.Join(a.dir, "config"))
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
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
