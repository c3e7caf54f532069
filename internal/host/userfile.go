// Userfile reads the files that users name in settings. A slip of the
// keyboard may name anything (/dev/zero, a FIFO that nobody writes to), and
// nothing of that takes long or much memory.

package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipeWait is how long the writer of a pipe may take: it may be a password
// manager that asks a person. Tests wait less.
var pipeWait = 30 * time.Second

// Read returns the content of a file of at most so many bytes. A pipe, such as
// a shell makes of <(pass show registry), is read like a file, for at most half a
// minute; folders, devices and sockets are refused.
func ReadFile(name string, most int64) ([]byte, error) {
	// Without O_NONBLOCK the opening itself would wait for a pipe's writer.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var content []byte
	switch mode := info.Mode(); {
	case mode.IsRegular():
		content, err = io.ReadAll(io.LimitReader(f, most+1))
	case mode&os.ModeNamedPipe != 0:
		content, err = readPipe(f, most+1)
	default:
		return nil, fmt.Errorf("%s is no file: give one that is", name)
	}
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%s is longer than %d KiB", name, most>>10)
	}
	if err != nil {
		return nil, err
	}
	return content, nil
}

// readPipe waits for a writer, too: until there is one, the pipe looks empty.
func readPipe(f *os.File, most int64) ([]byte, error) {
	end := time.Now().Add(pipeWait)
	if err := f.SetReadDeadline(end); err != nil {
		return nil, err
	}
	for {
		content, err := io.ReadAll(io.LimitReader(f, most))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), len(content) == 0 && time.Now().After(end):
			return nil, fmt.Errorf("%s is a pipe whose writer did not end within %s: give a file", f.Name(), pipeWait)
		case err != nil || len(content) > 0:
			return content, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
