// Package cli is the command line of diskforge: build, which runs all stages of
// one image, and a command for each stage; build-all and plan for a catalogue's
// images; inspect, manifest and images for what is in registries; base, tools and doctor
// for the host.
//
// A command has a flag for each setting that it reads (package settings has the
// table) and few of its own. It hands a pipeline.Build to the package that does
// the work, prints the result to standard output and decides the exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// Exit codes, besides 0. A shell's own convention for signals is followed:
// 129 after SIGHUP, 130 after Ctrl-C, 143 after SIGTERM.
const (
	exitFailed = 1
	exitUsage  = 2 // bad settings or arguments; nothing was started
)

// Main runs the program and returns its exit code. Results go to stdout,
// progress and errors to stderr.
func Main(args []string, stdout, stderr io.Writer) int {
	log.SetOutput(io.Discard) // net/http writes there what servers send unasked
	ctx, stop := withSignals(context.Background())
	defer stop()
	a := &app{stdout: text.Writer(stdout), exact: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if a.ui == nil {
		a.ui = ui.New(stderr, a.json)
	}
	if err != nil {
		err = understood(err)
		advisable(command, err)
		a.ui.Fail(err)
	}
	a.ui.Close()
	return exitCode(ctx, err)
}

// throwaway is set in the toolbox container: nobody gets at what a command
// leaves there when it has ended, be it a log or a guest.
const throwaway = "DISKFORGE_THROWAWAY"

// advisable leaves of a failure's advice what can be followed where the command
// ran: a log that is still there, a guest that a flag of the command keeps up.
func advisable(command *cobra.Command, err error) {
	f, ok := failure.In(err)
	if !ok {
		return
	}
	gone := os.Getenv(throwaway) != ""
	if gone {
		f.Log = ""
	}
	f.Guest = f.Guest && !gone && command.Flags().Lookup("keep-on-error") != nil
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ os.Signal }

func (i interrupted) Error() string {
	switch i.Signal {
	case os.Interrupt:
		return "stopped by Ctrl-C (SIGINT)"
	case syscall.SIGHUP:
		return "stopped by SIGHUP: the terminal is closed"
	}
	return "stopped by SIGTERM" // there is no other, see withSignals
}

// withSignals returns a context that Ctrl-C, SIGTERM and, unless nohup has it
// ignored, SIGHUP end. A further signal is not caught after a second: it ends the
// program at once. Before, it is the same: timeout(1) sends one to the program
// and one to its process group. Nobody's reading of our output ends it, so that it may clean up.
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	// Writing then fails like elsewhere; ignored, it would be for children, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		select {
		case s := <-signals:
			cancel(interrupted{s})
			time.Sleep(time.Second)
			signal.Stop(signals)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

func exitCode(ctx context.Context, err error) int {
	sig, stopped := errors.AsType[interrupted](context.Cause(ctx))
	switch {
	case err == nil:
		return 0
	case stopped:
		return 128 + int(sig.Signal.(syscall.Signal))
	case errors.As(err, new(settings.Mistakes)), errors.As(err, new(catalogue.Mistakes)), errors.As(err, new(usageError)),
		errors.Is(err, pipeline.ErrNoPlaybook), errors.Is(err, pipeline.ErrNoPackage):
		return exitUsage
	}
	return exitFailed
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// usage makes a mistake in the command line of an error of a reference.
func usage(err error) error {
	if errors.Is(err, registry.ErrReference) {
		return usageError{err}
	}
	return err
}

// understood makes one line, and a mistake in the command line, of what cobra
// says of commands that there are not: it gives its errors no type.
func understood(err error) error {
	what, guesses, _ := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	switch {
	case errors.As(err, new(usageError)):
		return err
	case strings.HasPrefix(what, "required flag(s) "):
		return usageError{err}
	case !strings.HasPrefix(what, "unknown command "):
		return err
	case guesses != "":
		return usageError{fmt.Errorf("%s: did you mean %s?", what, strings.Join(strings.Fields(guesses), " or "))}
	}
	return usageError{fmt.Errorf("%s: see diskforge --help", what)}
}

type app struct {
	stdout, stderr io.Writer // stdout takes lines, in which others' words are harmless
	exact          io.Writer // stdout for what programs read to the letter
	json           bool
	ui             *ui.UI
	settings       settings.Settings // as they were given
	out            string            // the flag --output of the command that runs
	keep           bool              // likewise --keep-on-error
}

func init() { cobra.EnableCommandSorting = false } // the order of the stages

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "diskforge",
		Short: "Turn a cloud image and an Ansible playbook into a KubeVirt containerdisk",
		Long: `Turn a cloud image and an Ansible playbook into a KubeVirt containerdisk.

build runs the stages in order: provision (Packer, QEMU and Ansible), sparsify,
verify (boot it once, the way KubeVirt does), pack (an OCI layout) and push.
Each stage is a command of its own, too.

Every setting is an environment variable (ISO_URL) and a flag (--iso-url); the
flag wins. Results go to standard output, its last line is the reference with
digest; progress and errors go to standard error.`,
		Example: `  # A containerdisk from Debian packages alone, as an OCI layout below out/
  diskforge build --base-from-packages --ansible-playbook debian-base

  # Debian's own cloud image, pushed to a registry
  REGISTRY_USER=me REGISTRY_PASS_FILE=pass diskforge build \
    --iso-url https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2 \
    --iso-checksum file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS \
    --ansible-playbook debian-base \
    --target-registry harbor.example.org --registry-prefix labs --image-name debian-base --image-tag 2026-11`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.exact)
	root.SetErr(a.stderr)
	root.Version = versions()
	root.SetVersionTemplate("{{.Version}}\n")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "write progress and errors as one JSON object a line (on standard error)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see %s --help", err, c.CommandPath())}
	})
	root.AddCommand(a.build(), a.capture(), a.snapshot())
	root.AddCommand(a.provision(), a.sparsify(), a.verify(), a.pack(), a.export(), a.push(), a.sign(), a.verifySignature(),
		a.report(), a.inspect(), a.manifest(), a.run(),
		a.init(), a.plan(), a.buildAll(), a.catalogue(), a.images(), a.outdated(), a.refresh(),
		a.site(), a.base(), a.tools(), a.stages(), a.doctor(), a.version())
	return root
}

// command makes a sub-command with a flag for each setting that it reads.
func (a *app) command(use, short, long string, args cobra.PositionalArgs, needs []pipeline.Need,
	run func(*cobra.Command, []string, *pipeline.Build) error,
) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long}
	name, _, _ := strings.Cut(use, " ")
	for _, f := range settings.Fields() {
		if f.In(name) {
			addFlag(c.Flags(), f)
		}
	}
	c.Args = func(c *cobra.Command, given []string) error {
		err := args(c, given)
		switch {
		case err != nil && c.Flags().Lookup("catalogue") != nil:
			return usageError{fmt.Errorf("%q is not understood: name a catalogue with --catalogue %s", given[0], given[0])}
		case err != nil:
			return usageError{fmt.Errorf("%w: the form is %s", err, c.UseLine())}
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if out := c.Flags().Lookup("output"); out != nil && out.Changed && out.Value.String() == "" {
			return usageError{errors.New("--output is empty: name where to write to")}
		}
		flags, err := given(c.Flags())
		if err != nil {
			return err
		}
		read, err := settings.Read(flags, nil)
		if err != nil {
			return err
		}
		cfg, err := pipeline.Parse(read, needs...)
		if mistakes := settings.Mistakes(nil); errors.As(err, &mistakes) {
			err = mistakes.For(name)
		}
		if err != nil {
			return err
		}
		a.settings = read
		a.ui = ui.New(a.stderr, a.json)
		return run(c, args, &pipeline.Build{Settings: read, Config: cfg, UI: a.ui, Version: version(), KeepOnError: a.keep})
	}
	return c
}

// addFlag adds the flag of a setting. A secret's is hidden and only says where
// the secret belongs: arguments can be read by every user of the host.
func addFlag(flags *pflag.FlagSet, f settings.Field) {
	if f.Secret {
		flags.String(f.Flag, "", "")
		_ = flags.MarkHidden(f.Flag)
		return
	}
	help := f.Help + " [" + f.Env + "]"
	if f.Bool {
		flags.Bool(f.Flag, f.Default == "true" || f.Default == "1", help)
	} else {
		flags.String(f.Flag, f.Default, help)
	}
}

// given returns the settings that the command line gives, by variable.
func given(flags *pflag.FlagSet) (map[string]string, error) {
	set := map[string]string{}
	for _, f := range settings.Fields() {
		flag := flags.Lookup(f.Flag)
		if flag == nil || !flag.Changed {
			continue
		}
		if f.Secret {
			instead := f.Env
			if file, ok := settings.By(f.Env + "_FILE"); ok {
				instead += " or " + file.Env
			}
			return nil, usageError{fmt.Errorf("--%s: a password on the command line can be read by every user of this host: "+
				"set %s in the environment instead", f.Flag, instead)}
		}
		set[f.Env] = flag.Value.String()
	}
	return set, nil
}
