package main

import (
	"dagger/diskforge/apt"
	"dagger/diskforge/internal/dagger"
)

// packages are the toolbox's, from Debian. The collections of the full ansible
// package are what CrownLabs' playbooks use. There are no guestfs-tools, which
// bring a kernel and more: a disk whose file systems are not ext needs them, and
// is refused by the hygiene gate.
var packages = []string{
	"ansible", "ca-certificates", "git", "openssh-client", "qemu-system-x86", "qemu-utils", "xorriso",
	// For a base image from packages.
	"debian-archive-keyring", "mmdebstrap",
	// For that and for the hygiene gate, which reads disks with them.
	"e2fsprogs", "fdisk", "util-linux",
	// For verify --full.
	"ovmf",
}

const (
	suite = "trixie" // of the base image

	user = "1000:1000" // who the stages run as, by number: Kubernetes wants proof that it is not root
	home = "/work"     // the one place that this user writes to, and its home

	program   = "/usr/local/bin/diskforge"
	toolsDir  = "/usr/local/lib/diskforge"
	playbooks = "/usr/local/share/diskforge/ansible" // ansible/toolbox.go reads it
	cacheDir  = "/cache"
)

// Toolbox is the container that every stage runs in: Packer with its plugins, goss, QEMU, Ansible and diskforge, on Debian 13.
func (m *Diskforge) Toolbox() (*dagger.Container, error) {
	box, err := m.machine()
	if err != nil {
		return nil, err
	}
	return m.withPlaybooks(box), nil
}

// Job is the toolbox with `diskforge build` as its entrypoint and without root, for a Kubernetes Job; its results and its cache go below /work.
func (m *Diskforge) Job() (*dagger.Container, error) {
	box, err := m.Toolbox()
	if err != nil {
		return nil, err
	}
	return box.
		WithUser(user).
		WithEnvVariable("OUTPUT_DIR", home+"/out").
		WithEnvVariable("CACHE_DIR", home+"/cache").
		WithEntrypoint([]string{"diskforge", "build"}).
		WithoutDefaultArgs().
		WithLabel("org.opencontainers.image.title", "diskforge").
		WithLabel("org.opencontainers.image.source", "https://github.com/netgroup-polito/diskforge"), nil
}

// machine is the toolbox without the playbooks. What changes least is its
// first layer.
func (m *Diskforge) machine() (*dagger.Container, error) {
	box, err := m.debian(dag.Container().From(m.BaseImage))
	if err != nil {
		return nil, err
	}
	return box.
		WithExec(install(packages...)).
		// The kernel that proves whether KVM works: its file alone, not the modules.
		WithFile("/boot/vmlinuz-probe", m.kernel(box)).
		// ssh starts for nobody whom /etc/passwd does not have.
		WithExec([]string{"sh", "-euc", `echo "diskforge:x:1000:1000::$1:/usr/sbin/nologin" >>/etc/passwd
echo "diskforge:x:1000:" >>/etc/group
install -d -o 1000 -g 1000 "$@"`, "sh", home, cacheDir}).
		WithDirectory(toolsDir, m.tools()).
		WithFile(program, m.compile()).
		WithEnvVariable("DISKFORGE_TOOLS_DIR", toolsDir).
		WithEnvVariable("CACHE_DIR", cacheDir).
		WithEnvVariable("HOME", home).
		WithEnvVariable("LANG", "C.UTF-8").
		WithWorkdir(home), nil
}

// withPlaybooks adds the playbooks that diskforge brings along, and nothing
// else of their folder: what the tree holds is its revision.
func (m *Diskforge) withPlaybooks(box *dagger.Container) *dagger.Container {
	tree := m.Source.Directory("ansible").Filter(dagger.DirectoryFilterOpts{
		Include: []string{"ansible.cfg", "playbooks", "roles", "tests"},
	})
	return box.WithDirectory(playbooks, tree, dagger.ContainerWithDirectoryOpts{Owner: user})
}

// debian lets apt ask the mirror, where one is given.
func (m *Diskforge) debian(box *dagger.Container) (*dagger.Container, error) {
	if m.AptMirror == "" {
		return box, nil
	}
	sources, err := apt.Sources(m.AptMirror, suite)
	if err != nil {
		return nil, err
	}
	return box.
		WithoutFile("/etc/apt/sources.list").
		WithNewFile("/etc/apt/sources.list.d/debian.sources", sources), nil
}

// install is the command that installs packages and leaves nothing else.
func install(packages ...string) []string {
	const script = `export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -qy install --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log`
	return append([]string{"sh", "-euc", script, "install"}, packages...)
}

// kernel is the newest cloud kernel of Debian.
func (m *Diskforge) kernel(debian *dagger.Container) *dagger.File {
	const script = `apt-get -q update
image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p')
apt-get -qy -o APT::Sandbox::User=root download "$image"
dpkg-deb -x "$image"_*.deb tree
mv tree/boot/vmlinuz-* vmlinuz
chmod 644 vmlinuz`
	return debian.WithWorkdir("/kernel").WithExec([]string{"sh", "-euc", script}).File("vmlinuz")
}

// golang is the Go image with the caches of modules and of compiled packages;
// go.sum and Go's own hashes guard both.
func (m *Diskforge) golang() *dagger.Container {
	return dag.Container().From(m.GoImage).
		WithEnvVariable("CGO_ENABLED", "0").
		WithEnvVariable("GOFLAGS", "-buildvcs=false").
		WithEnvVariable("GOMODCACHE", "/go/pkg/mod").
		WithEnvVariable("GOCACHE", "/root/.cache/go-build").
		WithMountedCache("/go/pkg/mod", dag.CacheVolume("diskforge-go-modules")).
		WithMountedCache("/root/.cache/go-build", dag.CacheVolume("diskforge-go-build"))
}

// compile is the diskforge program without its playbooks.
func (m *Diskforge) compile() *dagger.File {
	source := m.Source.Filter(dagger.DirectoryFilterOpts{
		Include: []string{"go.mod", "go.sum", "main.go", "internal", "packer", "ansible/toolbox.go", "deploy/embed.go", "deploy/job.yaml"},
		Exclude: []string{"**/*_test.go", "**/testdata"},
	})
	return m.golang().
		WithDirectory("/src", source).
		WithWorkdir("/src").
		WithExec([]string{"go", "build", "-trimpath", "-tags", "toolbox", "-ldflags", "-s -w", "-o", "/out/diskforge", "."}).
		File("/out/diskforge")
}

// tools are Packer with its plugins and goss, compiled by diskforge from the
// sources that its go.sum pins.
func (m *Diskforge) tools() *dagger.Directory {
	return m.golang().
		WithFile(program, m.compile()).
		WithExec([]string{"sh", "-euc", `mv "$(diskforge tools --cache-dir /tmp/tools)" /out`}).
		Directory("/out")
}
