package testkit_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/testkit"
)

// childVariable makes this program print its own peak and end.
const childVariable = "DISKFORGE_TEST_PEAK"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	mib, err := testkit.PeakMiB()
	fmt.Println(mib, err)
}

// touched is memory that is there: the kernel gives pages that are written to.
func touched(mib int) []byte {
	b := make([]byte, mib<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return b
}

func TestAProcessOfALargeOneHasItsOwnPeak(t *testing.T) {
	large := touched(256)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"=1")
	out, err := child.Output()
	require.NoError(t, err)
	var mib float64
	_, err = fmt.Sscan(string(out), &mib)
	require.NoError(t, err, "%s", out)
	assert.Greater(t, mib, 1.0)
	assert.Less(t, mib, 100.0)
	assert.EqualValues(t, 1, large[0])
}

func TestThePeakBeginsAnew(t *testing.T) {
	large := touched(256)
	before, err := testkit.PeakMiB()
	require.NoError(t, err)
	assert.Greater(t, before, 256.0)
	assert.EqualValues(t, 1, large[0])
	large = nil
	_ = large
	require.NoError(t, testkit.ResetPeak())
	after, err := testkit.PeakMiB()
	require.NoError(t, err)
	assert.Less(t, after, before-200)
}
