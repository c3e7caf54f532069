package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// applianceGrace is what a libguestfs program gets to clear up after itself
// once its virtual machine was ended.
const applianceGrace = 30 * time.Second

// RunAppliance runs a program that starts libguestfs' virtual machine. Such a
// program looks at SIGTERM only when the machine has booted, then leaves its
// sockets in /tmp, and the machine has a process group of its own. So when ctx
// ends we end the machine: for the program that is a failure like any other,
// after which it clears up and ends at once.
func RunAppliance(ctx context.Context, c Cmd) error {
	p, err := Start(context.WithoutCancel(ctx), c)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
		return p.Wait()
	case <-ctx.Done():
		endAppliance(p)
		return context.Cause(ctx)
	}
}

// endAppliance kills the virtual machine of p, and any that it still starts,
// until p has ended.
func endAppliance(p *Process) {
	late := time.After(applianceGrace)
	for {
		killChildren(p.Pid())
		select {
		case <-p.Done():
			return
		case <-late:
			p.Stop()
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// killChildren kills the virtual machine, or what makes its disk ready. Other
// children must live: with rm the program clears up.
func killChildren(parent int) {
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	for _, field := range strings.Fields(string(list)) {
		name, _ := os.ReadFile(filepath.Join("/proc", field, "comm"))
		pid, err := strconv.Atoi(field)
		if err == nil && (bytes.HasPrefix(name, []byte("qemu-")) || bytes.HasPrefix(name, []byte("supermin"))) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
