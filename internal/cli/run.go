package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) run() *cobra.Command {
	var publish []string
	c := a.command("run DISK|LAYOUT|REF", "Boot a containerdisk on this desk, to look at it",
		`Boot an overlay of a disk, of the disk in an OCI layout or of a containerdisk in a
registry, anybody's, the way KubeVirt does, and say how to log in, where its console is
written to and, when it answers, where its desktop is. The guest reaches the network.
It runs until it powers off or Ctrl-C ends it; then nothing is left, and the image is as it was.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			ports, err := parsePorts(publish)
			if err != nil {
				return err
			}
			return usage(b.Attend(c.Context(), args[0], ports, func(what, how string) error {
				return a.print(fmt.Sprintf("%-8s %s", what, how))
			}))
		})
	c.Flags().StringSliceVarP(&publish, "publish", "p", nil, "port of this host's loopback that leads to one of the guest, HOST:GUEST, e.g. 8080:80")
	return c
}

func parsePorts(given []string) (ports []pipeline.Port, err error) {
	for _, pair := range given {
		from, to, _ := strings.Cut(pair, ":")
		here, errHere := strconv.ParseUint(from, 10, 16)
		guest, errGuest := strconv.ParseUint(to, 10, 16)
		if errHere != nil || errGuest != nil || here == 0 || guest == 0 {
			return nil, usageError{fmt.Errorf("--publish %q is no pair of ports: give HOST:GUEST, e.g. 8080:80", pair)}
		}
		ports = append(ports, pipeline.Port{Host: int(here), Guest: int(guest)})
	}
	return ports, nil
}
