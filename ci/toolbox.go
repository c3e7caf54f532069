package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"dagger/diskforge/apt"
	"dagger/diskforge/explain"
	"dagger/diskforge/internal/dagger"
)

// packages are the toolbox's, from Debian. The collections of the full ansible
// package are what CrownLabs' playbooks use. There are no guestfs-tools, which
// bring a kernel and more: a disk whose file systems are not ext needs them, and
// is refused by the hygiene gate.
var packages = []string{
	"ansible", "ca-certificates", "git", "openssh-client", "qemu-system-x86", "qemu-utils", "xorriso",
	// For a base image from packages.
	"debian-archive-keyring", "dosfstools", "mmdebstrap", "mtools",
	// For that and for the hygiene gate, which reads disks with them.
	"e2fsprogs", "fdisk", "util-linux",
	// For verify --full.
	"ovmf",
}

// arm64 are those that others take the place of on an engine of that architecture: a
// toolbox has QEMU and firmware for its own.
var arm64 = map[string]string{"qemu-system-x86": "qemu-system-arm", "ovmf": "qemu-efi-aarch64"}

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
func (m *Diskforge) Toolbox(ctx context.Context) (*dagger.Container, error) {
	box, err := m.machine(ctx)
	if err != nil {
		return nil, err
	}
	return m.withPlaybooks(box), nil
}

// Job is the toolbox with `diskforge build` as its entrypoint and without root, for a Kubernetes Job; its results and its cache go below /work.
func (m *Diskforge) Job(ctx context.Context) (*dagger.Container, error) {
	box, err := m.Toolbox(ctx)
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
func (m *Diskforge) machine(ctx context.Context) (*dagger.Container, error) {
	debian, err := m.debian(dag.Container().From(m.BaseImage))
	if err != nil {
		return nil, err
	}
	compiled, err := m.compile(ctx)
	if err != nil {
		return nil, err
	}
	platform, err := dag.DefaultPlatform(ctx)
	if err != nil {
		return nil, err
	}
	needed := slices.Clone(packages)
	for i, name := range needed {
		if other := arm64[name]; other != "" && strings.HasPrefix(string(platform), "linux/arm64") {
			needed[i] = other
		}
	}
	box, kernel, tools := debian.WithExec(install(needed...)), m.kernel(debian), m.tools(compiled)
	// Side by side: an engine makes what a container is put together from one
	// after another.
	g, side := errgroup.WithContext(ctx)
	g.Go(func() error { _, err := box.Sync(side); return part("the toolbox's packages", err) })
	g.Go(func() error { _, err := kernel.Sync(side); return part("the kernel that proves KVM", err) })
	g.Go(func() error { _, err := tools.Sync(side); return part("Packer, its plugins and goss", err) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return box.
		// The kernel that proves whether KVM works: its file alone, not the modules.
		WithFile("/boot/vmlinuz-probe", kernel).
		// ssh starts for nobody whom /etc/passwd does not have.
		WithExec([]string{"sh", "-euc", `echo "diskforge:x:1000:1000::$1:/usr/sbin/nologin" >>/etc/passwd
echo "diskforge:x:1000:" >>/etc/group
install -d -o 1000 -g 1000 "$@"`, "sh", home, cacheDir}).
		WithDirectory(toolsDir, tools).
		WithFile(program, compiled).
		WithEnvVariable("DISKFORGE_TOOLS_DIR", toolsDir).
		WithEnvVariable("DISKFORGE_THROWAWAY", "1"). // what a stage that failed leaves, nobody sees
		WithEnvVariable("CACHE_DIR", cacheDir).
		WithEnvVariable("HOME", home).
		WithEnvVariable("LANG", "C.UTF-8").
		WithWorkdir(home), nil
}

// part is the error of a part of the toolbox that could not be made.
func part(what string, err error) error {
	return why(err, func(e *dagger.ExecError) string {
		return "making the toolbox: " + explain.Task(what, e.Stdout+"\n"+e.Stderr, e.ExitCode)
	})
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
	if m.Refresh != "" {
		box = box.WithEnvVariable("REFRESH", m.Refresh) // all that is made of it is made anew
	}
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
image=$(apt-cache depends "linux-image-cloud-$(dpkg --print-architecture)" | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p')
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

// compile is the diskforge program without its playbooks. Its version names
// the source: there is no repository here, whose commit Go would take.
func (m *Diskforge) compile(ctx context.Context) (*dagger.File, error) {
	source := m.Source.Filter(dagger.DirectoryFilterOpts{
		Include: []string{"go.mod", "go.sum", "main.go", "internal", "packer", "ansible/toolbox.go", "deploy/embed.go", "deploy/job.yaml"},
		Exclude: []string{"**/*_test.go", "**/testdata"},
	})
	digest, err := source.Digest(ctx)
	if err != nil {
		return nil, err
	}
	_, hex, _ := strings.Cut(digest, ":")
	version := fmt.Sprintf("toolbox-%.12s", hex)
	return m.golang().
		WithDirectory("/src", source).
		WithWorkdir("/src").
		WithExec([]string{"go", "build", "-trimpath", "-tags", "toolbox",
			"-ldflags", "-s -w -X github.com/netgroup-polito/diskforge/internal/cli.stamp=" + version, "-o", "/out/diskforge", "."}).
		File("/out/diskforge"), nil
}

// tools are Packer with its plugins and goss, compiled by diskforge from the
// sources that its go.sum pins.
func (m *Diskforge) tools(compiled *dagger.File) *dagger.Directory {
	return m.golang().
		WithFile(program, compiled).
		WithExec([]string{"sh", "-euc", `mv "$(diskforge tools --cache-dir /tmp/tools)" /out`}).
		Directory("/out")
}
