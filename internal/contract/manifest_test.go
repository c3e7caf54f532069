package contract_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
)

const repository = "registry.example.org/labs/ubuntu-22.04"

// inspectedOnce are the reports of golden, in JSON, by the image's variables.
var inspectedOnce sync.Map

// golden is a containerdisk with these variables, at its moving tag.
func golden(t testing.TB, env ...string) (r *contract.Report, m contract.Manifests) {
	t.Helper()
	raw, ok := inspectedOnce.Load(fmt.Sprint(env))
	if !ok {
		image := keepsRules(plainLayer(archived(t, dir("disk/"), file("disk/disk.qcow2", qcow2Disk(t)))))
		image.config.Config.Env = env
		image.annotations["org.opencontainers.image.title"] = "Ubuntu \x1b[2J with an escape"
		r := inspected(t, image)
		require.NoError(t, r.Err(contract.Error))
		var err error
		raw, err = json.Marshal(r)
		require.NoError(t, err)
		inspectedOnce.Store(fmt.Sprint(env), raw)
	}
	require.NoError(t, json.Unmarshal(raw.([]byte), &r))
	return r, contract.Manifests{Image: repository + ":latest", Tag: "latest"}
}

var ubuntuHints = []string{"INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.medium", "INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE=ubuntu"}

// complete is all that can be asked for.
func complete(m contract.Manifests) contract.Manifests {
	m.Kinds, m.CloneTo, m.Workspace, m.Desktop = contract.ManifestKinds(), []string{"lab-1", "lab-2"}, "tea", true
	m.PullSecret, m.CertConfigMap, m.StorageClass, m.DiskURL = "login", "authority", "fast.block", "https://example.org/disk.qcow2"
	return m
}

// stream is all of it in one text.
func stream(t testing.TB, r *contract.Report, m contract.Manifests) string {
	t.Helper()
	all, err := r.Manifests(m)
	require.NoError(t, err)
	var out strings.Builder
	require.NoError(t, contract.WriteManifests(&out, all))
	return out.String()
}

// object is the one of a kind and name.
func object(t testing.TB, stream, kind, name string) map[string]any {
	t.Helper()
	for _, d := range documents(t, stream) {
		if d["kind"] == kind && d["metadata"].(map[string]any)["name"] == name {
			return d
		}
	}
	require.Fail(t, "there is no "+kind+" "+name, stream)
	return nil
}

// at is what an object has at a path; a number is an index.
func at(object any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			of, _ := object.(map[string]any)
			object = of[step]
		case int:
			object = object.([]any)[step]
		}
	}
	return object
}

func kinds(all []contract.Manifest) (names []string) {
	for _, m := range all {
		names = append(names, m.Kind)
	}
	return names
}

// variants are ways to ask for objects, by what they show.
var variants = map[string]func(*contract.Report, *contract.Manifests){
	"as it is":        func(*contract.Report, *contract.Manifests) {},
	"all":             func(_ *contract.Report, m *contract.Manifests) { *m = complete(*m) },
	"on file systems": func(_ *contract.Report, m *contract.Manifests) { *m = complete(*m); m.VolumeMode = "Filesystem" },
	"by digest":       func(r *contract.Report, m *contract.Manifests) { m.Image, m.Tag = repository+"@"+r.Digest, "" },
	"UEFI only":       func(r *contract.Report, _ *contract.Manifests) { r.Disk.Firmware = onlyUEFI },
	"arm64":           func(r *contract.Report, _ *contract.Manifests) { r.Config.Architecture = "arm64" },
	"s390x":           func(r *contract.Report, _ *contract.Manifests) { r.Config.Architecture = "s390x" },
	"no hints":        func(r *contract.Report, m *contract.Manifests) { *m = complete(*m); r.Config.Hints = nil },
	"a kind of hint": func(r *contract.Report, m *contract.Manifests) {
		r.Config.Hints["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE_KIND"] = "VirtualMachineInstancetype"
	},
	"little memory": func(_ *contract.Report, m *contract.Manifests) { *m = complete(*m); m.MemoryMiB, m.CPUs = 256, 1 },
	"long names": func(_ *contract.Report, m *contract.Manifests) {
		*m = complete(*m)
		m.Image, m.Tag = "registry.example.org/"+strings.Repeat("x.y_z-", 30)+"a:"+strings.Repeat("T", 128), strings.Repeat("T", 128)
	},
}

// asked is the stream of a variant.
func asked(t testing.TB, variant string) string {
	t.Helper()
	r, m := golden(t, ubuntuHints...)
	variants[variant](r, &m)
	return stream(t, r, m)
}

func TestEveryObjectIsAsItsDefinitionSays(t *testing.T) {
	t.Parallel()
	api := newCluster(t)
	for name := range variants {
		text := asked(t, name)
		assert.NoError(t, api.refuses(t, text), "%s:\n%s", name, text)
		assert.Equal(t, text, asked(t, name), "the same each time")
		assert.NotContains(t, text, "\x1b")
	}
}

// mistakes are each one mistake, by what they replace.
var mistakes = map[string]string{
	"runStrategy: ":                             "runStrategie: ",
	"imagePullSecret: ":                         "imagePullSecrets: ",
	"volumeMode: Block":                         "volumeMod: Block",
	"storage: 8Mi":                              "storage: eight",
	"managedDataSource: ":                       "managedDatasource: ",
	"secureBoot: ":                              "secureboot: ",
	"bios: {}":                                  "bios: {secureBoot: false}",
	"masquerade: {}":                            "masquerade: true",
	"cores: 2":                                  "cores: two",
	"environmentType: LocalVM":                  "environmentType: LokalVM",
	"reservedCPUPercentage: 25":                 "reservedCPUPercentage: 125",
	"name: desktop":                             "name: it",
	"prettyName: ":                              "pretty: ",
	"pvc:\n      name: ubuntu-22-04\n":          "pvc:\n",
	"workspace.crownlabs.polito.it/Workspace":   "workspace.crownlabs.polito.it/Works",
	"namespace: workspace-tea":                  "namespace: Workspace_tea",
	"kind: DataImportCron":                      "kind: DataImportCrons",
	"kubevirt.io/default-instancetype: u1.medi": "kubevirt.io/default-instancetype: -u1.medi",
}

// mistaken is the stream with a mistake.
func mistaken(t testing.TB, right, wrong string) string {
	t.Helper()
	stream := asked(t, "all")
	if !strings.Contains(stream, right) {
		stream = asked(t, "UEFI only")
	}
	require.Contains(t, stream, right)
	return strings.Replace(stream, right, wrong, 1)
}

// The judge itself can refuse.
func TestAWrongFieldIsFound(t *testing.T) {
	t.Parallel()
	api := newCluster(t)
	for right, wrong := range mistakes {
		assert.Error(t, api.refuses(t, mistaken(t, right, wrong)), "%q", wrong)
	}
}

func TestTheImageIsNamedByItsDigestAndPolledByItsTag(t *testing.T) {
	t.Parallel()
	r, m := golden(t, ubuntuHints...)
	text := stream(t, r, complete(m))
	pinned := repository + "@" + r.Digest
	assert.Equal(t, "docker://"+pinned, at(object(t, text, "DataVolume", "ubuntu-22-04"), "spec", "source", "registry", "url"))
	assert.Equal(t, pinned, at(object(t, text, "VirtualMachine", "ubuntu-22-04"), "spec", "template", "spec", "volumes", 0, "containerDisk", "image"))
	assert.Equal(t, pinned, at(object(t, text, "Template", "ubuntu-22-04"), "spec", "environmentList", 0, "image"))
	cron := object(t, text, "DataImportCron", "ubuntu-22-04-latest")
	assert.Equal(t, "docker://"+repository+":latest", at(cron, "spec", "template", "spec", "source", "registry", "url"))
	source := object(t, text, "DataSource", "ubuntu-22-04-latest")
	assert.Equal(t, at(cron, "metadata", "name"), at(source, "metadata", "labels", "cdi.kubevirt.io/dataImportCron"), "else CDI leaves it alone")
	assert.Equal(t, at(cron, "spec", "managedDataSource"), at(source, "metadata", "name"))
}

func TestAVolumeIsAsLargeAsTheDiskAndCrownLabsDiskAsAFileSystemNeeds(t *testing.T) {
	t.Parallel()
	for size, want := range map[uint64][2]string{
		8 << 20:   {"8Mi", "9Mi"},
		10 << 30:  {"10Gi", "10894Mi"},
		1<<30 + 1: {"1025Mi", "1090Mi"},
	} {
		r, m := golden(t)
		r.Disk.VirtualSize = size
		text := stream(t, r, complete(m))
		assert.Equal(t, want[0], at(object(t, text, "DataVolume", "ubuntu-22-04"), "spec", "storage", "resources", "requests", "storage"))
		assert.Equal(t, want[1], at(object(t, text, "Template", "ubuntu-22-04"), "spec", "environmentList", 0, "resources", "disk"))
	}
}

// KubeVirt infers from the labels of a DataSource, and not from a DataVolume that
// is imported from a registry; with an instance type it refuses sizes of its own.
func TestAnInstanceTypeIsInferredFromTheDataSource(t *testing.T) {
	t.Parallel()
	r, m := golden(t, ubuntuHints...)
	text := stream(t, r, m)
	vm := object(t, text, "VirtualMachine", "ubuntu-22-04-persistent")
	ref := at(vm, "spec", "dataVolumeTemplates", 0, "spec", "sourceRef")
	assert.Equal(t, map[string]any{"kind": "DataSource", "name": "ubuntu-22-04", "namespace": "default"}, ref)
	source := object(t, text, "DataSource", "ubuntu-22-04")
	assert.Equal(t, "u1.medium", at(source, "metadata", "labels", "instancetype.kubevirt.io/default-instancetype"))
	assert.Equal(t, "ubuntu", at(source, "metadata", "labels", "instancetype.kubevirt.io/default-preference"))
	assert.Equal(t, at(vm, "spec", "template", "spec", "volumes", 0, "name"), at(vm, "spec", "instancetype", "inferFromVolume"))
	assert.Equal(t, at(vm, "spec", "template", "spec", "volumes", 0, "name"), at(vm, "spec", "preference", "inferFromVolume"))
	for _, sized := range []string{"cpu", "memory", "resources"} {
		assert.Nil(t, at(vm, "spec", "template", "spec", "domain", sized))
	}

	r.Config.Hints = nil
	vm = object(t, stream(t, r, m), "VirtualMachine", "ubuntu-22-04-persistent")
	assert.Nil(t, at(vm, "spec", "instancetype"))
	assert.Equal(t, "2Gi", at(vm, "spec", "template", "spec", "domain", "memory", "guest"))
}

var onlyUEFI = &disk.Firmware{UEFI: true}

func TestTheFirmwareIsTheDisks(t *testing.T) {
	t.Parallel()
	bios, efi := map[string]any{"bios": map[string]any{}}, map[string]any{"efi": map[string]any{"secureBoot": false}}
	both := &disk.Firmware{BIOS: true, UEFI: true, SecureBoot: true}
	onlyBIOS := &disk.Firmware{BIOS: true}
	for _, c := range []struct {
		disk                     *disk.Firmware
		preference, architecture string
		want                     any
	}{
		{onlyBIOS, "ubuntu", "amd64", bios},
		{onlyBIOS, "debian", "amd64", bios}, // inspect calls the hint an error
		{onlyUEFI, "", "amd64", efi},
		{both, "", "amd64", bios},
		{both, "debian", "amd64", efi},
		{both, "ubuntu", "amd64", bios},
		{nil, "debian", "amd64", efi},
		{nil, "", "amd64", bios},
		{onlyUEFI, "", "arm64", efi},
		{nil, "", "s390x", nil},
	} {
		r, m := golden(t)
		r.Disk.Firmware, r.Config.Architecture = c.disk, c.architecture
		r.Config.Hints = map[string]string{"INSTANCETYPE_KUBEVIRT_IO_DEFAULT_PREFERENCE": c.preference}
		vm := object(t, stream(t, r, m), "VirtualMachine", "ubuntu-22-04")
		assert.Equal(t, c.want, at(vm, "spec", "template", "spec", "domain", "firmware", "bootloader"), "%+v", c)
	}
}

func TestWhoMayCloneIsNamed(t *testing.T) {
	t.Parallel()
	r, m := golden(t)
	m = complete(m)
	m.Namespace = "golden"
	text := stream(t, r, m)
	role := object(t, text, "Role", "ubuntu-22-04-clone")
	assert.Equal(t, "golden", at(role, "metadata", "namespace"))
	assert.Equal(t, []any{map[string]any{"apiGroups": []any{"cdi.kubevirt.io"}, "resources": []any{"datavolumes/source"}, "verbs": []any{"create"}}}, role["rules"])
	binding := object(t, text, "RoleBinding", "ubuntu-22-04-clone")
	assert.Equal(t, "golden", at(binding, "metadata", "namespace"))
	assert.Equal(t, "ubuntu-22-04-clone", at(binding, "roleRef", "name"))
	assert.Equal(t, "system:serviceaccounts:lab-1", at(binding, "subjects", 0, "name"))
	assert.Equal(t, "system:serviceaccounts:lab-2", at(binding, "subjects", 1, "name"))
	local := object(t, text, "Template", "ubuntu-22-04-local")
	assert.Equal(t, "workspace-tea", at(local, "metadata", "namespace"))
	assert.Equal(t, "golden/ubuntu-22-04", at(local, "spec", "environmentList", 0, "image"), "namespace/pvc-name")
}

// CrownLabs takes the image of an environment that is not persistent for a
// containerdisk, and refuses less than 1 GiB of memory.
func TestATemplateIsWhatCrownLabsCanStart(t *testing.T) {
	t.Parallel()
	r, m := golden(t)
	m = complete(m)
	m.MemoryMiB = 256
	text := stream(t, r, m)
	for name, want := range map[string][3]any{
		"ubuntu-22-04":       {"VirtualMachine", false, repository + "@" + r.Digest},
		"ubuntu-22-04-local": {"LocalVM", true, "workspace-tea/ubuntu-22-04"},
		"ubuntu-22-04-cloud": {"CloudVM", true, "https://example.org/disk.qcow2"},
	} {
		environment := at(object(t, text, "Template", name), "spec", "environmentList", 0)
		assert.Equal(t, want, [3]any{at(environment, "environmentType"), at(environment, "persistent"), at(environment, "image")})
		assert.Equal(t, "1Gi", at(environment, "resources", "memory"))
		assert.Equal(t, true, at(environment, "guiEnabled"))
	}
}

func TestWithoutKindsAllIsWrittenForWhichThereIsEnough(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*contract.Report, *contract.Manifests){
		"datavolume import-cron vm vm-persistent":                                func(*contract.Report, *contract.Manifests) {},
		"datavolume vm vm-persistent":                                            func(_ *contract.Report, m *contract.Manifests) { m.Tag = "2026-11-23" },
		"datavolume import-cron clone-rbac vm vm-persistent":                     func(_ *contract.Report, m *contract.Manifests) { m.CloneTo = []string{"lab"} },
		"datavolume import-cron vm vm-persistent crownlabs-vm crownlabs-localvm": func(_ *contract.Report, m *contract.Manifests) { m.Workspace = "tea" },
		"datavolume clone-rbac vm vm-persistent": func(r *contract.Report, m *contract.Manifests) {
			*m = complete(*m)
			m.Tag, m.Kinds, r.Disk.Firmware = "", nil, onlyUEFI // which CrownLabs does not start
		},
		"import-cron":              func(_ *contract.Report, m *contract.Manifests) { m.Tag, m.Kinds = "24.04", []string{"import-cron"} },
		"vm":                       func(_ *contract.Report, m *contract.Manifests) { m.Kinds = []string{"vm"} },
		"datavolume vm-persistent": func(_ *contract.Report, m *contract.Manifests) { m.Kinds = []string{"vm-persistent"} },
	} {
		r, m := golden(t)
		change(r, &m)
		all, err := r.Manifests(m)
		require.NoError(t, err)
		assert.Equal(t, want, strings.Join(kinds(all), " "))
	}
}

func TestWhatCannotBeWrittenIsRefusedInALine(t *testing.T) {
	t.Parallel()
	for words, change := range map[string]func(*contract.Manifests){
		`--kind "pod" is not known: give datavolume, `:     func(m *contract.Manifests) { m.Kinds = []string{"pod"} },
		"--kind import-cron needs an image that is named":  func(m *contract.Manifests) { m.Tag, m.Kinds = "", []string{"import-cron"} },
		"--kind clone-rbac needs --clone-to":               func(m *contract.Manifests) { m.Kinds = []string{"clone-rbac"} },
		"--kind crownlabs-vm needs --workspace":            func(m *contract.Manifests) { m.Kinds = []string{"crownlabs-vm"} },
		"--kind crownlabs-cloudvm needs --workspace, and ": func(m *contract.Manifests) { m.Workspace, m.Kinds = "tea", []string{"crownlabs-cloudvm"} },
		"--name cannot be \"Tea\"":                         func(m *contract.Manifests) { m.Name = "Tea" },
		"--namespace cannot be \"a.b\"":                    func(m *contract.Manifests) { m.Namespace = "a.b" },
		"--clone-to cannot be \"-\"":                       func(m *contract.Manifests) { m.CloneTo = []string{"lab", "-"} },
		"--volume-mode cannot be \"block\"":                func(m *contract.Manifests) { m.VolumeMode = "block" },
		"--pull-secret cannot be \"a b\"":                  func(m *contract.Manifests) { m.PullSecret = "a b" },
		"give --workspace, too":                            func(m *contract.Manifests) { m.DiskURL = "https://example.org/d" },
		"--clone-to has no effect here":                    func(m *contract.Manifests) { m.CloneTo, m.Kinds = []string{"lab"}, []string{"vm"} },
		"--disk-url cannot be \"disk.qcow2\"":              func(m *contract.Manifests) { m.DiskURL = "disk.qcow2" },
	} {
		r, m := golden(t)
		change(&m)
		_, err := r.Manifests(m)
		require.ErrorContains(t, err, words)
		assert.NotContains(t, err.Error(), "\n")
	}
	r, m := golden(t)
	m = complete(m)
	m.CloneTo, m.Kinds, r.Disk.Firmware = nil, []string{"crownlabs-vm"}, onlyUEFI
	_, err := r.Manifests(m)
	assert.ErrorContains(t, err, "CrownLabs starts machines with BIOS")

	r = inspected(t, keepsRules(plainLayer(archived(t, dir("etc/"), file("etc/passwd", nil)))))
	_, err = r.Manifests(m)
	require.ErrorContains(t, err, "is no containerdisk that KubeVirt and CDI take: one disk: there is nothing in disk/")
	assert.NotContains(t, err.Error(), "\n")
}

func TestAFolderHasAFileForEachKindAndAKustomization(t *testing.T) {
	t.Parallel()
	r, m := golden(t, ubuntuHints...)
	all, err := r.Manifests(m)
	require.NoError(t, err)
	folder := filepath.Join(t.TempDir(), "a", "b")
	require.NoError(t, contract.SaveManifests(folder, all, false))
	assert.NoFileExists(t, filepath.Join(folder, "kustomization.yaml"))
	require.NoError(t, contract.SaveManifests(folder, all, true))
	raw, err := os.ReadFile(filepath.Join(folder, "kustomization.yaml"))
	require.NoError(t, err)
	var together []string
	for _, file := range at(documents(t, string(raw))[0], "resources").([]any) {
		text, err := os.ReadFile(filepath.Join(folder, file.(string)))
		require.NoError(t, err)
		together = append(together, string(text))
	}
	assert.Equal(t, stream(t, r, m), strings.Join(together, "---\n"))
	assert.True(t, slices.ContainsFunc(together, func(s string) bool { return strings.HasPrefix(s, "# For CDI 1.66") }), "a comment over each")
}

func TestANameIsMadeOfTheImages(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]string{
		"registry.example.org/labs/ubuntu-22.04:v1":    "ubuntu-22-04",
		"localhost:5000/debian":                        "debian",
		"registry.example.org/a__b--c":                 "a-b-c",
		"r.example/" + strings.Repeat("x", 63):         "x{63}",
		"r.example/" + strings.Repeat("x", 64) + ":v1": "x{54}-[0-9a-f]{8}",
	} {
		r, m := golden(t)
		m.Image, m.Kinds = image, []string{"vm"}
		assert.Regexp(t, "^"+want+"$", at(documents(t, stream(t, r, m))[0], "metadata", "name"))
	}
}
