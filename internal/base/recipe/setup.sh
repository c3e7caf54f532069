# Runs after the packages are installed and the overlay's files are in place.
# $1 is the root directory of the new system.
set -eu

{{if .BIOS -}}
# What grub-install does for a disk that is there: the modules that belong to
# the boot loader, and a core image that finds them by the file system's UUID.
# The guest's own tools make it, so that loader and modules never differ.
grub=boot/grub/i386-pc
mkdir -p "$1/$grub"
cp "$1"/usr/lib/grub/i386-pc/*.mod "$1"/usr/lib/grub/i386-pc/*.lst "$1/usr/lib/grub/i386-pc/boot.img" "$1/$grub/"
chroot "$1" grub-mkimage --format=i386-pc --prefix=/boot/grub --config=/boot/grub/early.cfg \
	--output=/$grub/core.img biosdisk part_msdos ext2 search_fs_uuid

{{end -}}
# And what it does for UEFI: shim, which Microsoft signed, in the place where firmware
# looks on a disk that it does not know, and beside it GRUB and MokManager, which Debian
# signed, whose configuration the overlay has in EFI/debian. What is in boot/efi becomes
# the EFI system partition.
efi=$1/boot/efi/EFI
mkdir -p "$efi/BOOT"
cp "$1/usr/lib/shim/shim{{.EFI}}.efi.signed" "$efi/BOOT/{{.Loader}}"
cp "$1/usr/lib/shim/mm{{.EFI}}.efi.signed" "$efi/BOOT/mm{{.EFI}}.efi"
cp "$1/usr/lib/grub/{{.GRUB}}-signed/grub{{.EFI}}.efi.signed" "$efi/BOOT/grub{{.EFI}}.efi"
# So that they are renewed there when the packages are: a virtual machine's variables,
# where other loaders are registered, do not go with its disk.
chroot "$1" debconf-set-selections <<-END
	grub-efi-{{.Name}} grub2/force_efi_extra_removable boolean true
	grub-efi-{{.Name}} grub2/update_nvram boolean false
END

# cloud-init configures the network through networkd: there is no other.
chroot "$1" systemctl enable systemd-networkd.service systemd-resolved.service serial-getty@{{.Console}}.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"

# Timers that would compete with a boot, and with a user's first apt.
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service

# What every machine must make for itself.
rm -f "$1"/etc/ssh/ssh_host_* "$1/var/lib/dbus/machine-id" "$1/var/lib/systemd/random-seed"
: > "$1/etc/machine-id"

# Tells systemd that caches (ldconfig, catalogue, hwdb) fit /usr already.
touch "$1/etc/.updated" "$1/var/.updated"
