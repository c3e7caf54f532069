package main

import (
	"context"
	"errors"
	"strings"

	"dagger/diskforge/flags"
	"dagger/diskforge/internal/dagger"
)

// Build provisions, sparsifies and verifies a disk and returns it as an image. A stage whose inputs are the same is not run again.
// +cache="session"
func (m *Diskforge) Build(
	ctx context.Context,
	// The playbook that provisions the image, a path in the playbook tree, e.g. debian-base.
	ansiblePlaybook string,
	// The base image as a file at hand, instead of iso-url.
	// +optional
	base *dagger.File,
	// Make the base image from Debian packages, instead of iso-url.
	// +optional
	baseFromPackages bool,
	// The URL of the base image (http, https).
	// +optional
	isoUrl string,
	// The checksum of the base image: sha256:HEX, sha512:HEX, or file: with the URL of a SHA256SUMS or SHA512SUMS file; base needs none.
	// +optional
	isoChecksum string,
	// The Debian release for base-from-packages: bookworm or trixie (default: trixie).
	// +optional
	suite string,
	// The playbook tree; it wins over git. Default: the one that diskforge brings along.
	// +optional
	ansible *dagger.Directory,
	// The git repository of the playbook tree; where only git-ansible-branch is given: CrownLabs'.
	// +optional
	gitAnsibleUrl string,
	// The branch, tag or full commit of the playbooks (default: master).
	// +optional
	gitAnsibleBranch string,
	// The folder of the playbook tree in the git repository (default: provisioning/virtual-machines/ansible).
	// +optional
	gitAnsiblePath string,
	// Install XFCE, served by noVNC on port 6080.
	// +optional
	installDesktopEnvironment bool,
	// Further variables for Ansible, a JSON or YAML mapping. No secrets: the engine keeps and shows arguments.
	// +optional
	extraVars string,
	// Further variables for Ansible as a file.
	// +optional
	extraVarsFile *dagger.File,
	// The memory of the guest in MiB (default: 2048).
	// +optional
	memory string,
	// The processors of the guest (default: the engine's host's, at most 4).
	// +optional
	cpus string,
	// The virtual size of the disk, e.g. 20G (default: 10G).
	// +optional
	diskSize string,
	// auto (KVM if it boots a kernel, else emulation), kvm or tcg (default: auto).
	// +optional
	accelerator string,
	// The architecture of the image: amd64.
	// +optional
	architecture string,
	// How long a guest may take until ssh answers (default: 5m with KVM, 15m without).
	// +optional
	bootTimeout string,
	// The user that provisions the guest; it is deleted before the disk is closed (default: diskforge).
	// +optional
	buildUser string,
	// The login user of the virtual machines; cloud-init makes it where they run (default: crownlabs).
	// +optional
	vmUser string,
	// Provision as vm-user and keep the account, its password locked, for playbooks that write into its home.
	// +optional
	bakeUser bool,
	// How unused blocks are left out: auto, trim or none (default: auto). The toolbox has no virt-sparsify.
	// +optional
	sparsify string,
	// QCOW2_COMPRESSION, the compression of the disk: zstd, zlib (Longhorn needs it) or none (default: zstd).
	// +optional
	compression string,
	// The Debian or Ubuntu mirror for the base from packages and for the guest during the build.
	// +optional
	aptMirror string,
	// Further certificate authorities (PEM) for downloads and for the guest during the build.
	// +optional
	caFile *dagger.File,
	// The proxy for HTTP of downloads and of the guest during the build.
	// +optional
	httpProxy string,
	// The proxy for HTTPS, likewise.
	// +optional
	httpsProxy string,
	// The hosts that are reached without a proxy, likewise.
	// +optional
	noProxy string,
	// Any text that changes, e.g. a date: base packages and guest are built anew for fresh packages.
	// +optional
	refresh string,
) (*Image, error) {
	origin := origin{File: base, Packages: baseFromPackages, Suite: suite, URL: isoUrl, Checksum: isoChecksum, Mirror: aptMirror}
	if err := origin.check(); err != nil {
		return nil, err
	}
	if extraVars != "" && extraVarsFile != nil {
		return nil, errors.New("both --extra-vars and --extra-vars-file: give one")
	}
	box, err := m.machine()
	if err != nil {
		return nil, err
	}
	tree := tree{Directory: ansible, URL: gitAnsibleUrl, Ref: gitAnsibleBranch, Path: gitAnsiblePath, Playbook: ansiblePlaybook}
	if err := tree.pin(ctx); err != nil {
		return nil, err
	}
	guest := guest(accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser)

	c := tree.mount(m, box).WithEnvVariable("REFRESH", refresh)
	c, stages, err := origin.mount(ctx, c, box.WithEnvVariable("REFRESH", refresh))
	if err != nil {
		return nil, err
	}
	if caFile != nil {
		c = c.WithMountedFile(caPath, caFile)
	}
	if extraVarsFile != nil {
		c, extraVars = c.WithMountedFile(varsPath, extraVarsFile), "@"+varsPath
	}
	args := append([]string{"provision", "-o", diskPath}, origin.args...)
	args = append(append(args, tree.args()...), guest...)
	args = append(args, flags.Of("install-desktop-environment", flags.Bool(installDesktopEnvironment), "extra-vars", extraVars,
		"disk-size", diskSize, "architecture", architecture, "apt-mirror", aptMirror, "ca-file", flags.File(caFile != nil, caPath),
		"http-proxy", httpProxy, "https-proxy", httpsProxy, "no-proxy", noProxy)...)
	provisioned, err := bootStage(ctx, c, args...)
	if err != nil {
		return nil, err
	}
	sparse, err := stage(ctx, withDisk(box, provisionedPath, diskOf(provisioned)),
		append([]string{"sparsify", provisionedPath, "-o", diskPath}, flags.Of("sparsify", sparsify, "qcow2-compression", compression)...)...)
	if err != nil {
		return nil, err
	}
	verified, err := bootStage(ctx, withDisk(tree.mount(m, box), diskPath, diskOf(sparse)),
		append(append([]string{"verify", diskPath}, tree.args()...), guest...)...)
	if err != nil {
		return nil, err
	}
	log, err := transcript(ctx, append(stages, provisioned, sparse, verified)...)
	if err != nil {
		return nil, err
	}
	return &Image{
		Disk: sparse.File(diskPath), Report: verified.File(diskPath + ".json"), Log: log,
		Box: box, Architecture: architecture,
	}, nil
}

// Verify boots a disk the way KubeVirt does, looks inside, and returns what it said. Build does that by itself.
// +cache="session"
func (m *Diskforge) Verify(
	ctx context.Context,
	// The disk, a qcow2 image.
	disk *dagger.File,
	// The playbook whose checks (tests/PLAYBOOK.yaml in the tree) the disk has to pass.
	// +optional
	ansiblePlaybook string,
	// The playbook tree. Default: the one that diskforge brings along.
	// +optional
	ansible *dagger.Directory,
	// The user that provisioned the guest, and must be gone (default: diskforge).
	// +optional
	buildUser string,
	// The login user of the virtual machines (default: crownlabs).
	// +optional
	vmUser string,
	// The disk holds vm-user's account.
	// +optional
	bakeUser bool,
	// auto, kvm or tcg (default: auto).
	// +optional
	accelerator string,
	// The memory of the guest in MiB (default: 2048).
	// +optional
	memory string,
	// The processors of the guest (default: the engine's host's, at most 4).
	// +optional
	cpus string,
	// How long the guest may take until ssh answers (default: 5m with KVM, 15m without).
	// +optional
	bootTimeout string,
) (string, error) {
	box, err := m.machine()
	if err != nil {
		return "", err
	}
	tree := tree{Directory: ansible, Playbook: ansiblePlaybook}
	verified, err := bootStage(ctx, tree.mount(m, box).WithMountedFile(diskPath, disk),
		append(append([]string{"verify", diskPath}, tree.args()...), guest(accelerator, memory, cpus, bootTimeout, buildUser, vmUser, bakeUser)...)...)
	if err != nil {
		return "", err
	}
	return verified.Stderr(ctx)
}

// guest are the settings that provision and verify share.
func guest(accelerator, memory, cpus, bootTimeout, buildUser, vmUser string, bakeUser bool) []string {
	return flags.Of("accelerator", accelerator, "memory", memory, "cpus", cpus, "boot-timeout", bootTimeout,
		"build-user", buildUser, "vm-user", vmUser, "bake-user", flags.Bool(bakeUser))
}

// Where a stage finds and leaves what it reads and makes.
const (
	provisionedPath = home + "/provisioned.qcow2"
	diskPath        = home + "/disk.qcow2"
	layoutPath      = home + "/layout"
	varsPath        = "/run/diskforge/extra-vars.yml"
	caPath          = "/run/diskforge/ca.pem"
	basePath        = "/run/diskforge/base/"
	treePath        = "/run/diskforge/ansible"
)

// disk is a disk with what is known about it (DISK.json).
type disk struct{ image, record *dagger.File }

func diskOf(c *dagger.Container) disk {
	return disk{c.File(diskPath), c.File(diskPath + ".json")}
}

// withDisk puts the disk at path: the disk itself is mounted, for it is large;
// its record is a file that a stage may replace.
func withDisk(c *dagger.Container, path string, d disk) *dagger.Container {
	return c.WithMountedFile(path, d.image).WithFile(path+".json", d.record, dagger.ContainerWithFileOpts{Owner: user})
}

// origin is where the base image comes from.
type origin struct {
	File          *dagger.File
	Packages      bool
	URL, Checksum string
	Suite, Mirror string
	args          []string // for provision
}

func (o *origin) check() error {
	var given []string
	for name, is := range map[string]bool{"--base": o.File != nil, "--base-from-packages": o.Packages, "--iso-url": o.URL != ""} {
		if is {
			given = append(given, name)
		}
	}
	switch len(given) {
	case 1:
		return nil
	case 0:
		return errors.New("there is no base image: give --base, --base-from-packages, or --iso-url with --iso-checksum")
	}
	return errors.New(strings.Join(given, " and ") + ": choose one base image")
}

// mount gives provision's container the base image, and returns the stages
// that this took.
func (o *origin) mount(ctx context.Context, c, box *dagger.Container) (*dagger.Container, []*dagger.Container, error) {
	switch {
	case o.Packages:
		made, err := run(ctx, box, append([]string{"diskforge", "base"}, flags.Of("suite", o.Suite, "apt-mirror", o.Mirror)...), dagger.ContainerWithExecOpts{})
		if err != nil {
			return nil, nil, err
		}
		o.args = flags.Of("base-from-packages", "true", "suite", o.Suite)
		return c.WithDirectory(cacheDir+"/base", made.Directory(cacheDir+"/base"), dagger.ContainerWithDirectoryOpts{Owner: user}), []*dagger.Container{made}, nil
	case o.File != nil:
		name, err := o.File.Name(ctx)
		if err != nil {
			return nil, nil, err
		}
		c = c.WithMountedFile(basePath+name, o.File)
		if o.Checksum == "" {
			sum, err := c.WithExec([]string{"sha256sum", basePath + name}).Stdout(ctx)
			if err != nil {
				return nil, nil, err
			}
			hex, _, _ := strings.Cut(sum, " ")
			o.Checksum = "sha256:" + hex
		}
		o.args = flags.Of("iso-url", basePath+name, "iso-checksum", o.Checksum)
		return c, nil, nil
	}
	o.args = flags.Of("iso-url", o.URL, "iso-checksum", o.Checksum)
	// The program locks each download, and hashes it whenever it is used.
	return c.WithMountedCache(cacheDir+"/images", dag.CacheVolume("diskforge-downloads"), dagger.ContainerWithMountedCacheOpts{Owner: user}), nil, nil
}

// tree is where the playbooks come from.
type tree struct {
	Directory *dagger.Directory
	URL, Ref  string
	Path      string
	Playbook  string
}

// Where the playbooks come from when only one of url and branch is given: the
// program's own defaults, which it tells in its --help.
const (
	defaultGitURL = "https://github.com/netgroup-polito/CrownLabs.git"
	defaultGitRef = "master"
)

// pin replaces a branch or tag by the commit that it names now: a stage is run
// again when its arguments change, and a branch that moved would not.
func (t *tree) pin(ctx context.Context) (err error) {
	if t.Directory != nil || (t.URL == "" && t.Ref == "") {
		return nil
	}
	if t.URL == "" {
		t.URL = defaultGitURL
	}
	if t.Ref == "" {
		t.Ref = defaultGitRef
	}
	t.Ref, err = dag.Git(t.URL).Ref(t.Ref).Commit(ctx)
	return err
}

// mount gives the container the playbooks, and no other's.
func (t *tree) mount(m *Diskforge, c *dagger.Container) *dagger.Container {
	switch {
	case t.Directory != nil:
		return c.WithMountedDirectory(treePath, t.Directory)
	case t.URL != "":
		return c
	}
	return m.withPlaybooks(c)
}

func (t *tree) args() []string {
	args := flags.Of("ansible-playbook", t.Playbook, "ansible-dir", flags.File(t.Directory != nil, treePath))
	if t.Directory != nil {
		return args
	}
	return append(args, flags.Of("git-ansible-url", t.URL, "git-ansible-branch", t.Ref, "git-ansible-path", t.Path)...)
}
