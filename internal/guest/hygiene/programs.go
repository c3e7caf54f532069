package hygiene

import (
	"bufio"
	"context"
	"io"
	"slices"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// command is a run of an external program in dir.
func command(dir, name string, args ...string) host.Cmd {
	return host.Cmd{Program: name, Args: args, Dir: dir, Env: host.Env("LC_ALL=C")}
}

// What a program that reads an untrusted file system may take: 2 GiB of
// address space, and no file of its own.
var limits = []string{"--as=2147483648", "--fsize=0", "--core=0"}

// limited is a run of a program under the limits.
func limited(dir, name string, args ...string) (host.Cmd, error) {
	path, err := host.Look(name)
	return command(dir, "prlimit", slices.Concat(limits, []string{path}, args)...), err
}

// stream runs a program with start and hands its output to read, which gets
// the program's error where that ended too early. When read fails the program
// is ended; otherwise what it still says is read to the end.
func stream(ctx context.Context, c host.Cmd, start func(context.Context, host.Cmd) error, read func(*bufio.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	c.Stdout = w
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.CloseWithError(start(ctx, c))
	}()
	out := bufio.NewReaderSize(r, 256<<10)
	err := read(out)
	if err == nil {
		_, err = io.Copy(io.Discard, out)
	}
	cancel()
	_ = r.Close()
	<-ended
	return err
}
