package base

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/host"
)

const (
	sector = 512
	// partitionStart is where partitions begin by custom. What lies before is
	// the boot loader's.
	partitionStart = 1 << 20
	// bootCode is how much of the first sector belongs to boot.img; behind it
	// stand the disk's signature and the partition table.
	bootCode = 440
)

// assemble makes a raw disk of the tree: partition table, file system, boot
// loader, without mounting anything.
func (b build) assemble(ctx context.Context) error {
	b.p.Activity("making the file system")
	disk := b.file("disk.raw")
	if err := b.partition(ctx, disk); err != nil {
		return err
	}
	if err := b.format(ctx, disk); err != nil {
		return err
	}
	return writeBootLoader(disk, b.file("root/boot/grub/i386-pc"))
}

// partition makes the disk with one bootable Linux partition. growpart
// enlarges it on a larger disk.
func (b build) partition(ctx context.Context, disk string) error {
	f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(b.Size), f.Close()); err != nil {
		return err
	}
	sfdisk, err := host.Look("sfdisk")
	if err != nil {
		return err
	}
	table := fmt.Sprintf("label: dos\nlabel-id: 0x%s\nstart=%d, type=83, bootable\n", fsUUID[:8], partitionStart/sector)
	return b.run(ctx, host.Cmd{Program: sfdisk, Args: []string{"--quiet", disk}, Stdin: strings.NewReader(table)})
}

// format fills the partition with an ext4 file system that holds the tree.
func (b build) format(ctx context.Context, disk string) error {
	blocks := fmt.Sprintf("%dk", (b.Size-partitionStart)>>10)
	return b.run(ctx, asRoot("mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", fsUUID,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=0,lazy_journal_init=0", partitionStart, fsUUID),
		"-d", b.file("root"), disk, blocks))
}

// writeBootLoader writes GRUB's two stages where the BIOS and each other look
// for them: boot.img in the first sector, core.img from the second on, which
// is where an unpatched boot.img loads it from.
func writeBootLoader(disk, grub string) error {
	boot, err := os.ReadFile(filepath.Join(grub, "boot.img"))
	if err != nil {
		return fmt.Errorf("reading the boot loader: %w", err)
	}
	core, err := os.ReadFile(filepath.Join(grub, "core.img"))
	if err != nil {
		return fmt.Errorf("reading the boot loader: %w", err)
	}
	if len(boot) != sector || len(core) > partitionStart-sector {
		return fmt.Errorf("the boot loader does not fit before the partition: boot.img has %d bytes, core.img %d", len(boot), len(core))
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, errBoot := f.WriteAt(boot[:bootCode], 0)
	_, errCore := f.WriteAt(core, sector)
	return errors.Join(errBoot, errCore, f.Sync(), f.Close())
}
