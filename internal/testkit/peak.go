package testkit

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

// ResetPeak has the peak begin anew, with what this process holds now.
func ResetPeak() error {
	debug.FreeOSMemory()
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // proc_pid_clear_refs(5): the peak
}

// PeakMiB is the peak of this process's resident memory since its program began, or
// since ResetPeak. It is the kernel's VmHWM, which belongs to the program: ru_maxrss
// of getrusage begins with the peak of the process that started this one.
func PeakMiB() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, text, _ := strings.Cut(string(status), "\nVmHWM:")
	var kib float64
	if _, err := fmt.Sscan(text, &kib); err != nil {
		return 0, fmt.Errorf("/proc/self/status has no VmHWM: %w", err)
	}
	return kib / 1024, nil
}
