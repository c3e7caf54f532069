package cli

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

// exported is the name of the disk between the two containers of an InstanceSnapshot
// (operators/build/img-exporter/exporter.sh of CrownLabs).
const exported = "vm-snapshot.qcow2"

// snapshot is what both containers of CrownLabs' InstanceSnapshot start, with the
// arguments that its operator gives them (CreateSnapshottingJobDefinition in
// operators/pkg/instancesnapshot-controller): none to the first, in place of
// img-exporter, and these two to the second, in place of kaniko.
func (a *app) snapshot() *cobra.Command {
	var dockerfile, destination, source string
	c := a.command("snapshot", "Be the containers of CrownLabs' InstanceSnapshot",
		`Make an image of an Instance's volume where CrownLabs' operator starts it. Without
--destination copy the machine's disk into the folder of --dockerfile; with it,
capture the copy (see capture) and push it there. The two run one after the other, as
only the first has the volume and only the second the registry's login.`,
		cobra.NoArgs, nil,
		func(c *cobra.Command, _ []string, b *pipeline.Build) error {
			dir := filepath.Dir(dockerfile)
			if destination == "" {
				return a.printed(filepath.Join(dir, exported), b.CopyDisk(c.Context(), source, filepath.Join(dir, exported)))
			}
			repository, tag := contract.SplitTag(destination)
			registry, name, ok := strings.Cut(repository, "/")
			if !ok || tag == "" {
				return usageError{fmt.Errorf("--destination %q is no REGISTRY/FOLDER/NAME:TAG", destination)}
			}
			capture := a.capture()
			capture.SetContext(c.Context())
			var wrong error
			for flag, value := range map[string]string{
				"target-registry": registry, "registry-prefix": strings.TrimPrefix(path.Dir("/"+name), "/"), "image-name": path.Base(name), "image-tag": tag,
				"output-dir": filepath.Join(dir, "out"), // the volume that is as large as a disk
			} {
				wrong = errors.Join(wrong, capture.Flags().Set(flag, value))
			}
			if wrong != nil {
				return wrong
			}
			return capture.RunE(capture, []string{filepath.Join(dir, exported)})
		})
	c.Flags().StringVar(&dockerfile, "dockerfile", "/img-tmp/Dockerfile", "its folder holds the copy; there needs to be no such file")
	c.Flags().StringVar(&destination, "destination", "", "REGISTRY/FOLDER/NAME:TAG to push to")
	c.Flags().StringVar(&source, "source", "/data/disk.img", "the machine's disk, in its volume")
	return c
}
