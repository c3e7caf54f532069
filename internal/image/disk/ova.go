package disk

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// writeOVA writes an appliance for VirtualBox and VMware: a tar of a description (DMTF's
// DSP0243, Open Virtualization Format 1.1), its manifest, and the disk as a
// stream-optimized VMDK, in the order that a reader of a stream needs.
func writeOVA(ctx context.Context, d *exported, to *os.File, p progress.Reporter) error {
	firmware, err := FirmwareOf(d.Name())
	if err != nil {
		return err
	}
	if !firmware.Starts(arch.Default) {
		return failure.New("an ova is for machines of "+arch.Default+" alone, and this disk is for "+firmware.Architecture, "leave it out of OUTPUTS")
	}
	disk := d.machine.Name + "-disk1.vmdk"
	vmdk, err := d.vmdk(ctx, disk, p)
	if err != nil {
		return err
	}
	defer vmdk.Close()
	size, err := vmdk.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	sum, err := host.DigestFile(ctx, vmdk.Name(), p)
	if err != nil {
		return err
	}
	var description bytes.Buffer
	if err := ovf.Execute(&description, map[string]any{
		"Machine": d.machine, "Disk": disk, "Size": size, "Capacity": d.about.VirtualSize,
		"EFI": firmware.UEFI && !firmware.BIOS, "OS": cmp.Or(systems[d.machine.Distribution], systems[""]),
	}); err != nil {
		return err
	}
	manifest := fmt.Sprintf("SHA256(%s.ovf)= %x\nSHA256(%s)= %s\n",
		d.machine.Name, sha256.Sum256(description.Bytes()), disk, strings.TrimPrefix(sum, "sha256:"))
	t := tar.NewWriter(to)
	add := func(name string, size int64, content io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := host.Copy(ctx, t, content)
		return err
	}
	if err := add(d.machine.Name+".ovf", int64(description.Len()), &description); err != nil {
		return err
	}
	if err := add(d.machine.Name+".mf", int64(len(manifest)), strings.NewReader(manifest)); err != nil {
		return err
	}
	if err := add(disk, size, progress.Reader(io.NewSectionReader(vmdk, 0, size), size, p)); err != nil {
		return err
	}
	return t.Close()
}

// vmdk writes the disk as a stream-optimized VMDK called name into the scratch folder.
func (d *exported) vmdk(ctx context.Context, name string, p progress.Reporter) (*os.File, error) {
	guest, err := d.guest()
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(d.scratch, name))
	if err != nil {
		return nil, err
	}
	disk := progress.Reader(host.Reader(ctx, io.NewSectionReader(guest, 0, d.about.VirtualSize)), d.about.VirtualSize, p)
	if err := writeVMDK(f, disk, d.about.VirtualSize, name, d.digest); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// system is what an appliance calls its guest's operating system.
type system struct {
	ID     int    // of CIM_OperatingSystem.OsType
	VMware string // vim.vm.GuestOsDescriptor.GuestOsIdentifier
	Words  string
}

// systems are by distributions; others are some Linux.
var systems = map[string]system{
	"debian": {96, "debian10_64Guest", "Debian GNU/Linux (64-bit)"},
	"ubuntu": {94, "ubuntu64Guest", "Ubuntu Linux (64-bit)"},
	"":       {101, "otherLinux64Guest", "Linux (64-bit)"},
}

//go:embed machine.ovf.tmpl
var ovfText string

var ovf = template.Must(template.New("ovf").Parse(ovfText))
