package testkit

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Kube is Kubernetes' API server with an etcd of its own.
type Kube struct {
	module, dir, kubectl string
	accounts             string // file of the key that signs service accounts' tokens
}

// Users of a Kube: one who may do all, and the kubelet of a node called node.
const (
	Admin   = "admin"
	Kubelet = "system:node:node"
)

// StartKube starts the API server that the module (a folder) pins, at an address or,
// where that is empty, at a free port of loopback. It ends with the test.
func StartKube(t testing.TB, module, address string, args ...string) *Kube {
	t.Helper()
	dir := t.TempDir()
	if address == "" {
		address = FreeAddress(t)
	}
	k := &Kube{module: module, dir: dir, kubectl: Tool(t, module, "kubectl"), accounts: filepath.Join(dir, "accounts.pem")}
	etcd, peer := "http://"+FreeAddress(t), "http://"+FreeAddress(t)
	k.Serve(t, "go.etcd.io/etcd/server/v3", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)

	writeKey(t, k.accounts, newKey(t))
	var tokens strings.Builder
	for user, group := range map[string]string{Admin: "system:masters", Kubelet: "system:nodes"} {
		token := rand.Text()
		fmt.Fprintf(&tokens, "%s,%s,%s,%s\n", token, user, user, group)
		config := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: me, user: {token: %s}}]
contexts: [{name: here, context: {cluster: it, user: me}}]
current-context: here
`, address, filepath.Join(dir, "apiserver.crt"), token)
		require.NoError(t, os.WriteFile(k.Config(user), []byte(config), 0o600))
	}
	list := filepath.Join(dir, "tokens.csv")
	require.NoError(t, os.WriteFile(list, []byte(tokens.String()), 0o600))
	ip, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	k.Serve(t, "kube-apiserver", append([]string{
		"--etcd-servers", etcd, "--bind-address", ip, "--secure-port", port, "--cert-dir", dir,
		"--advertise-address", ip, "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/24",
		"--authorization-mode", "Node,RBAC", "--token-auth-file", list, "--service-account-issuer", "https://test.invalid",
		"--service-account-key-file", k.accounts, "--service-account-signing-key-file", k.accounts,
	}, args...)...)
	require.Eventually(t, func() bool { _, err := k.Ctl("", "get", "--raw", "/readyz"); return err == nil }, 2*time.Minute, time.Second)
	return k
}

// Config is the kubeconfig of a user.
func (k *Kube) Config(user string) string {
	return filepath.Join(k.dir, strings.ReplaceAll(user, ":", "-")+".yaml")
}

// AccountsKey is the file of the key that signs service accounts' tokens.
func (k *Kube) AccountsKey() string { return k.accounts }

// Serve starts one of the module's programs, which ends with the test. A test that
// failed shows the end of its output.
func (k *Kube) Serve(t testing.TB, name string, args ...string) {
	t.Helper()
	ServeProgram(t, Tool(t, k.module, name), args...)
}

// ServeProgram does so with any program.
func ServeProgram(t testing.TB, program string, args ...string) {
	t.Helper()
	name := filepath.Base(program)
	log := filepath.Join(t.TempDir(), name+".log")
	f, err := os.Create(log)
	require.NoError(t, err)
	defer f.Close()
	c := exec.Command(program, args...)
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill() // it keeps nothing that another test needs
		_ = c.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("%s: …%s", name, text[max(0, len(text)-4000):])
		}
	})
}

// Ctl runs kubectl as the one who may do all, and returns what it prints.
func (k *Kube) Ctl(stdin string, args ...string) (string, error) {
	c := k.command(context.Background(), args...)
	c.Stdin = strings.NewReader(stdin)
	var errors strings.Builder
	c.Stderr = &errors
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errors.String())
	}
	return string(out), err
}

// Until runs kubectl until it prints the words, and says whether it did.
func (k *Kube) Until(ctx context.Context, words string, args ...string) bool {
	ctx, cancel := context.WithCancel(ctx)
	c := k.command(ctx, args...)
	out, err := c.StdoutPipe()
	if err != nil || c.Start() != nil {
		cancel()
		return false
	}
	said, found := "", false
	for lines := bufio.NewScanner(out); !found && lines.Scan(); {
		said += lines.Text() + "\n"
		found = strings.Contains(said, words)
	}
	cancel()
	_ = c.Wait()
	return found
}

func (k *Kube) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, k.kubectl, args...)
	c.Env = append(os.Environ(), "HOME="+k.dir, "KUBECONFIG="+k.Config(Admin))
	return c
}
