package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/netgroup-polito/diskforge/internal/command"
	"github.com/netgroup-polito/diskforge/internal/failure"
)

const qemu = "qemu-system-x86_64"

// arguments are QEMU's. The machine is KubeVirt's: q35 with modern virtio
// devices. The seed is a virtio disk as KubeVirt attaches it, which also a
// kernel without AHCI sees (Debian's cloud kernel). Writes go to an overlay
// that nobody keeps, so that they need not reach the host's disk. The screen
// is there because KubeVirt attaches one by default, and to be looked at.
func (o Options) arguments() []string {
	network := "user,id=net"
	for _, port := range append([]int{sshPort}, o.Forward...) {
		network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:0-:%d", port)
	}
	if o.Restrict {
		network += ",restrict=on"
	}
	args := []string{
		"-name", "diskforge", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "q35", "-smp", fmt.Sprint(o.CPUs), "-m", fmt.Sprint(o.MemoryMiB),
		"-drive", "if=none,id=disk,file=" + overlayFile + ",format=qcow2,cache=unsafe,discard=unmap",
		"-device", "virtio-blk-pci-non-transitional,drive=disk,bootindex=1",
		"-drive", "if=none,id=seed,file=" + seedFile + ",format=raw,readonly=on",
		"-device", "virtio-blk-pci-non-transitional,drive=seed",
		"-netdev", network,
		"-device", "virtio-net-pci-non-transitional,netdev=net,romfile=",
		"-device", "virtio-rng-pci-non-transitional",
		"-device", "VGA",
		"-chardev", "file,id=console,path=" + consoleFile, "-serial", "chardev:console",
		"-qmp", "stdio",
	}
	if o.UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+o.firmware.code,
			"-drive", "if=pflash,unit=1,format=raw,file="+varsFile)
	}
	return append(args, o.Accel.QEMUArgs()...)
}

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
	g.process, err = command.Start(context.WithoutCancel(ctx), command.Cmd{
		Program: qemu,
		Args:    g.options.arguments(),
		Dir:     g.options.Dir,
		Stdin:   inRead,
		Stdout:  outWrite,
		Log:     filepath.Join(g.options.Dir, qemuLog),
		Survive: g.options.Survive,
		Grace:   2 * time.Second,
	})
	err = errors.Join(err, inRead.Close(), outWrite.Close())
	if err != nil {
		inWrite.Close()
		outRead.Close()
		return failure.Wrap(err, "QEMU does not start", "apt-get install qemu-system-x86")
	}
	g.qmp = newMonitor(outRead, inWrite)
	g.unwatch = context.AfterFunc(ctx, g.process.Stop)
	return nil
}
