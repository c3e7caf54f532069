package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Others' code, a playbook above all, runs as the user who started us. It
// could read the environment of that user's processes, where passwords stand:
// of this one, of the shell and of the CI agent that started it. Hence this
// process empties its own (HideEnvironment), and what runs others' code sees
// no process but its own (Cmd.Confined).

// HideEnvironment makes the environment that this process was started with,
// and its memory, unreadable for others; os.Getenv knows all as before. It has
// to be called before anything is started.
func HideEnvironment() error {
	err := emptyEnvironment()
	if err == nil {
		// Against those with our user id; root with CAP_SYS_PTRACE is not bound by it.
		err = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if err != nil {
		return fmt.Errorf("hiding the environment: %w", err)
	}
	return nil
}

// emptyEnvironment overwrites what the kernel shows as /proc/PID/environ. The
// Go runtime, the only one who needs it, has a copy.
func emptyEnvironment() error {
	start, end, err := environmentBlock()
	if err != nil {
		return err
	}
	memory, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	_, err = memory.WriteAt(make([]byte, end-start), start)
	return err
}

// environmentBlock is where the kernel finds our environment: env_start and
// env_end of proc_pid_stat(5), its fields 50 and 51.
func environmentBlock() (start, end int64, err error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // from field 3 on
	if len(fields) < 49 {
		return 0, 0, fmt.Errorf("/proc/self/stat has only %d fields", len(fields)+2)
	}
	if _, err := fmt.Sscan(string(fields[47])+" "+string(fields[48]), &start, &end); err != nil {
		return 0, 0, err
	}
	if end < start {
		return 0, 0, errors.New("/proc/self/stat does not say where the environment is")
	}
	return start, end, nil
}

// confinement is the command line that starts a program in a PID namespace of
// its own with a /proc of its own: it neither sees processes outside nor
// outlives its end. The shell is the namespace's init, on which SIGTERM has no
// effect, so that the program gets it and may clean up.
func confinement() []string {
	args := []string{"unshare"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-current-user")
	}
	return append(args, "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c", `"$@"; exit $?`, "sh")
}

// Unconfined says why a Confined program sees this host's processes all the
// same, or nothing where it does not.
var Unconfined = sync.OnceValue(func() error {
	all := append(confinement(), "true")
	out, err := exec.Command(all[0], all[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("no PID namespace can be made here: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
})

// InPod says whether this is a container of a Kubernetes pod: all have the variable. There
// the kubelet gives what is on a volume to the pod's group, to write to (fsGroup), again
// for each pod that mounts it.
func InPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }
