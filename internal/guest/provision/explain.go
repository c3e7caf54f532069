package provision

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// explain turns Packer's failure into what a person can act on: the task that
// failed, the guest that never answered, the disk that is full, or else what
// Packer and QEMU said.
func (b *build) explain(err error) error {
	said := func(what string, lines []string) *failure.Error {
		return &failure.Error{What: what, Lines: lines, Log: b.log("packer.log"), Err: err}
	}
	if dir, full := b.fullDisk(); full {
		e := said("the disk that holds "+dir+" is full", nil)
		e.Try = "make room, or set OUTPUT_DIR to another disk"
		return e
	}
	if task := b.events.failedTask(); task != nil {
		return b.taskFailed(task, err)
	}
	silent := func(line string) bool { return strings.HasPrefix(line, "Timeout waiting for SSH") }
	switch {
	case b.events.phase == booting && slices.ContainsFunc(b.events.errors, silent):
		return b.neverUp(fmt.Sprintf("the guest did not answer ssh within %s", b.opts.SSHTimeout))
	case b.events.phase == cleaning || b.events.phase == halting:
		return said("cleaning the guest failed: "+b.events.lastError(err), vm.LastLines(b.log("packer.log"), 10))
	}
	if qemu := b.qemuSaid(); len(qemu) > 0 {
		return said("QEMU failed: "+qemu[len(qemu)-1], qemu)
	}
	return said("Packer failed: "+b.events.lastError(err), vm.LastLines(b.log("packer.log"), 10))
}

func (b *build) taskFailed(task *task, err error) error {
	e := &failure.Error{
		What:  fmt.Sprintf("the playbook's task %q failed: %s", task.Name, task.Detail),
		Lines: append([]string{"TASK [" + task.Name + "]", task.Detail}, task.lines...),
		Log:   b.log("ansible.log"),
		Try:   "correct the playbook",
		Guest: !b.opts.KeepOnError,
		Err:   err,
	}
	all := strings.Join(e.Lines, "\n")
	switch {
	case task.unreachable:
		e.What = fmt.Sprintf("the guest was lost during the task %q: %s", task.Name, task.Detail)
		e.Try, e.Guest, e.Log = "the end of its console is below", false, b.log("console.log")
		e.Lines = append(e.Lines, vm.LastLines(e.Log, 12)...)
	case strings.Contains(all, "ansible.module_utils.six.moves"):
		e.Try = "this host's Ansible is too old for the guest's Python: build on Debian 13, in the toolbox, or from an older guest"
	case host.SaysDiskFull(all):
		e.Try = "the guest's disk is full: raise DISK_SIZE"
	case strings.Contains(all, "Cannot allocate memory") || strings.Contains(all, "MemoryError"):
		e.Try = "the guest's memory is full: raise MEMORY"
	}
	return e
}

// neverUp is the failure of a guest whose ssh never came, with the end of its
// serial console as the evidence.
func (b *build) neverUp(what string) error {
	lines := vm.LastLines(b.log("console.log"), 12)
	e := &failure.Error{What: what, Lines: lines, Log: b.log("console.log"),
		Try: vm.HangAdvice(what, "is the base a cloud image, with cloud-init and an ssh server?")}
	if len(lines) == 0 {
		e.Lines = []string{"the serial console stayed silent: the guest's kernel may lack console=" + arch.Of(b.opts.Accel.Architecture).Console}
	}
	return e
}

// minFree is the room below which a disk counts as full: QEMU writes whole
// clusters and its tables.
const minFree = 16 << 20

// fullDisk names a directory of the build that has no room left.
func (b *build) fullDisk() (string, bool) {
	for _, dir := range []string{filepath.Dir(b.opts.Output), b.opts.WorkDir, b.run} {
		if free, err := host.FreeSpace(dir); err == nil && free < minFree {
			return dir, true
		}
	}
	return "", false
}

// qemuSaid are the last lines that QEMU wrote to its standard error.
func (b *build) qemuSaid() []string {
	f, err := os.Open(b.log("packer-debug.log"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var lines []string
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, maxEvent)
	for scan.Scan() {
		if _, said, found := strings.Cut(scan.Text(), "Qemu stderr: "); found {
			lines = append(lines, said)
		}
	}
	return lastLines(lines)
}

// lastError is the last of Packer's errors that says something.
func (e *events) lastError(err error) string {
	for _, said := range slices.Backward(e.errors) {
		if !strings.HasPrefix(said, "Build 'qemu.image' errored") {
			return said
		}
	}
	return err.Error()
}
