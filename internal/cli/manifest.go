package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) manifest() *cobra.Command {
	var m contract.Manifests
	var format, dir string
	c := a.command("manifest REF|LAYOUT_DIR", "Write the Kubernetes objects that start machines from a containerdisk",
		`Look into a containerdisk, anybody's, in a registry or in a layout that was packed
for one, and write objects that start machines from it: KubeVirt's VirtualMachines,
CDI's volumes, CrownLabs' Templates. They name the image by its digest, and have its
size, firmware and instance type. They can be applied as they are.

Without --kind, all is written for which there is enough: import-cron for the tag
latest, clone-rbac with --clone-to, crownlabs-* with --workspace. What starts from the
golden volume brings that along. MEMORY and CPUS are the machines', where no instance
type says them; INSTALL_DESKTOP_ENVIRONMENT says that the image has a desktop.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) (err error) {
			switch {
			case format != "yaml" && format != "kustomize":
				return usageError{fmt.Errorf("--format %q is not known: give yaml or kustomize", format)}
			case format == "kustomize" && dir == "":
				return usageError{errors.New("--format kustomize makes a folder: name it with --output")}
			}
			for i := range m.Kinds {
				m.Kinds[i] = strings.TrimSpace(m.Kinds[i])
			}
			if m.Image, err = imageOf(args[0]); err != nil {
				return err
			}
			_, m.Tag = contract.SplitTag(m.Image)
			m.MemoryMiB, m.CPUs, m.Desktop = b.Config.MemoryMiB, b.Config.CPUs, b.Config.Desktop && b.Config.CrownLabsMode
			if err := m.Check(); err != nil {
				return usageError{err}
			}
			report, err := b.Inspect(c.Context(), args[0])
			if err != nil {
				return usage(err)
			}
			all, err := report.Manifests(m)
			switch {
			case err != nil:
				return err
			case dir == "":
				return contract.WriteManifests(a.exact, all)
			}
			return a.printed(dir, contract.SaveManifests(dir, all, format == "kustomize"))
		})
	f := c.Flags()
	f.StringSliceVar(&m.Kinds, "kind", nil, "what to write: "+strings.Join(contract.ManifestKinds(), ", ")+"; can be repeated")
	f.StringVar(&format, "format", "yaml", "yaml, or kustomize: with a kustomization.yaml")
	f.StringVarP(&dir, "output", "o", "", "folder to write a file for each kind to (default: all to standard output)")
	f.StringVar(&m.Name, "name", "", "name of the objects (default: the image's)")
	f.StringVar(&m.Namespace, "namespace", "", "namespace of volumes and machines (default: default, or the workspace's)")
	f.StringSliceVar(&m.CloneTo, "clone-to", nil, "namespace whose machines may clone the volume; can be repeated")
	f.StringVar(&m.VolumeMode, "volume-mode", "Block", "of volumes: Block or Filesystem")
	f.StringVar(&m.StorageClass, "storage-class", "", "of volumes (default: the cluster's)")
	f.StringVar(&m.PullSecret, "pull-secret", "", "secret of a private registry, for KubeVirt and CDI")
	f.StringVar(&m.CertConfigMap, "cert-config-map", "", "ConfigMap with the authority of the registry's certificate, for CDI")
	f.StringVar(&m.Workspace, "workspace", "", "workspace of CrownLabs, for its Templates")
	f.StringVar(&m.DiskURL, "disk-url", "", "http or https URL of the disk itself, for CrownLabs' CloudVM")
	return c
}

// imageOf is where an image is in a registry: the reference that was given, or the
// one that a layout was packed for.
func imageOf(what string) (string, error) {
	at := pipeline.Locate(what)
	if _, err := os.Stat(at.Layout); err != nil {
		return cmp.Or(at.Reference, at.Layout), nil //nolint:nilerr // it is a reference, or Inspect says that it is neither
	}
	packed, err := oci.Load(at.Layout)
	if err != nil {
		return "", err
	}
	if packed.Reference == "" {
		return "", usageError{fmt.Errorf("%s was packed for no registry, from which a cluster could get it: push it, and name the reference", what)}
	}
	return packed.Reference, nil
}
