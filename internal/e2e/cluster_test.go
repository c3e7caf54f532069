//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// A cluster of one node on this host: Kubernetes' own programs, compiled from
// the Go proxy, and Debian's containerd, in namespaces of their own for mounts,
// processes and the network, which has no way out.

const (
	kubernetes = "../../.ci/nightly" // the module that pins its programs

	nodeIP       = "10.77.0.1"
	images       = nodeIP + ":5000" // a registry that everybody may read and write
	labs         = nodeIP + ":5001" // one that wants a login
	web          = nodeIP + ":8000" // the base image, and the playbooks at /playbooks
	kubernetesIP = nodeIP + ":6443"
)

// inCluster is, in the process that has the cluster's namespaces, a folder that
// outlives them.
const inCluster = "DISKFORGE_TEST_IN_CLUSTER"

// enter runs the test again in the cluster's namespaces and returns the folder, or
// returns an empty one after that. Where no cluster can be, the test is skipped.
func enter(t *testing.T) (dir string) {
	t.Helper()
	if dir = os.Getenv(inCluster); dir != "" {
		return dir
	}
	skip := func(why string) { t.Skip("SKIPPED, nothing was tested: " + why) }
	if os.Geteuid() != 0 {
		skip("a kubelet takes root")
	}
	for _, program := range []string{"containerd", "runc", "catatonit", "/usr/lib/cni/bridge", "docker-registry", "mmdebstrap"} {
		if _, err := exec.LookPath(program); err != nil {
			skip("there is no " + program + ": task e2e:cluster installs it")
		}
	}
	unshare := []string{"--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--propagation", "private"}
	if out, err := exec.Command("unshare", append(unshare, "true")...).CombinedOutput(); err != nil {
		skip(fmt.Sprintf("no namespaces here: %v: %s", err, out))
	}
	dir = t.TempDir()
	group := "diskforge-" + strconv.Itoa(os.Getpid())
	makeCgroups(t, group)
	for _, program := range []string{"deviceplugin", "go.etcd.io/etcd/server/v3", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"} {
		testkit.Tool(t, kubernetes, program) // compiled while there is a way out
	}
	rootfs(t)
	tools := start(t, nil, diskforge(t), "tools")
	require.Zero(t, tools.wait(20*time.Minute), tools.errors())
	base := os.Getenv("DISKFORGE_TEST_BASE")
	if base == "" {
		r := start(t, nil, diskforge(t), "base")
		require.Zero(t, r.wait(20*time.Minute), r.errors())
		base = r.lastLine()
	}

	// Process 1 ends everybody's children, and everything ends with it.
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := exec.CommandContext(ctx, "unshare", append(unshare, "catatonit", "--", os.Args[0], "-test.run="+flag.Lookup("test.run").Value.String(), "-test.v", "-test.timeout=150m")...)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o755))
	c.Env = append(os.Environ(), inCluster+"="+dir, "TMPDIR="+filepath.Join(dir, "tmp"), "DISKFORGE_TEST_CGROUP="+group, "DISKFORGE_TEST_BASE="+base)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, c.Run(), "in the cluster")
	return ""
}

// makeCgroups makes the cgroup of all pods, and deletes it, empty, with the test.
func makeCgroups(t *testing.T, group string) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	parents := []string{root}
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil { // version 1: a tree for each controller
		parents, err = filepath.Glob(root + "/*")
		require.NoError(t, err)
	}
	for _, parent := range parents {
		if info, err := os.Lstat(parent); err != nil || !info.IsDir() { // a controller's other name
			continue
		}
		dir := filepath.Join(parent, group)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("SKIPPED, nothing was tested: no cgroups here: %v", err)
		}
		t.Cleanup(func() {
			var all []string
			_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, _ error) error {
				if d != nil && d.IsDir() {
					all = append([]string{path}, all...)
				}
				return nil
			})
			for _, d := range all { // the last processes may still be ending
				assert.Eventually(t, func() bool { return syscall.Rmdir(d) == nil }, 30*time.Second, 100*time.Millisecond, d)
			}
		})
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // in version 1 a new one has none
			if text, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), text, 0o644)
			}
		}
	}
}

// rootfs is the file of the toolbox's Debian: the packages that ci/toolbox.go names.
func rootfs(t *testing.T) string {
	t.Helper()
	source, err := parser.ParseFile(token.NewFileSet(), "../../ci/toolbox.go", nil, 0)
	require.NoError(t, err)
	var packages []string
	ast.Inspect(source, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "packages" {
			for _, e := range v.Values[0].(*ast.CompositeLit).Elts {
				p, err := strconv.Unquote(e.(*ast.BasicLit).Value)
				require.NoError(t, err)
				packages = append(packages, p)
			}
		}
		return true
	})
	require.Contains(t, packages, "qemu-system-x86")
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	options := []string{"--quiet", "--variant=minbase", "--include=" + strings.Join(packages, ","), `--customize-hook=echo diskforge:x:1000:1000::/work:/usr/sbin/nologin >>"$1/etc/passwd"`}
	key := sha256.Sum256([]byte(strings.Join(options, " ")))
	file := filepath.Join(cache, "diskforge", "cluster", "toolbox-"+hex.EncodeToString(key[:])[:12]+".tar.gz")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	fresh := file + ".new.tar.gz"
	t.Log("making the toolbox's Debian, once")
	out, err := exec.Command("mmdebstrap", append(options, "trixie", fresh)...).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Rename(fresh, file))
	return file
}

// cluster is one that runs.
type cluster struct {
	*testkit.Kube
	dir string
	ca  *testkit.Authority
}

// network is what the node has in place of this host's folders and settings.
const network = `
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p "$1/var" "$1/work" "$1/kubelet" "$1/sysctl" /run/containerd
mount -t overlay overlay -o lowerdir=/var,upperdir="$1/var",workdir="$1/work" /var
mkdir -p /var/lib/kubelet
mount --bind "$1/kubelet" /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
# What a kubelet would set of the whole host's kernel it sets of these files.
while read -r file value; do
	echo "$value" >"$1/sysctl/${file##*/}"
	mount --bind "$1/sysctl/${file##*/}" /proc/sys/$file
done <<-END
	vm/overcommit_memory 1
	vm/panic_on_oom 0
	kernel/panic 10
	kernel/panic_on_oops 1
	kernel/keys/root_maxkeys 1000000
	kernel/keys/root_maxbytes 25000000
END
ip link set lo up
ip link add node0 type bridge
ip address add ` + nodeIP + `/24 dev node0
ip link set node0 up
ip route add default dev node0 # a kubelet wants one
echo 1 >/proc/sys/net/ipv4/ip_forward
`

const containerdConfig = `
version = 2
root = "%[1]s/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + images + `/pause:1"
restrict_oom_score_adj = true
device_ownership_from_security_context = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "%[1]s/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "%[1]s/certs.d"
`

const podNetwork = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods0", "isGateway": true,
"ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.78.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

const kubeletConfig = `
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /%[2]s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 1%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
makeIPTablesUtilChains: false
podLogsDir: %[1]s/logs
volumePluginDir: %[1]s/plugins
`

// startCluster starts one in namespaces that have nothing yet. Its default namespace
// takes restricted pods alone and has the secret of deploy/registry-secret.yaml.
func startCluster(t *testing.T, dir string) *cluster {
	t.Helper()
	out, err := exec.Command("sh", "-euc", network, "sh", dir).CombinedOutput()
	require.NoError(t, err, string(out))
	c := &cluster{dir: dir, ca: testkit.NewAuthority(t)}
	put := func(file, text string, args ...any) string {
		path := filepath.Join(dir, file)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, text, args...), 0o644))
		return path
	}

	cert, key := c.ca.Issue(t, nodeIP)
	testkit.StartRegistry(t, testkit.RegistryOptions{Address: images, Cert: cert, Key: key})
	users, err := exec.Command("htpasswd", "-Bbn", "me", secret).Output()
	require.NoError(t, err)
	testkit.StartRegistry(t, testkit.RegistryOptions{Address: labs, Cert: cert, Key: key, Htpasswd: put("users", "%s", users)})
	for _, address := range []string{images, labs} {
		put("certs.d/"+address+"/hosts.toml", "server = \"https://%[1]s\"\n[host.\"https://%[1]s\"]\nca = %[2]q\n", address, c.ca.File)
	}
	t.Setenv("SSL_CERT_FILE", c.ca.File) // of this process and of the diskforge that it starts
	c.push(t)
	c.serve(t)

	put("cni/pods.conflist", "%s", podNetwork)
	testkit.ServeProgram(t, "containerd", "--config", put("containerd.toml", containerdConfig, dir))
	c.Kube = testkit.StartKube(t, kubernetes, kubernetesIP, "--enable-admission-plugins", "NodeRestriction",
		"--kubelet-preferred-address-types", "InternalIP")
	c.Serve(t, "kube-controller-manager", "--kubeconfig", c.Config(testkit.Admin), "--leader-elect=false",
		"--bind-address", "127.0.0.1", "--service-account-private-key-file", c.AccountsKey())
	c.Serve(t, "kube-scheduler", "--kubeconfig", c.Config(testkit.Admin), "--leader-elect=false", "--bind-address", "127.0.0.1")
	c.Serve(t, "kubelet", "--config", put("kubelet.yaml", kubeletConfig, dir, os.Getenv("DISKFORGE_TEST_CGROUP")),
		"--kubeconfig", c.Config(testkit.Kubelet), "--hostname-override", "node", "--node-ip", nodeIP, "--cert-dir", filepath.Join(dir, "pki"), "--v", "2")
	require.Eventually(t, func() bool {
		_, err := os.Stat("/var/lib/kubelet/device-plugins/kubelet.sock")
		return err == nil
	}, 2*time.Minute, 100*time.Millisecond)
	c.Serve(t, "deviceplugin")
	require.Eventually(t, func() bool {
		ready, _ := c.Ctl("", "get", "node", "node", "--output", `jsonpath={.status.conditions[?(@.type=="Ready")].status}/{.status.allocatable.devices\.kubevirt\.io/kvm}`)
		return ready == "True/100"
	}, 2*time.Minute, time.Second)
	c.ctl(t, "", "label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted")
	c.login(t, "default")
	return c
}

// push pushes the pause image, and the Job's to both registries: as the Dagger module
// makes it, out of Debian's packages, Packer and its plugins, this diskforge and its
// playbooks.
func (c *cluster) push(t *testing.T) {
	t.Helper()
	layer := func(script string, args ...string) v1.Layer {
		dir := t.TempDir()
		tar := filepath.Join(t.TempDir(), "layer.tar")
		out, err := exec.Command("sh", append([]string{"-euc", "cd \"$1\"; shift\n" + script, "sh", dir}, args...)...).CombinedOutput()
		require.NoError(t, err, string(out))
		out, err = exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "-cf", tar, ".").CombinedOutput()
		require.NoError(t, err, string(out))
		l, err := tarball.LayerFromFile(tar)
		require.NoError(t, err)
		return l
	}
	to := func(reference string, config v1.Config, layers ...v1.Layer) {
		image, err := mutate.AppendLayers(empty.Image, layers...)
		require.NoError(t, err)
		file, err := image.ConfigFile()
		require.NoError(t, err)
		file.Architecture, file.OS, file.Config = "amd64", "linux", config
		image, err = mutate.ConfigFile(image, file)
		require.NoError(t, err)
		ref, err := name.ParseReference(reference)
		require.NoError(t, err)
		require.NoError(t, remote.Write(ref, image, remote.WithAuth(&authn.Basic{Username: "me", Password: secret})))
	}
	to(images+"/pause:1", v1.Config{Entrypoint: []string{"/catatonit", "-P"}}, layer(`cp /usr/bin/catatonit .`))

	debian, err := tarball.LayerFromFile(rootfs(t))
	require.NoError(t, err)
	tools := start(t, nil, diskforge(t), "tools")
	require.Zero(t, tools.wait(20*time.Minute), tools.errors())
	program := filepath.Join(t.TempDir(), "diskforge")
	compiled := exec.Command("go", "build", "-trimpath", "-tags", "toolbox", "-o", program, ".")
	compiled.Dir = root(t)
	out, err := compiled.CombinedOutput()
	require.NoError(t, err, string(out))
	of := []v1.Layer{debian, layer(`
install -d boot usr/local/bin usr/local/lib usr/local/share/diskforge/ansible
install -d -m 777 work
cp /boot/vmlinuz-*-cloud-amd64 boot/vmlinuz-probe
chmod 644 boot/vmlinuz-probe
cp -r "$1" usr/local/lib/diskforge
cp "$2" usr/local/bin/diskforge
for part in ansible.cfg playbooks roles tests; do cp -r "$3/$part" usr/local/share/diskforge/ansible; done
`, tools.lastLine(), program, filepath.Join(root(t), "ansible"))}
	config := v1.Config{User: "1000:1000", WorkingDir: "/work", Entrypoint: []string{"diskforge", "build"}, Env: []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/work",
		"DISKFORGE_TOOLS_DIR=/usr/local/lib/diskforge", "DISKFORGE_THROWAWAY=1", "OUTPUT_DIR=/work/out", "CACHE_DIR=/work/cache",
	}}
	to(images+"/diskforge:1", config, of...)
	// An administrator with an authority of its own has it in the image.
	trusting := append(of, layer(`install -d etc/ssl/certs; cat /etc/ssl/certs/ca-certificates.crt "$1" >etc/ssl/certs/ca-certificates.crt`, c.ca.File))
	to(images+"/diskforge:site", config, trusting...)
	to(labs+"/diskforge:site", config, trusting...)
}

// serve serves the base image and a repository of playbooks by HTTPS.
func (c *cluster) serve(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	put := func(file, text string) {
		path := filepath.Join(tree, "provisioning", "virtual-machines", "ansible", file) // where CrownLabs has them
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	for file, text := range familyTree {
		put(file, text)
	}
	put("failing.yml", failing)
	for _, args := range [][]string{
		{"ln", "-s", os.Getenv("DISKFORGE_TEST_BASE"), filepath.Join(dir, "base.qcow2")},
		{"sh", "-euc", `cd "$1"; sha256sum base.qcow2 >SHA256SUMS`, "sh", dir},
		{"git", "-C", tree, "init", "--quiet", "--initial-branch", "master"},
		{"git", "-C", tree, "add", "."},
		{"git", "-C", tree, "-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "--quiet", "--message", "playbooks"},
		{"git", "clone", "--quiet", "--bare", tree, filepath.Join(dir, "playbooks")},
		{"git", "-C", filepath.Join(dir, "playbooks"), "config", "uploadpack.allowFilter", "true"},
		{"git", "-C", filepath.Join(dir, "playbooks"), "config", "uploadpack.allowAnySHA1InWant", "true"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", args, out)
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.Handle("/playbooks/", &cgi.Handler{Path: "/usr/lib/git-core/git-http-backend", Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}})
	s := &http.Server{Addr: web, Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.ListenAndServeTLS(c.ca.Issue(t, nodeIP)) }()
	t.Cleanup(func() { s.Close() })
}

// ctl is kubectl, which must succeed.
func (c *cluster) ctl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Ctl(stdin, args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// login makes the secrets of a namespace: the one that deploy/job.yaml names, and one
// for the node, which pulls from the same registry.
func (c *cluster) login(t *testing.T, namespace string) {
	t.Helper()
	c.ctl(t, secret, "create", "secret", "generic", "diskforge-registry", "--namespace", namespace, "--type", "kubernetes.io/basic-auth",
		"--from-literal", "username=me", "--from-file", "password=/dev/stdin")
	c.ctl(t, "", "create", "secret", "docker-registry", "pull", "--namespace", namespace, "--docker-server", labs,
		"--docker-username", "me", "--docker-password", secret)
}
