package hygiene

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// packages are Debian's, by the program that they bring.
var packages = map[string]string{
	"qemu-img":  "qemu-utils",
	"prlimit":   "util-linux",
	"blkid":     "util-linux",
	"sfdisk":    "fdisk",
	"debugfs":   "e2fsprogs",
	"guestfish": "guestfish",
}

// program finds an external program, or says which package has it.
func program(name string) (string, error) {
	path, err := host.Look(name)
	if err != nil {
		return "", failure.New("looking into the disk needs "+name+", which is not installed", "apt-get install "+packages[name])
	}
	return path, nil
}

// What a program that reads an untrusted file system may take: 2 GiB of
// address space, and no file of its own.
var limits = []string{"--as=2147483648", "--fsize=0", "--core=0"}

// limited returns the command that runs a program under the limits.
func limited(dir, name string, args ...string) (host.Cmd, error) {
	path, err := program(name)
	if err != nil {
		return host.Cmd{}, err
	}
	prlimit, err := program("prlimit")
	if err != nil {
		return host.Cmd{}, err
	}
	all := append(append([]string{}, limits...), path)
	return host.Cmd{Program: prlimit, Args: append(all, args...), Dir: dir, Env: host.Env("LC_ALL=C")}, nil
}

// run runs a program to its end, with its output to stdout.
func run(ctx context.Context, dir string, stdout io.Writer, name string, args ...string) error {
	path, err := program(name)
	if err != nil {
		return err
	}
	return host.Run(ctx, host.Cmd{Program: path, Args: args, Dir: dir, Env: host.Env("LC_ALL=C"), Stdout: stdout})
}

// stream runs a program with start and hands its output to read. When read
// fails the program is ended; otherwise what it still says is read to the end.
func stream(ctx context.Context, c host.Cmd, start func(context.Context, host.Cmd) error, read func(*bufio.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	c.Stdout = w
	ended := make(chan error, 1)
	go func() {
		err := start(ctx, c)
		_ = w.Close()
		ended <- err
	}()
	out := bufio.NewReaderSize(r, 256<<10)
	errRead := read(out)
	short := errors.Is(errRead, io.EOF) || errors.Is(errRead, io.ErrUnexpectedEOF)
	switch {
	case errRead == nil:
		_, errRead = io.Copy(io.Discard, out)
	case !short:
		cancel()
	}
	_ = r.Close()
	err := <-ended
	// How the program ended explains why its output was cut short.
	if errRead == nil || short && err != nil {
		return err
	}
	return errRead
}

// exitCode is how a program that ran ended, or -1.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
