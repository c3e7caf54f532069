package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// candidates are the machines of this disk that Options.Full and Persistent ask
// for. Disks on SATA are what KubeVirt gives where neither the manifest nor a
// preference names a bus. A kernel without a driver for them, as Debian's for
// clouds, is a choice: instance type preferences ask for virtio.
func (m *machine) candidates() (all []kind) {
	sata, uefi := overSATA, withUEFI
	if !m.ahci {
		sata.unsupported = "the kernel has no driver for it, so the manifest has to say bus: virtio or name a preference that does"
	}
	switch {
	case m.SecureBoot:
		uefi = withSecureBoot
	case !m.UEFI:
		uefi.unsupported = "the disk has no EFI system partition with a boot loader"
	}
	if m.Full {
		all = append(all, crownLabsSeed)
	}
	if m.Full && arch.Of(m.Accel.Architecture).BIOS { // else every machine has UEFI, and none SATA
		all = append(all, sata, uefi)
	}
	if m.Persistent {
		all = append(all, secondLife)
	}
	return all
}

// further boots the other machines, one after another, until one fails.
func (m *machine) further(ctx context.Context, all []kind) error {
	for _, k := range all {
		if k.unsupported != "" {
			m.add(k.name, "not supported: "+k.unsupported, nil)
			continue
		}
		other := m.another(k)
		err := other.run(ctx)
		m.result.Checks = append(m.result.Checks, other.result.Checks...)
		if err != nil {
			return fmt.Errorf("the machine with %s: %w", k.name, err)
		}
	}
	return nil
}

// another is a machine of the same disk, whose desktop and playbook the first
// has shown already.
func (m *machine) another(k kind) *machine {
	o := m.Options
	o.Checks, o.Goss = "", ""
	if k.crownLabs {
		o.VMUser, o.BakedUser = vm.CrownLabsUser, m.BakedUser && m.VMUser == vm.CrownLabsUser
	}
	return &machine{Options: o, kind: k, p: m.p, compare: m.identity}
}

// differences are the checks that only a further machine can be put to.
func (m *machine) differences() []Check {
	if m.kind.name == "" {
		return nil
	}
	var err error
	if len(m.identity) == 0 {
		err = errors.New("it showed neither")
	}
	shared := slices.DeleteFunc(slices.Clone(m.compare), func(s string) bool { return !slices.Contains(m.identity, s) })
	if len(shared) > 0 {
		err = fmt.Errorf("two machines made of this disk have the same: %s", strings.Join(shared, ", "))
	}
	checks := []Check{m.check("machine-id and ssh host keys", "differ from the first machine's", err)}
	if m.kind.uefi {
		err = nil
		switch {
		case !m.uefi:
			err = errors.New("it has no /sys/firmware/efi: it was not started by UEFI")
		case m.kind.secure && !m.secure:
			err = errors.New("its SecureBoot variable is not 1: nothing checked its boot loader's signature")
		}
		checks = append(checks, m.check("firmware", m.kind.name+", ssh after "+text.Span(m.result.TimeToSSH), err))
	}
	return checks
}
