package vm

import (
	"errors"
	"io/fs"
	"os"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

// firmware is a build of OVMF: the code, which is only read, and an empty
// store of variables, of which each machine gets a copy.
type firmware struct{ code, vars string }

// firmwares are where distributions put OVMF without Secure Boot.
var firmwares = []firmware{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},                 // Debian, Ubuntu
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},             // Fedora
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},         // Arch
	{"/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"}, // openSUSE
}

func findFirmware(all []firmware) (firmware, error) {
	for _, f := range all {
		if exists(f.code) && exists(f.vars) {
			return f, nil
		}
	}
	return firmware{}, failure.New("this host has no UEFI firmware for virtual machines", "apt-get install ovmf")
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

// copyVars gives a machine its own store of variables.
func copyVars(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o600)
}
