package arch_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/netgroup-polito/diskforge/internal/arch"
)

func TestAnArchitectureIsKnownByAllItsNames(t *testing.T) {
	for name, want := range map[string]string{
		"amd64": "amd64", "x86_64": "amd64", "x64": "amd64", "arm64": "arm64", "aarch64": "arm64", "s390x": "s390x", "mips": "", "": "",
	} {
		assert.Equal(t, want, arch.Known(name), name)
	}
	assert.Equal(t, "amd64", arch.Of("").Name, "whatever the host is")
	assert.Equal(t, "BOOTAA64.EFI", arch.Of("arm64").Loader())
	assert.Equal(t, arch.Arch{Name: "mips"}, arch.Of("mips"))
}
