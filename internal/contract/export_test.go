package contract

import "testing"

// Unpack makes layers that unpack to more than n bytes too large.
func Unpack(t *testing.T, n int64) {
	before := localLimits
	t.Cleanup(func() { localLimits = before })
	localLimits.unpacked = n
}

// Entries makes n the most entries of an archive.
func Entries(t *testing.T, n int) {
	before := localLimits
	t.Cleanup(func() { localLimits = before })
	localLimits.entries, localLimits.parts = n, n
}
