package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/engine"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/provision"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

func (a *app) build() *cobra.Command {
	var keep bool
	var where string
	c := a.command("build", "Build, verify, pack and push an image",
		`Build an image: provision, sparsify, verify, pack and, where TARGET_REGISTRY is
set, push. The OCI layout is kept in OUTPUT_DIR/IMAGE_NAME either way. What an
interrupted build finished is used again where its inputs are the same.

With --engine dagger the stages run in a Dagger engine, in the toolbox of the
Dagger module: the one that _EXPERIMENTAL_DAGGER_RUNNER_HOST names, or Docker's.
A registry is then reached from the engine, with REGISTRY_USER and its password
only. DISKFORGE_BASE_IMAGE, DISKFORGE_GO_IMAGE and DISKFORGE_APT_MIRROR name
other images and another mirror for the toolbox.`,
		cobra.NoArgs, []settings.Need{settings.NeedBase, settings.NeedPlaybook, settings.NeedReference},
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			b.KeepOnError = keep
			run, err := a.runner(where, b)
			if err != nil {
				return err
			}
			result, err := run(c.Context())
			if err != nil {
				return err
			}
			return a.print(result.Reference)
		})
	keepFlag(c, &keep)
	c.Flags().StringVar(&where, "engine", "host", "where the stages run: host or dagger")
	return c
}

// runner is what builds: this host, or a Dagger engine.
func (a *app) runner(where string, b *pipeline.Build) (func(context.Context) (pipeline.Result, error), error) {
	switch {
	case where == "host":
		return b.Run, nil
	case where != "dagger":
		return nil, usageError{fmt.Errorf("--engine %q is not known: give host or dagger", where)}
	case b.KeepOnError:
		return nil, usageError{errors.New("--keep-on-error keeps a guest up, which a Dagger engine cannot: give it with --engine host")}
	}
	return (&engine.Build{Settings: a.settings, Config: b.Config, UI: b.UI, Version: b.Version}).Run, nil
}

func (a *app) provision() *cobra.Command {
	var out string
	var keep bool
	c := a.command("provision -o DISK", "Boot the base image with Packer and run the playbook",
		"Boot a copy of the base image, run the playbook, remove the build's traces and\nwrite the disk, a qcow2 image. What later stages want to know of it stands in\nDISK.json; the logs are in DISK.work.",
		cobra.NoArgs, []settings.Need{settings.NeedBase, settings.NeedPlaybook},
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			b.KeepOnError = keep
			return a.printed(out, b.ProvisionTo(c.Context(), out))
		})
	output(c, &out, "the disk to write")
	keepFlag(c, &keep)
	return c
}

func (a *app) sparsify() *cobra.Command {
	var out string
	c := a.command("sparsify DISK -o OUT", "Leave out what the disk does not use, and compress the rest",
		"Write DISK as a compressed qcow2 image without its unused blocks. Where the guest\ntrimmed its disk that is one pass of qemu-img; where it did not, virt-sparsify\ntrims it first.",
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			return a.printed(out, b.SparsifyTo(c.Context(), args[0], out))
		})
	output(c, &out, "the disk to write")
	return c
}

func (a *app) verify() *cobra.Command {
	var keep, full bool
	c := a.command("verify DISK", "Boot the disk as KubeVirt does and look inside",
		`Look into DISK, which is not changed: at rest for what the build left behind
(the hygiene gate), and in an overlay that boots with a NoCloud seed, as CrownLabs
starts it. Where ANSIBLE_PLAYBOOK names a playbook with tests/PLAYBOOK.yaml beside
it, these goss checks are run, too; tests/PLAYBOOK.allow.yaml, or HYGIENE_ALLOW,
excuses findings of the gate.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			b.KeepOnError, b.Full = keep, full
			return b.VerifyDisk(c.Context(), args[0])
		})
	keepFlag(c, &keep)
	c.Flags().BoolVar(&full, "full", false, "boot twice more: with CrownLabs' own seed, whose machine-id and host keys have to differ, and with UEFI where the disk can")
	return c
}

func (a *app) report() *cobra.Command {
	var out string
	c := a.command("report DISK -o DIR", "Write the report of a disk that stages made one by one",
		"Write what the stages told of DISK (in DISK.json) into DIR, as report.html,\nreport.json and summary.md. A whole build leaves its report in OUTPUT_DIR.",
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, _ *pipeline.Build) error {
			page, err := pipeline.ReportTo(c.Context(), args[0], out)
			return a.printed(page, err)
		})
	output(c, &out, "the directory to write to")
	return c
}

func (a *app) pack() *cobra.Command {
	var out string
	c := a.command("pack DISK -o LAYOUT_DIR", "Wrap the disk as a containerdisk, in an OCI layout",
		"Write DISK as a containerdisk into an OCI layout. The same disk and the same\nDISK.json give the same digest, everywhere.",
		cobra.ExactArgs(1), []settings.Need{settings.NeedReference},
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			reference, err := b.PackTo(c.Context(), args[0], out)
			return a.printed(reference, err)
		})
	output(c, &out, "the directory of the OCI layout")
	return c
}

func (a *app) push() *cobra.Command {
	var unverified bool
	c := a.command("push LAYOUT_DIR [REF]", "Push an OCI layout to a registry",
		"Push the image to REF, or to the address that the settings give, or to the one\nit was packed for. What the registry has already is not sent again.",
		cobra.RangeArgs(1, 2), []settings.Need{settings.NeedReference},
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			reference := ""
			if len(args) == 2 {
				reference = args[1]
			}
			pushed, err := b.PushLayout(c.Context(), args[0], reference, unverified)
			return a.printed(pushed, usage(err))
		})
	c.Flags().BoolVar(&unverified, "unverified", false, "push an image that was not verified")
	return c
}

func (a *app) base() *cobra.Command {
	return a.command("base", "Make a base image from Debian packages, or fetch one",
		"Make a cloud image of Debian from its packages or, where ISO_URL is set, fetch that\nimage; or find it in the cache. Print its path.",
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			path, err := b.Base(c.Context())
			return a.printed(path, err)
		})
}

func (a *app) tools() *cobra.Command {
	return a.command("tools", "Compile Packer, its plugins and goss, and print their folder",
		"Compile the pinned Packer, its plugins and goss into CACHE_DIR, or find them there,\nand print their folder. A build does that by itself; a toolbox image is made with\nit: copy the folder and name it in "+provision.ToolsDirVariable+".",
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			dir, err := b.Tools(c.Context())
			return a.printed(dir, err)
		})
}

func (a *app) doctor() *cobra.Command {
	return a.command("doctor", "Say what a build would miss on this host",
		"Look at the programs, the accelerator and the space that a build needs here.\nThe exit code is not 0 where a build cannot work.",
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			findings := Examine(c.Context(), DoctorOptions{
				Accelerator: b.Config.Accelerator, CacheDir: b.Config.CacheDir, OutputDir: b.Config.OutputDir,
			})
			if err := a.show(findings); err != nil {
				return err
			}
			if !Healthy(findings) {
				return failure.New("a build cannot work on this host", "mend what is missing above")
			}
			return nil
		})
}

// show prints findings: a table, or one JSON object a line.
func (a *app) show(findings []Finding) error {
	for _, f := range findings {
		if a.json {
			text, err := json.Marshal(f)
			if err != nil {
				return err
			}
			if err := a.print(string(text)); err != nil {
				return err
			}
			continue
		}
		line := fmt.Sprintf("%-8s %-20s %s", f.State, f.Name, f.Detail)
		if f.Mend != "" {
			line += "\n" + strings.Repeat(" ", 30) + "→ " + f.Mend
		}
		if err := a.print(line); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of diskforge and of its tools", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.print(versions())
		},
	}
}

// versions are those of diskforge and of its tools, one a line.
func versions() string {
	v := provision.ToolsVersions()
	return fmt.Sprintf("diskforge %s\npacker %s\npacker-plugin-qemu %s\npacker-plugin-ansible %s\ngoss %s",
		version(), v["packer"], v["packer-plugin-qemu"], v["packer-plugin-ansible"], v["goss"])
}

// stamp is the version of a program that was compiled where no repository tells
// it, such as the toolbox's; the linker sets it.
var stamp string

// version is that of the module, or the commit it was compiled from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	switch {
	case stamp != "":
		return stamp
	case !ok || info.Main.Version == "":
		return "unknown"
	}
	return info.Main.Version
}

func output(c *cobra.Command, to *string, help string) {
	c.Flags().StringVarP(to, "output", "o", "", help)
	_ = c.MarkFlagRequired("output")
}

func keepFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "keep-on-error", false, "leave the guest of a failed stage up and print how to log in")
}

// print writes a result. A closed pipe or a full disk is an error: a result
// that nobody received was not delivered.
func (a *app) print(line string) error {
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

func (a *app) printed(line string, err error) error {
	if err != nil {
		return err
	}
	return a.print(line)
}
