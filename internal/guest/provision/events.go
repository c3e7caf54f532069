package provision

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/report"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// task is one task of the playbook, which may still be found to have failed.
type task struct {
	report.Task
	failed      bool
	unreachable bool     // it failed because the guest did not answer
	lines       []string // the last of what its command or module wrote
}

// events reads Packer's plain output, line by line, and keeps what it says.
// It is the Writer of Packer's standard output; line is also called with what
// Packer writes to standard error.
type events struct {
	mu      sync.Mutex // held for each line
	now     func() time.Time
	report  progress.Reporter
	keptUp  func(port string)
	secrets *strings.Replacer // what the logs must not hold; nil before start
	log     *os.File          // all lines
	ansible *os.File          // Ansible's lines
	split   text.Splitter
	named   string // the beginning of a task's line whose name holds line breaks

	phase     phase
	since     time.Time                  // when the phase began
	connected func()                     // called when the guest answers, or nil
	took      [halting + 1]time.Duration // by phase
	tasks     []task
	taskSince time.Time
	itemError bool // the current task's message is that of one of its items
	port      string
	held      bool // the guest of a failed build is kept up
	trimmed   bool
	clean     bool
	errors    []string    // Packer's own errors, as it says them
	ran       bool        // a task in the guest, not on this host
	reached   func() bool // whether Ansible has connected to the guest
	broken    []string    // where conditions are not boolean, FILE:LINE
	inBroken  bool        // the next origin is that of such a condition
}

// phase is a part of the build.
type phase int

const (
	starting phase = iota
	booting
	configuring
	cleaning
	halting
)

// maxEvent bounds one line: the result of a failed task is one line of JSON
// with all that its command wrote.
const maxEvent = 1 << 20

// open creates the logs.
func (e *events) open(packerLog, ansibleLog string) (err error) {
	if e.log, err = newLog(packerLog); err == nil {
		e.ansible, err = newLog(ansibleLog)
	}
	return err
}

func (e *events) close() {
	e.log.Close() // which may be nil
	e.ansible.Close()
}

// start begins the clock.
func (e *events) start(p progress.Reporter, keptUp func(port string)) {
	e.secrets = cmp.Or(e.secrets, strings.NewReplacer())
	e.report, e.keptUp, e.split = p, keptUp, text.Splitter{Most: maxEvent, Line: e.line}
	if e.now == nil {
		e.now = time.Now
	}
	e.since = e.now()
}

// Write takes Packer's standard output.
func (e *events) Write(b []byte) (int, error) { return e.split.Write(b) }

// prefix is what Packer puts before each line of a build's output.
var prefix = regexp.MustCompile(`^(?:==>|-->|   ) qemu\.image: ?`)

// line takes one line of Packer's output.
func (e *events) line(said string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	said = text.Lines(e.secrets.Replace(said))
	fmt.Fprintln(e.log, said)
	said = prefix.ReplaceAllString(said, "")
	if e.phaseLine(said) {
		return
	}
	switch e.phase {
	case configuring:
		fmt.Fprintln(e.ansible, said)
		e.ansibleLine(e.whole(said))
	case cleaning, halting:
		e.cleanLine(said)
	}
}

// maxName bounds the lines of a task's name, in bytes.
const maxName = 4 << 10

var (
	taskBegins = regexp.MustCompile(`^(?:TASK|RUNNING HANDLER) \[`)
	taskEnds   = regexp.MustCompile(`\] \*+$`)
)

// whole puts the line of a task together whose name holds line breaks: Ansible
// writes them as they are. Until then it is empty.
func (e *events) whole(said string) string {
	if e.named == "" && (!taskBegins.MatchString(said) || taskEnds.MatchString(said)) {
		return said
	}
	e.named = strings.TrimSpace(e.named + " " + said)
	if !taskEnds.MatchString(said) && len(e.named) < maxName {
		return ""
	}
	said, e.named = e.named, ""
	return said
}

// portLine names the host's port that leads to the guest's ssh.
var portLine = regexp.MustCompile(`^Found port for communicator \(.*\): (\d+)\.`)

// phaseLine takes a line by which Packer says what it begins.
func (e *events) phaseLine(said string) bool {
	switch {
	case portLine.MatchString(said):
		e.port = portLine.FindStringSubmatch(said)[1]
	case strings.HasPrefix(said, "Starting VM"):
		e.begin(booting, "starting the guest")
	case said == "Connected to SSH!":
		e.begin(configuring, "starting Ansible")
		if e.connected != nil {
			e.connected()
		}
	case strings.HasPrefix(said, "Provisioning with shell script:"):
		e.begin(cleaning, "cleaning the guest")
	case strings.HasPrefix(said, "Gracefully halting virtual machine"):
		e.report.Activity("deleting the build user and trimming the disk")
	case strings.HasPrefix(said, "Provisioning step had errors"):
		if e.keptUp != nil {
			e.held = true
			e.keptUp(e.port)
		}
	case strings.HasPrefix(said, "Build 'qemu.image' finished"):
		e.begin(halting, "")
	case packerError.MatchString(said):
		e.errors = append(e.errors, said)
	default:
		return false
	}
	return true
}

// packerError begins the lines by which Packer and its plugins name their failures.
var packerError = regexp.MustCompile(`^(?:Error:? |Timeout waiting for SSH|Timeout while waiting for machine|Qemu failed|Failed |Build 'qemu\.image' errored)`)

// begin ends the phase that was, and starts the next.
func (e *events) begin(next phase, activity string) {
	now := e.now()
	if e.phase == configuring {
		e.endTask(now)
	}
	e.took[e.phase] = now.Sub(e.since)
	e.phase, e.since = next, now
	if activity != "" {
		e.report.Activity(activity)
	}
}

// The lines of Ansible's default callback.
var (
	taskLine   = regexp.MustCompile(`^(?:TASK|RUNNING HANDLER) \[(.*)\] \**$`)
	resultLine = regexp.MustCompile(`^(ok|changed|skipping|fatal|failed|unreachable): \[([^\]]*)\]` +
		`(?: \(item=.*?\))?(?:: (?:FAILED|UNREACHABLE)!)?(?: => (.*))?$`)
)

// ansibleLine takes one line of Ansible's output.
func (e *events) ansibleLine(said string) {
	if m := taskLine.FindStringSubmatch(said); m != nil {
		now := e.now()
		e.endTask(now)
		e.tasks = append(e.tasks, task{Task: report.Task{Name: m[1], Status: report.OK}})
		e.taskSince, e.itemError = now, false
		e.report.Activity(fmt.Sprintf("Ansible: %s (task %d)", m[1], len(e.tasks)))
		return
	}
	e.brokenCondition(said)
	if len(e.tasks) == 0 {
		return
	}
	task := &e.tasks[len(e.tasks)-1]
	if said == "...ignoring" {
		task.failed, task.Detail, task.lines = false, "", nil
		return
	}
	m := resultLine.FindStringSubmatch(said)
	if m == nil {
		if strings.HasPrefix(said, "PLAY RECAP") {
			e.endTask(e.now())
		}
		return
	}
	// Another host, or "default -> localhost", is not the guest.
	e.ran = e.ran || m[2] == playbook.GuestAlias && m[1] != "skipping" && (e.reached == nil || e.reached())
	switch m[1] {
	case "changed":
		task.Status = report.Changed
	case "skipping":
		if task.Status == report.OK {
			task.Status = report.Skipped
		}
	case "fatal", "failed", "unreachable":
		// What an item says is the cause; the task's own result only sums up.
		if !e.itemError {
			task.Detail, task.lines = explainResult(m[3])
		}
		task.failed, e.itemError = true, m[1] == "failed"
		task.unreachable = strings.Contains(said, ": UNREACHABLE! => ")
	}
}

// originLine is where in a playbook the text stands that a warning is about.
var originLine = regexp.MustCompile(`^Origin: (.+:\d+):\d+$`)

// brokenCondition notes the conditions that ansible-core 2.19 and newer warn
// about: they are text or lists, and a later release will refuse them.
func (e *events) brokenCondition(said string) {
	switch m := originLine.FindStringSubmatch(said); {
	case strings.HasPrefix(said, "[DEPRECATION WARNING]: Conditional result ("):
		e.inBroken = true
	case m != nil && e.inBroken:
		e.inBroken = false
		if !slices.Contains(e.broken, m[1]) {
			e.broken = append(e.broken, m[1])
		}
	}
}

func (e *events) endTask(now time.Time) {
	if n := len(e.tasks); n > 0 && e.tasks[n-1].Took == 0 {
		e.tasks[n-1].Took = now.Sub(e.taskSince)
	}
}

// trimLine is what fstrim says of the root file system.
var trimLine = regexp.MustCompile(`^diskforge: trim /: .*\((\d+) bytes\) trimmed`)

// cleanLine takes one line of clean.sh's output.
func (e *events) cleanLine(said string) {
	switch {
	case trimLine.MatchString(said):
		e.trimmed = trimLine.FindStringSubmatch(said)[1] != "0"
	case said == "diskforge: clean":
		e.clean = true
		e.begin(halting, "the guest powers off")
	case strings.HasPrefix(said, "diskforge: "):
		e.errors = append(e.errors, strings.TrimPrefix(said, "diskforge: "))
	}
}

// moduleResult are the parts of a failed result that say why. Modules write
// msg; include_vars writes message, include_tasks reason, what was raised
// exception, and a loop the results of its items.
type moduleResult struct {
	Msg          any            `json:"msg"`
	Message      string         `json:"message"`
	Reason       string         `json:"reason"`
	Censored     string         `json:"censored"`
	Exception    any            `json:"exception"`
	Stderr       string         `json:"stderr"`
	Stdout       string         `json:"stdout"`
	ModuleStderr string         `json:"module_stderr"`
	ModuleStdout string         `json:"module_stdout"`
	Results      []moduleResult `json:"results"`
	Failed       bool           `json:"failed"`
}

// why is the first of the parts that says anything.
func (r moduleResult) why() string {
	msg, isText := r.Msg.(string)
	if r.Msg != nil && !isText {
		b, _ := json.Marshal(r.Msg)
		msg = string(b)
	}
	exception, _ := r.Exception.(string)
	lines := strings.Split(strings.TrimSpace(exception), "\n") // of a traceback the last line is the error
	for _, said := range []string{msg, r.Message, r.Reason, r.Censored} {
		if said = strings.TrimSpace(said); said != "" {
			return said
		}
	}
	for _, item := range r.Results {
		if why := item.why(); item.Failed && why != "" {
			return why
		}
	}
	return lines[len(lines)-1]
}

// explainResult reads the JSON of a failed result. It never says nothing.
func explainResult(said string) (message string, details []string) {
	var r moduleResult
	if err := json.Unmarshal([]byte(said), &r); err != nil {
		return cmp.Or(strings.TrimSpace(said), "Ansible gave no reason"), nil
	}
	message = cmp.Or(r.why(), "Ansible gave no reason: "+said)
	if reason, lines := dpkgError(r.Stdout); reason != "" {
		return reason, lines
	}
	for _, s := range []string{r.ModuleStderr, r.ModuleStdout, r.Stderr, r.Stdout} {
		if lines := strings.Split(strings.TrimSpace(s), "\n"); lines[0] != "" {
			details = lastLines(lines)
			break
		}
	}
	if first, rest, found := strings.Cut(message, "\n"); found {
		message = first
		details = append(strings.Split(strings.TrimSpace(rest), "\n"), details...)
	}
	return message, details
}

// dpkgError finds the package that dpkg failed on, and the last lines that were
// written before that. apt's own message names no package, and dpkg goes on
// with the others: what it says of this one stands far from the end.
func dpkgError(stdout string) (reason string, lines []string) {
	lines = strings.Split(strings.ReplaceAll(stdout, "\r", ""), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "dpkg: error processing ") {
			continue
		}
		end := min(i+2, len(lines)) // the cause stands in the line after it
		return strings.Join(strings.Fields(strings.Join(lines[i:end], " ")), " "), lastLines(lines[:i])
	}
	return "", nil
}

// lastLines are those that are shown of what a task's command wrote.
func lastLines(lines []string) []string { return lines[max(0, len(lines)-10):] }

// failedTask is the task that ended the playbook, or nil.
func (e *events) failedTask() *task {
	for i := range slices.Backward(e.tasks) {
		if e.tasks[i].failed {
			return &e.tasks[i]
		}
	}
	return nil
}

func (e *events) result() Result {
	tasks := make([]report.Task, 0, len(e.tasks))
	for _, t := range e.tasks {
		if t.failed {
			t.Status = report.Failed
		}
		tasks = append(tasks, t.Task)
	}
	return Result{Trimmed: e.trimmed, Tasks: tasks, Timings: Timings{
		Boot: e.took[booting].Round(time.Millisecond), Ansible: e.took[configuring], Clean: e.took[cleaning], PowerOff: e.took[halting],
	}}
}
