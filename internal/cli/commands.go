package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/engine"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) build() *cobra.Command {
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
		cobra.NoArgs, []pipeline.Need{pipeline.NeedBase, pipeline.NeedPlaybook, pipeline.NeedTarget},
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			run, err := a.runner(where, b)
			if err != nil {
				return err
			}
			result, err := run(c.Context())
			return a.printed(result.Reference, err)
		})
	c.Flags().StringVar(&where, "engine", "host", "where the stages run: host or dagger")
	return keepFlag(c, &a.keep)
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
	c := a.command("provision -o DISK", "Boot the base image with Packer and run the playbook",
		`Boot a copy of the base image, run the playbook, remove the build's traces and
write the disk, a qcow2 image. What later stages want to know of it stands in
DISK.json; the logs are in DISK.work.`,
		cobra.NoArgs, []pipeline.Need{pipeline.NeedBase, pipeline.NeedPlaybook},
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			return a.printed(a.out, b.ProvisionTo(c.Context(), a.out))
		})
	return keepFlag(outputFlag(c, &a.out, "the disk to write"), &a.keep)
}

func (a *app) sparsify() *cobra.Command {
	c := a.command("sparsify DISK -o OUT", "Leave out what the disk does not use, and compress the rest",
		`Write DISK as a compressed qcow2 image without its unused blocks. Where the guest
trimmed its disk that is one pass of qemu-img; where it did not, virt-sparsify
trims it first.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			return a.printed(a.out, b.SparsifyTo(c.Context(), args[0], a.out))
		})
	return outputFlag(c, &a.out, "the disk to write")
}

func (a *app) verify() *cobra.Command {
	var full, persistent bool
	c := a.command("verify DISK", "Boot the disk as KubeVirt does and look inside",
		`Look into DISK, which is not changed: at rest for what the build left behind
(the hygiene gate), and in an overlay that boots with a NoCloud seed, as CrownLabs
starts it. Where ANSIBLE_PLAYBOOK names a playbook with tests/PLAYBOOK.yaml beside
it, these goss checks are run, too; tests/PLAYBOOK.allow.yaml, or HYGIENE_ALLOW,
excuses findings of the gate.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			b.Full, b.Persistent = full, persistent
			return b.VerifyDisk(c.Context(), args[0])
		})
	c.Flags().BoolVar(&full, "full", false,
		"boot twice more: with CrownLabs' own seed, whose machine-id and host keys have to differ, and with UEFI where the disk can")
	c.Flags().BoolVar(&persistent, "persistent", false,
		"boot once more with a disk that is kept, as in a volume that CDI fills: it reaches the network, installs updates and starts again twice")
	return keepFlag(c, &a.keep)
}

func (a *app) capture() *cobra.Command {
	return a.command("capture SOURCE", "Make an image of the disk of a machine that was used",
		`Copy the disk of a machine that is shut down (a qcow2, raw, VDI, VMDK, VHDX or VHD
image, a raw disk behind gzip or zstd, an OVA with one disk, KubeVirt's export of a
volume or a machine, a block device), take from the copy what must not be in two machines (ids,
host keys, seeds, leases, logs, histories, caches; accounts stay, without their
passwords), and go on as build does: sparsify, verify, pack and, where
TARGET_REGISTRY is set, push. SOURCE is only read. Nothing boots before the disk is
clean. What remains, as credentials in somebody's home, is told and blocks the image;
HYGIENE_ALLOW excuses it. The machine needs cloud-init; this host guestfish and
virt-sparsify (apt-get install guestfish guestfs-tools).`,
		cobra.ExactArgs(1), []pipeline.Need{pipeline.NeedTarget},
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			result, err := b.Capture(c.Context(), args[0])
			return a.printed(result.Reference, err)
		})
}

func (a *app) report() *cobra.Command {
	c := a.command("report DISK -o DIR", "Write the report of a disk that stages made one by one",
		`Write what the stages recorded of DISK (in DISK.json) into DIR, as report.html,
report.json and summary.md, and the SBOM as sbom.spdx.json and sbom.cdx.json. A whole
build leaves them in OUTPUT_DIR.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, _ *pipeline.Build) error {
			return a.printed(pipeline.ReportTo(c.Context(), args[0], a.out))
		})
	return outputFlag(c, &a.out, "the directory to write to")
}

func (a *app) pack() *cobra.Command {
	c := a.command("pack DISK -o LAYOUT_DIR", "Wrap the disk as a containerdisk, in an OCI layout",
		`Write DISK as a containerdisk into an OCI layout. The same disk and the same
DISK.json give the same digest, everywhere.`,
		cobra.ExactArgs(1), []pipeline.Need{pipeline.NeedReference},
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			return a.printed(b.PackTo(c.Context(), args[0], a.out))
		})
	return outputFlag(c, &a.out, "the directory of the OCI layout")
}

func (a *app) export() *cobra.Command {
	var unverified bool
	c := a.command("export DISK|LAYOUT|REF -o DIR", "Write the disk into files of other forms",
		`Write the disk of an image into DIR in each form that OUTPUTS names: qcow2, raw.zst
(for CDI's import by HTTP) and ova (for VirtualBox and VMware), with their sums
in NAME.SHA256SUMS. The same disk gives the same bytes. A build does that by itself where OUTPUTS is set.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			files, err := b.ExportTo(c.Context(), args[0], a.out, unverified)
			for _, file := range files {
				err = errors.Join(err, a.print(file))
			}
			return usage(err)
		})
	c.Flags().BoolVar(&unverified, "unverified", false, "export a disk that was not verified")
	return outputFlag(c, &a.out, "the folder to write to")
}

func (a *app) push() *cobra.Command {
	var unverified bool
	var inputs []string
	var provenance string
	c := a.command("push LAYOUT_DIR… [REF]", "Push an OCI layout, or an index of several, to a registry",
		`Push the image to REF, or to the address that the settings give, or to the one
it was packed for. What the registry has already is not sent again.

Several images, of one architecture each, are pushed as REF-ARCHITECTURE, and REF becomes
an index of them, of which everyone takes the one for their machine. One that is in REF's
repository already is given by its reference; with --inputs it is waited for as long as
BASE_TIMEOUT says.`,
		cobra.MinimumNArgs(1), []pipeline.Need{pipeline.NeedReference},
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			if len(args) > 2 || len(inputs) > 0 {
				last := len(args) - 1
				pushed, err := b.PushIndex(c.Context(), args[:last], inputs, args[last], unverified)
				return a.printed(pushed, usage(err))
			}
			pushed, err := b.PushLayout(c.Context(), args[0], strings.Join(args[1:], ""), unverified)
			if err == nil && provenance != "" {
				err = pipeline.Provenance(args[0], provenance)
			}
			return a.printed(pushed, usage(err))
		})
	c.Flags().StringSliceVar(&inputs, "inputs", nil, "input digests that the images of an index must have, in their order")
	c.Flags().BoolVar(&unverified, "unverified", false, "push an image that was not verified")
	c.Flags().StringVar(&provenance, "provenance", "", "file for the provenance as a predicate, for another signer (cosign attest --type slsaprovenance1)")
	return c
}

func (a *app) base() *cobra.Command {
	return a.command("base", "Make a base image from Debian packages, or fetch one",
		`Make a cloud image of Debian from its packages or, where ISO_URL is set, fetch that
image; or find it in the cache. Print its path.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error { return a.printed(b.Base(c.Context())) })
}

func (a *app) tools() *cobra.Command {
	return a.command("tools", "Compile Packer, its plugins and goss, and print their folder",
		`Compile the pinned Packer, its plugins and goss into CACHE_DIR, or find them there,
and print their folder. A build does that by itself; a toolbox image is made with
it: copy the folder and name it in `+pipeline.ToolsDirVariable+".",
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error { return a.printed(b.Tools(c.Context())) })
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
	v := pipeline.ToolsVersions()
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

func outputFlag(c *cobra.Command, to *string, help string) *cobra.Command {
	c.Flags().StringVarP(to, "output", "o", "", help)
	_ = c.MarkFlagRequired("output")
	return c
}

func keepFlag(c *cobra.Command, to *bool) *cobra.Command {
	c.Flags().BoolVar(to, "keep-on-error", false, "leave the guest of a failed stage up and print how to log in")
	return c
}

// print writes a result. A closed pipe or a full disk is an error: a result
// that nobody received was not delivered.
func (a *app) print(line string) error {
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

// printed prints a result where there is one.
func (a *app) printed(line string, err error) error {
	if err != nil {
		return err
	}
	return a.print(line)
}

// printJSON writes each of all as one JSON object a line.
func printJSON[T any](to io.Writer, all ...T) error {
	lines := json.NewEncoder(to)
	for _, e := range all {
		if err := lines.Encode(e); err != nil {
			return err
		}
	}
	return nil
}
