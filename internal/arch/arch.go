// Package arch is the table of the architectures that images are built for: all in which
// they differ. No other package names one.
package arch

import (
	"cmp"
	"slices"
	"strings"
)

// Arch is an architecture of virtual machines.
type Arch struct {
	Name    string   // as Go, OCI, Debian and Kubernetes have it
	Aliases []string // what others call it

	QEMU         string // the program that emulates it
	QEMUPackage  string // Debian's, which has it
	CPU          string // model with all that the emulator can do
	BuildMachine string // board on which an image is provisioned
	Machine      string // board that KubeVirt gives it (kubevirt/kubevirt, v1.9, pkg/virt-launcher/virtwrap/converter/arch)
	Secure       string // the same for Secure Boot; empty: KubeVirt has none
	Display      string // its graphics card
	Console      string // its first serial port, as Linux calls it
	EarlyConsole string // argument by which a kernel writes there from its first line on

	BIOS            bool // a machine starts by a BIOS where UEFI is not asked for; else by UEFI alone
	UEFI            []Firmware
	SecureBoot      []Firmware // with Microsoft's keys
	FirmwarePackage string     // Debian's, which has both

	EFI  string // what the names of UEFI's boot loaders end in (UEFI specification, 3.5.1.1)
	GRUB string // GRUB's name for it under UEFI

	UbuntuArchive string // where Ubuntu's packages are

	Runner string // of GitHub, where it is not the one that workflows name
}

// Firmware is a build of UEFI for QEMU: the code, which is only read, and an empty
// store of variables, of which each machine gets a copy.
type Firmware struct{ Code, Vars string }

// Default is what images are of where nobody says: the same on every host.
const Default = "amd64"

// All are the architectures.
var All = []Arch{
	{
		Name: Default, Aliases: []string{"x86_64", "x64"},
		QEMU: "qemu-system-x86_64", QEMUPackage: "qemu-system-x86", CPU: "max",
		BuildMachine: "pc", // Debian's cloud kernel sees no CD on q35 (no AHCI)
		Machine:      "q35,vmport=off,smm=auto",
		Secure:       "q35,vmport=off,smm=on", // the variables with the keys are written in system management mode only
		Display:      "VGA", Console: "ttyS0", EarlyConsole: "earlyprintk=serial,ttyS0",
		BIOS: true,
		UEFI: []Firmware{
			{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},                 // Debian, Ubuntu
			{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},             // Fedora
			{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},         // Arch
			{"/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"}, // openSUSE
		},
		SecureBoot: []Firmware{
			{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"},
			{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"},
			{"/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"},
		},
		FirmwarePackage: "ovmf",
		EFI:             "x64", GRUB: "x86_64-efi",
		UbuntuArchive: "http://archive.ubuntu.com/ubuntu",
	},
	{
		Name: "arm64", Aliases: []string{"aarch64"},
		QEMU: "qemu-system-aarch64", QEMUPackage: "qemu-system-arm",
		CPU:          "max,pauth-impdef=on", // pointers signed by the architecture's cipher take emulation most of its time
		BuildMachine: "virt,gic-version=max",
		Machine:      "virt,gic-version=max",
		Display:      "virtio-gpu-pci", Console: "ttyAMA0", EarlyConsole: "earlycon",
		UEFI: []Firmware{
			{"/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"},                                // Debian, Ubuntu
			{"/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"}, // Fedora
			{"/usr/share/edk2/aarch64/QEMU_CODE.fd", "/usr/share/edk2/aarch64/QEMU_VARS.fd"},                    // Arch
			{"/usr/share/qemu/aavmf-aarch64-code.bin", "/usr/share/qemu/aavmf-aarch64-vars.bin"},                // openSUSE
		},
		FirmwarePackage: "qemu-efi-aarch64",
		EFI:             "aa64", GRUB: "arm64-efi",
		UbuntuArchive: "http://ports.ubuntu.com/ubuntu-ports",
		Runner:        "ubuntu-24.04-arm",
	},
}

// Of is the architecture of that name; without a name, Default. Of one that is not in the
// table nothing is known.
func Of(name string) Arch {
	name = cmp.Or(name, Default)
	if i := slices.IndexFunc(All, func(a Arch) bool { return a.Name == name }); i >= 0 {
		return All[i]
	}
	return Arch{Name: name}
}

// Names are those of the table.
func Names() (all []string) {
	for _, a := range All {
		all = append(all, a.Name)
	}
	return all
}

// KubeVirt are the architectures that KubeVirt runs; of some, nothing is built.
var KubeVirt = []string{Default, "arm64", "s390x"}

// Known is the name of an architecture that KubeVirt runs, by whatever name, or empty.
func Known(name string) string {
	for _, a := range All {
		if slices.Contains(a.Aliases, name) {
			return a.Name
		}
	}
	if slices.Contains(KubeVirt, name) {
		return name
	}
	return ""
}

// Loader is the file name of the boot loader in EFI/BOOT, which firmware starts on a disk
// that it does not know.
func (a Arch) Loader() string { return "BOOT" + strings.ToUpper(a.EFI) + ".EFI" }
