package contract

import (
	"cmp"
	"fmt"
	"math"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// The objects, in the words of the custom resources of KubeVirt 1.9, CDI 1.66 and
// CrownLabs' operators (template_types.go, forge/virtualmachines.go).

const (
	cdiAPI       = "cdi.kubevirt.io/v1beta1"
	rbacGroup    = "rbac.authorization.k8s.io"
	crownlabsAPI = "crownlabs.polito.it/v1alpha2"

	forKubeVirt = "For KubeVirt 1.9"
	forCDI      = "For CDI 1.66"
)

// named is the metadata of an object beside the volumes.
func (w *writer) named(name string) fields { return fields{"name": name, "namespace": w.Namespace} }

// quantity is a number of bytes, rounded up to whole MiB, as Kubernetes writes it.
func quantity(bytes uint64) string {
	const mib, gib = 1 << 20, 1 << 30
	if bytes%gib == 0 {
		return fmt.Sprintf("%dGi", bytes/gib)
	}
	return fmt.Sprintf("%dMi", (bytes+mib-1)/mib)
}

// onFileSystem is how large a volume with a file system must be for the disk: CDI
// leaves a part of it free. It adds that by itself to storage, not to pvc, which
// CrownLabs uses (doc/datavolumes.md).
func (w *writer) onFileSystem() string {
	return quantity(uint64(math.Ceil(float64(w.Disk.VirtualSize) / (1 - overhead))))
}

// imported is the spec of a DataVolume that CDI fills from the registry.
func (w *writer) imported(image string) fields {
	registry := with(fields{"url": "docker://" + image}, fields{"secretRef": w.PullSecret, "certConfigMap": w.CertConfigMap})
	if w.Index != nil {
		registry["platform"] = fields{"architecture": w.Config.Architecture}
	}
	return fields{"source": fields{"registry": registry}, "storage": w.storage()}
}

// storage asks for as much as the guest sees. Access modes are left to CDI's
// profile of the storage class.
func (w *writer) storage() fields {
	return with(fields{
		"resources":  fields{"requests": fields{"storage": quantity(w.Disk.VirtualSize)}},
		"volumeMode": cmp.Or(w.VolumeMode, "Block"),
	}, fields{"storageClassName": w.StorageClass})
}

// volume is the golden volume and a name for it, by whose labels KubeVirt infers.
func (w *writer) volume() {
	meta := w.named(w.Name)
	meta["labels"] = w.hints
	// Nobody starts from the volume itself: without this it waits for its first
	// consumer where the storage class says so.
	meta["annotations"] = fields{"cdi.kubevirt.io/storage.bind.immediate.requested": "true"}
	w.add(forCDI+": the golden volume "+w.Name+", imported once; machines start from clones of it.",
		cdiAPI, "DataVolume", meta, fields{"spec": w.imported(w.pinned)})
	meta = w.named(w.Name)
	meta["labels"] = w.hints
	w.add(forCDI+": what clones name, by sourceRef.", cdiAPI, "DataSource", meta, fields{"spec": fields{"source": fields{"pvc": w.named(w.Name)}}})
}

// cron polls the tag. The DataSource is its own by the label; CDI leaves one
// without it alone (dataimportcron-controller.go, getDataSource), and fills in its
// source.
func (w *writer) cron() {
	repository, _ := SplitTag(w.Image)
	name := objectName(w.Name + "-" + w.Tag)
	meta := w.named(name)
	meta["labels"] = w.hints
	w.add(fmt.Sprintf(`%s: imports what the tag %s names, every night, where it is another image than before.
CDI lets nobody change its spec: to do so, delete and create it. A larger disk needs that.`, forCDI, w.Tag),
		cdiAPI, "DataImportCron", meta, fields{"spec": fields{
			"schedule": "30 2 * * *", "importsToKeep": 2, "garbageCollect": "Outdated", "managedDataSource": name,
			"template": fields{"spec": w.imported(repository + ":" + w.Tag)},
		}})
	meta = w.named(name)
	meta["labels"] = with(w.hints, fields{"cdi.kubevirt.io/dataImportCron": name})
	w.add(forCDI+": the newest of these imports, for a clone's sourceRef. CDI fills in the source.",
		cdiAPI, "DataSource", meta, fields{"spec": fields{"source": fields{}}})
}

// cloneRights are what CDI asks for of the service account of a machine, or of
// whoever makes a DataVolume (doc/RBAC.md, authorize_utils.go).
func (w *writer) cloneRights() {
	name := objectName(w.Name + "-clone")
	w.add(forCDI+": the right to clone volumes of the namespace "+w.Namespace+".", rbacGroup+"/v1", "Role", w.named(name),
		fields{"rules": list{fields{"apiGroups": list{"cdi.kubevirt.io"}, "resources": list{"datavolumes/source"}, "verbs": list{"create"}}}})
	var subjects list
	for _, namespace := range w.CloneTo {
		subjects = append(subjects, fields{"apiGroup": rbacGroup, "kind": "Group", "name": "system:serviceaccounts:" + namespace})
	}
	w.add(`Who has it: machines of these namespaces. CrownLabs' operator may clone anyway; people who
make DataVolumes themselves are added as a User or Group.`, rbacGroup+"/v1", "RoleBinding", w.named(name),
		fields{"roleRef": fields{"apiGroup": rbacGroup, "kind": "Role", "name": name}, "subjects": subjects})
}

// seed is a valid NoCloud seed that changes nothing.
const seed = `#cloud-config
# Who may log in: remove the # of the last two lines, and put in your key. A password works, too:
# cloudinit.readthedocs.io, "Users and groups".
#ssh_authorized_keys:
#  - ssh-ed25519 AAAA... you@example.org
`

// machine starts from the image itself. KubeVirt infers nothing there.
func (w *writer) machine() {
	image := with(fields{"image": w.pinned}, fields{"imagePullSecret": w.PullSecret})
	w.add(forKubeVirt+": a machine that starts from the image itself. What it writes is gone when it stops.",
		"kubevirt.io/v1", "VirtualMachine", w.named(w.Name), fields{"spec": w.started(w.Name, w.sized(), fields{"containerDisk": image})})
}

// persistentMachine starts from a clone. Its instance type is inferred from the
// DataSource's labels: KubeVirt cannot from a DataVolume of a registry
// (pkg/instancetype/infer/volume.go).
func (w *writer) persistentMachine() {
	name := objectName(w.Name + "-persistent")
	about := forKubeVirt + ": a machine with a disk of its own, a clone of the golden volume, which must be there."
	domain, spec := w.sized(), fields{}
	if w.Config.Hints[oci.HintInstanceType] != "" {
		domain = fields{}
		spec["instancetype"] = fields{"inferFromVolume": "root"}
		about += "\nIts processors and memory are the instance type's that the image hints at: " + w.Config.Hints[oci.HintInstanceType] + "."
	}
	if w.Config.Hints[oci.HintPreference] != "" {
		spec["preference"] = fields{"inferFromVolume": "root"}
	}
	spec["dataVolumeTemplates"] = list{fields{
		"metadata": fields{"name": name},
		"spec":     fields{"sourceRef": with(fields{"kind": "DataSource"}, w.named(w.Name)), "storage": w.storage()},
	}}
	w.add(about, "kubevirt.io/v1", "VirtualMachine", w.named(name),
		fields{"spec": with(w.started(name, domain, fields{"dataVolume": fields{"name": name}}), spec)})
}

// sized are the parts of a domain that an instance type has otherwise.
func (w *writer) sized() fields {
	return fields{"cpu": fields{"cores": w.CPUs}, "memory": fields{"guest": quantity(uint64(w.MemoryMiB) << 20)}}
}

// started is the spec of a machine that runs from now on until its guest powers it off.
func (w *writer) started(name string, domain, root fields) fields {
	virtio := fields{"bus": "virtio"} // KubeVirt's own default is SATA
	domain["devices"] = fields{
		"disks":      list{fields{"name": "root", "disk": virtio}, fields{"name": "seed", "disk": virtio}},
		"interfaces": list{fields{"name": "default", "masquerade": fields{}}},
		"rng":        fields{},
	}
	if w.Config.Architecture != "s390x" { // which has neither
		domain["firmware"] = fields{"bootloader": w.bootloader()}
	}
	return fields{
		"runStrategy": "RerunOnFailure",
		"template": fields{
			"metadata": fields{"labels": fields{"app.kubernetes.io/name": name}},
			"spec": fields{
				"architecture": w.Config.Architecture,
				"domain":       domain,
				"networks":     list{fields{"name": "default", "pod": fields{}}},
				"volumes": list{
					with(fields{"name": "root"}, root),
					fields{"name": "seed", "cloudInitNoCloud": fields{"userData": seed}},
				},
			},
		},
	}
}

// bootloader is the firmware that the disk, or where it has both the preference,
// asks for.
func (w *writer) bootloader() fields {
	efi, known := oci.PreferenceStarts(w.Config.Hints[oci.HintPreference], disk.Firmware{UEFI: true})
	onlyBIOS := w.Disk.Firmware != nil && *w.Disk.Firmware == disk.Firmware{BIOS: true}
	a := arch.Of(w.Config.Architecture) // of others nothing is known
	if w.uefi || !a.BIOS && len(a.UEFI) > 0 || efi && known && !onlyBIOS {
		return fields{"efi": fields{"secureBoot": false}} // KubeVirt's own default is true, and takes SMM
	}
	return fields{"bios": fields{}}
}

func (w *writer) crownlabsVM() {
	w.template("", "VirtualMachine", w.pinned, false,
		"For CrownLabs 0.15 and later: each instance starts from the image and is gone when it is deleted.\n"+
			"With persistent: true CrownLabs imports it into a volume of the size of disk for each.")
}

func (w *writer) crownlabsLocalVM() {
	w.template("-local", "LocalVM", w.Namespace+"/"+w.Name, true,
		"For CrownLabs after 0.15: each instance has a clone of the golden volume, which must be there.")
}

func (w *writer) crownlabsCloudVM() {
	w.template("-cloud", "CloudVM", w.DiskURL, true,
		"For CrownLabs 0.15 and later: each instance has a volume, into which the disk is downloaded.")
}

func (w *writer) workspace() string { return "workspace-" + w.Workspace }

// template is a Template with one environment. Classes that start from a volume
// must be persistent: CrownLabs takes the image of others for a containerdisk.
func (w *writer) template(suffix, class, image string, persistent bool, about string) {
	environment := "server"
	if w.Desktop {
		environment = "desktop"
	}
	built := ""
	if w.Guest() != "" {
		built = w.Guest() + ", "
	}
	w.add(about, crownlabsAPI, "Template", fields{"name": objectName(w.Name + suffix), "namespace": w.workspace()}, fields{"spec": fields{
		"prettyName":  text.Cut(text.Line(cmp.Or(w.Annotations["org.opencontainers.image.title"], w.Name)), 60),
		"description": text.Cut(text.Line(built+w.pinned), 400),
		"cleanup":     fields{"deleteAfterCreation": "never", "stopAfterInactivity": "never", "deleteAfterInactivity": "never"},
		"environmentList": list{with(fields{
			"name": environment, "environmentType": class, "image": image,
			"guiEnabled": w.Desktop, "persistent": persistent, "mountMyDriveVolume": true,
			"resources": fields{
				"cpu": w.CPUs, "reservedCPUPercentage": 25, "disk": w.onFileSystem(),
				"memory": quantity(max(1024, uint64(w.MemoryMiB)) << 20), // less is refused
			},
		}, fields{"storageClassName": w.StorageClass})},
		"workspace.crownlabs.polito.it/WorkspaceRef": fields{"name": w.Workspace},
	}})
}
