package disk

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netgroup-polito/diskforge/internal/command"
)

// applianceGrace is what a libguestfs program gets to clear up after itself
// (its sockets lie in /tmp) once its virtual machine has been ended.
const applianceGrace = 30 * time.Second

// runAppliance runs a program that starts libguestfs' virtual machine. Such a
// program looks at SIGTERM only when the machine has booted, and starts it in
// a process group of its own; so when ctx ends we end the machine, whereupon
// the program clears up and ends at once.
func runAppliance(ctx context.Context, c command.Cmd) error {
	p, err := command.Start(ctx, c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { killChildren(p) })
	defer stop()
	return p.Wait()
}

// killChildren kills the children of p, and those that it still starts, until
// p has ended.
func killChildren(p *command.Process) {
	children := fmt.Sprintf("/proc/%d/task/%d/children", p.Pid(), p.Pid())
	for {
		list, _ := os.ReadFile(children)
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		select {
		case <-p.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
