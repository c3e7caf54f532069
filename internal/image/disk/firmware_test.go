package disk_test

import (
	"cmp"
	"debug/pe"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
)

func run(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	path, err := host.Look(name)
	require.NoError(t, err)
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// withESP is a raw disk with an EFI system partition of so many MiB, made by
// mkfs.fat with a table of so many bits and put into by mcopy. The files are in
// one folder, in this order, and all hold the loader.
func withESP(t *testing.T, label, size, bits string, loader []byte, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	raw, esp := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "esp")
	run(t, "", "qemu-img", "create", "-q", "-f", "raw", raw, "64M")
	kind := map[string]string{"gpt": "uefi", "dos": "ef"}[label]
	run(t, "label: "+label+"\nstart=2048, size="+size+"M, type="+kind+"\n", "sfdisk", "-q", raw)
	run(t, "", "qemu-img", "create", "-q", "-f", "raw", esp, size+"M")
	run(t, "", "mkfs.fat", "-F", bits, "-s", "1", "-n", "EFI", esp) // a label is an entry of the root
	if len(files) > 0 {
		folder := filepath.Dir(files[0])
		run(t, "", "mmd", "-i", esp, "::"+filepath.Dir(folder), "::"+folder)
		args := []string{"-i", esp}
		for _, file := range files {
			from := filepath.Join(dir, filepath.Base(file))
			require.NoError(t, os.WriteFile(from, loader, 0o600))
			args = append(args, from)
		}
		run(t, "", "mcopy", append(args, "::"+folder)...)
	}
	run(t, "", "dd", "if="+esp, "of="+raw, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	return raw
}

// executable is a PE file, larger than a cluster, whose certificate table has the name
// of who signed it; without a name it has none.
func executable(t *testing.T, signer string) []byte {
	t.Helper()
	const newHeader = 0x3c // where DOS's header says where PE's is
	b := append(make([]byte, 64), "PE\x00\x00"...)
	copy(b, "MZ")
	b[newHeader] = 64
	header := pe.OptionalHeader64{Magic: 0x20b, NumberOfRvaAndSizes: 16}
	if signer != "" {
		header.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY] = pe.DataDirectory{VirtualAddress: 3000, Size: 300}
	}
	b, err := binary.Append(b, binary.LittleEndian, pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, SizeOfOptionalHeader: uint16(binary.Size(header))})
	require.NoError(t, err)
	b, err = binary.Append(b, binary.LittleEndian, header)
	require.NoError(t, err)
	b = append(b, make([]byte, 4000-len(b))...)
	copy(b[3100:], cmp.Or(signer, "Microsoft, not in a table"))
	return b
}

func TestTheFirmwareIsReadOffTheDisk(t *testing.T) {
	t.Parallel()
	var many []string
	for _, name := range strings.Split("abcdefghijklmnopqrstuvwxyz", "") {
		many = append(many, "EFI/BOOT/a-long-name-for-"+name+".efi")
	}
	const place = "EFI/BOOT/BOOTX64.EFI"
	shim, unsigned := executable(t, "Microsoft Corporation UEFI CA 2011"), executable(t, "")
	for what, c := range map[string]struct {
		label, size, bits string
		loader            []byte
		files             []string
		want              disk.Firmware
	}{
		"GPT, FAT16":                {"gpt", "20", "16", shim, []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true, SecureBoot: true}},
		"GPT, FAT32":                {"gpt", "40", "32", shim, []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true, SecureBoot: true}},
		"DOS, FAT12":                {"dos", "2", "12", shim, append(many, place), disk.Firmware{Architecture: "amd64", UEFI: true, SecureBoot: true}},
		"unsigned":                  {"gpt", "20", "16", unsigned, []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true}},
		"signed by somebody":        {"gpt", "20", "16", executable(t, "Debian Secure Boot CA"), []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true}},
		"no program":                {"gpt", "20", "16", []byte("a loader"), []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true}},
		"cut":                       {"gpt", "20", "16", shim[:3000], []string{place}, disk.Firmware{Architecture: "amd64", UEFI: true}},
		"arm64":                     {"gpt", "20", "16", unsigned, []string{"EFI/BOOT/BOOTAA64.EFI"}, disk.Firmware{Architecture: "arm64", UEFI: true}},
		"for both":                  {"gpt", "20", "16", shim, []string{place, "EFI/BOOT/BOOTAA64.EFI"}, disk.Firmware{UEFI: true, SecureBoot: true}},
		"an EFI/debian alone":       {"gpt", "20", "16", shim, []string{"EFI/debian/grubx64.efi"}, disk.Firmware{}},
		"an empty system partition": {"gpt", "20", "16", nil, nil, disk.Firmware{}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			raw := withESP(t, c.label, c.size, c.bits, c.loader, c.files...)
			f, err := disk.FirmwareOf(raw)
			require.NoError(t, err)
			assert.Equal(t, c.want, f)
			// Boot code in the first sector, as GRUB's boot.img is.
			content, err := os.OpenFile(raw, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = content.WriteAt([]byte{0xeb, 0x63, 0x90}, 0)
			require.NoError(t, err)
			require.NoError(t, content.Close())
			want := c.want
			want.BIOS = true
			for _, options := range [][]string{{"-O", "qcow2"}, {"-O", "qcow2", "-c", "-o", "compression_type=zlib"}, {"-O", "qcow2", "-c", "-o", "compression_type=zstd"}} {
				image := filepath.Join(t.TempDir(), "disk.qcow2")
				run(t, "", "qemu-img", append(append([]string{"convert", "-f", "raw"}, options...), raw, image)...)
				f, err := disk.FirmwareOf(image)
				require.NoError(t, err, options)
				assert.Equal(t, want, f, options)
			}
		})
	}
	assert.Equal(t, "BIOS and UEFI", disk.Firmware{BIOS: true, UEFI: true}.String())
	assert.Equal(t, "BIOS and UEFI with Secure Boot", disk.Firmware{BIOS: true, UEFI: true, SecureBoot: true}.String())
}

func TestADiskThatReadsOtherFilesIsNotLookedInto(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", dir+"/base", "1G")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", dir+"/base", dir+"/overlay")
	_, err := disk.FirmwareOf(dir + "/overlay")
	require.ErrorContains(t, err, "cannot be looked into")
	f, err := disk.FirmwareOf(dir + "/base")
	require.NoError(t, err)
	assert.Equal(t, disk.Firmware{}, f)
}

func FuzzFirmware(f *testing.F) {
	sector := make([]byte, 8192)
	copy(sector[446:], []byte{0, 0, 0, 0, 0xef, 0, 0, 0, 2})
	copy(sector[510:], []byte{0x55, 0xaa})
	copy(sector[1024+11:], []byte{0, 2, 1, 1, 0, 1, 16, 0, 64, 0, 0, 1, 0})
	copy(sector[1024+510:], []byte{0x55, 0xaa})
	f.Add(sector)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		i := disk.Look(r, int64(len(b)))
		_, _ = i.Firmware(r)
	})
}
