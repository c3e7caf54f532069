package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// arguments are QEMU's. The machine is what KubeVirt's converter makes of a
// VirtualMachineInstance (kubevirt/kubevirt, v1.9): its board, each virtio device in
// a port of its own, so that the network is enp1s0; four sockets, of which the
// first is filled; a port for a guest agent, no random number generator, a
// screen and SMBIOS data of its own, whose UUID systemd may make the machine-id of.
//
// Different, because this machine is looked at once: writes go to an overlay
// that nobody keeps (cache=unsafe), an error of the disk is the guest's instead
// of stopping it, and a guest that reboots ends: an image that restarts by
// itself takes its user's work along.
func (o Options) arguments() []string {
	a, network := o.arch(), "user,id=net"
	if !o.Online {
		network += ",restrict=on" // the guest reaches neither the host nor the world
	}
	for _, port := range append([]int{sshPort}, o.Forward...) {
		network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", o.At[port], port)
	}
	args := []string{
		"-name", "diskforge", "-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", map[bool]string{true: a.Secure, false: a.Machine}[o.SecureBoot], "-m", fmt.Sprint(o.MemoryMiB),
		"-smp", fmt.Sprintf("%d,maxcpus=%d,sockets=%d,cores=%d,threads=1", o.CPUs, o.CPUs*sockets, sockets, o.CPUs),
		"-smbios", "type=1,manufacturer=KubeVirt,product=None,family=KubeVirt,uuid=" + uuid.NewString(), // each machine has another
		"-drive", "if=none,id=disk,file=" + overlayFile + ",format=qcow2,cache=unsafe,discard=unmap",
		// SATA disks cannot be read-only.
		"-drive", "if=none,id=seed,file=" + seedFile + ",format=raw,readonly=" + map[bool]string{true: "off", false: "on"}[o.SATA],
		"-netdev", network,
		"-chardev", "null,id=agent",
		"-device", a.Display,
		"-chardev", "file,id=console,path=" + consoleFile, "-serial", "chardev:console",
		"-qmp", "stdio",
	}
	devices := []string{
		"virtio-net-pci-non-transitional,netdev=net,romfile=",
		"virtio-scsi-pci-non-transitional",
		"virtio-serial-pci-non-transitional,id=serial",
	}
	if o.SATA { // what a disk gets whose bus the manifest does not name
		args = append(args, "-device", "ide-hd,drive=disk,bus=ide.0,bootindex=1", "-device", "ide-hd,drive=seed,bus=ide.1")
	} else {
		devices = append(devices, "virtio-blk-pci-non-transitional,drive=disk,bootindex=1", "virtio-blk-pci-non-transitional,drive=seed")
	}
	devices = append(devices, "virtio-balloon-pci-non-transitional,free-page-reporting=on")
	for i, device := range devices {
		port := fmt.Sprintf("port%d", i+1)
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d,slot=%d", port, i+1, i+1), "-device", device+",bus="+port)
	}
	args = append(args, "-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0")
	if !o.Reboots {
		args = append(args, "-no-reboot")
	}
	if o.UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+o.firmware.Code,
			"-drive", "if=pflash,unit=1,format=raw,file="+varsFile)
	}
	if o.SecureBoot { // the variables with the keys are written in system management mode only
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	return append(args, o.Accel.QEMUArgs()...)
}

// sockets is how many KubeVirt gives a machine, for processors that are added
// later (its maxSockets).
const sockets = 4

// launch starts QEMU with its monitor on two pipes, which no other process
// can open and whose name cannot be too long.
func (g *Guest) launch(ctx context.Context) error {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return errors.Join(err, inRead.Close(), inWrite.Close())
	}
	g.started = time.Now()
	// Its own lifetime, ended by what follows: a guest that is detached must
	// not end when its starter's context does.
	g.process, err = host.Start(context.WithoutCancel(ctx), host.Cmd{
		Program: g.options.arch().QEMU,
		Args:    g.options.arguments(),
		Dir:     g.options.Dir,
		Stdin:   inRead,
		Stdout:  outWrite,
		Log:     g.file(qemuLog),
		Survive: g.options.Survive,
		Grace:   2 * time.Second,
	})
	err = errors.Join(err, inRead.Close(), outWrite.Close())
	if err != nil {
		inWrite.Close()
		outRead.Close()
		return fmt.Errorf("starting QEMU: %w", err)
	}
	g.qmp = newMonitor(outRead, inWrite)
	g.unwatch = context.AfterFunc(ctx, g.process.Stop)
	return nil
}
