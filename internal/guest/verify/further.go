package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// candidate is a machine that Options.Full or Persistent adds, where the disk is for it.
type candidate struct {
	kind
	unsupported string // why it is not, or empty
}

// candidates are those of this machine's disk that the options ask for. Disks on SATA are what KubeVirt
// gives where neither the manifest nor a preference names a bus. A kernel
// without a driver for them, as Debian's for clouds, is a choice: instance type
// preferences ask for virtio.
func (m *machine) candidates() []candidate {
	sata, uefi := candidate{kind: overSATA}, candidate{kind: withUEFI}
	if !m.ahci {
		sata.unsupported = "the kernel has no driver for it, so the manifest has to say bus: virtio or name a preference that does"
	}
	switch {
	case m.SecureBoot:
		uefi.kind = withSecureBoot
	case !m.UEFI:
		uefi.unsupported = "the disk has no EFI system partition with a boot loader"
	}
	var all []candidate
	if m.Full {
		all = append(all, candidate{kind: crownLabsSeed}, sata, uefi)
	}
	if m.Persistent {
		all = append(all, candidate{kind: secondLife})
	}
	return all
}

// further boots the other machines, one after another, until one fails.
func (m *machine) further(ctx context.Context, all []candidate) error {
	for _, c := range all {
		if c.unsupported != "" {
			m.add(c.name, "not supported: "+c.unsupported, nil)
			continue
		}
		other := m.another(c.kind)
		err := other.run(ctx)
		m.result.Checks = append(m.result.Checks, other.result.Checks...)
		if err != nil {
			return fmt.Errorf("the machine with %s: %w", c.name, err)
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
