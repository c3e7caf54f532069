package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/guest/vm"
)

// further boots the machines that Options.Full adds, one after another, until
// one fails.
func (m *machine) further(ctx context.Context) error {
	second := m.another(kind{name: "CrownLabs seed", crownLabs: true})
	second.VMUser = vm.CrownLabsUser
	second.BakedUser = m.BakedUser && m.VMUser == vm.CrownLabsUser
	if err := m.join(ctx, second); err != nil {
		return err
	}
	if err := m.sata(ctx); err != nil {
		return err
	}
	if !m.esp {
		m.result.Checks = append(m.result.Checks, m.check("UEFI", "not supported: the disk has no EFI system partition", nil))
		return nil
	}
	return m.join(ctx, m.another(kind{name: "UEFI", uefi: true}))
}

// sata boots from SATA disks, which KubeVirt gives where neither the manifest
// nor a preference names a bus. A kernel without a driver for them, as Debian's
// for clouds, is a choice: instance type preferences ask for virtio.
func (m *machine) sata(ctx context.Context) error {
	if m.ahci {
		return m.join(ctx, m.another(kind{name: "SATA", sata: true}))
	}
	m.result.Checks = append(m.result.Checks, m.check("SATA", "not supported: the kernel has no driver for it, so the manifest has to say bus: virtio or name a preference that does", nil))
	return nil
}

// another is a machine of the same disk, whose desktop and playbook the first
// has shown already.
func (m *machine) another(k kind) *machine {
	o := m.Options
	o.Checks, o.Goss = "", ""
	return &machine{Options: o, kind: k, p: m.p}
}

// join runs another machine and adds its checks to the result.
func (m *machine) join(ctx context.Context, other *machine) error {
	other.compare = m.identity
	err := other.run(ctx)
	m.result.Checks = append(m.result.Checks, other.result.Checks...)
	if err != nil {
		return fmt.Errorf("the machine with %s: %w", other.kind.name, err)
	}
	return nil
}

// differences are the checks that only a further machine can be put to.
func (m *machine) differences() []Check {
	if m.kind.name == "" {
		return nil
	}
	var err error
	if len(m.identity) == 0 {
		err = errors.New("it told neither")
	}
	if shared := common(m.compare, m.identity); len(shared) > 0 {
		err = fmt.Errorf("two machines made of this disk have the same: %s", strings.Join(shared, ", "))
	}
	checks := []Check{m.check("machine-id and ssh host keys", "differ from the first machine's", err)}
	if m.kind.uefi {
		err = nil
		if !m.uefi {
			err = errors.New("it has no /sys/firmware/efi: it was not started by UEFI")
		}
		checks = append(checks, m.check("firmware", "UEFI, ssh after "+seconds(m.result.TimeToSSH), err))
	}
	return checks
}

// common are the entries that are in both.
func common(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}
