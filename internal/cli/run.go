package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) run() *cobra.Command {
	var publish []string
	var playbook string
	c := a.command("run DISK|LAYOUT|REF", "Boot a containerdisk on this desk, to look at it",
		`Boot an overlay of a disk, of the disk in an OCI layout or of a containerdisk in a
registry, anybody's, the way KubeVirt does, and say how to log in, where its console is
written to and, when it answers, where its desktop is. The guest reaches the network.
It runs until it powers off or Ctrl-C ends it; then nothing is left, and the image is as it was.

With --playbook it is an author's loop: the guest is booted once, the playbook runs in it as
the login user, then its checks; and again, as it is by then, each time Enter is pressed.
What is to be published is made by build, which starts from the base and records what it did.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			ports, err := parsePorts(publish)
			if err != nil {
				return err
			}
			d := pipeline.Desk{
				Ports: ports, Say: func(what, how string) error { return a.print(fmt.Sprintf("%-8s %s", what, how)) },
				Line: func(line string) { fmt.Fprintln(a.stderr, "  "+line) },
			}
			if c.Flags().Changed("playbook") && playbook == "" {
				return usageError{errors.New("--playbook names none: give the name of a playbook, or leave it out")}
			}
			if b.Config.Playbook = playbook; playbook != "" {
				d.Keys = c.InOrStdin()
			}
			return usage(b.Attend(c.Context(), args[0], d))
		})
	c.Flags().StringVar(&playbook, "playbook", "", "playbook of ANSIBLE_DIR or of diskforge to try in the guest, again and again, with its checks")
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
		same := func(p pipeline.Port) bool { return p.Host == int(here) || p.Guest == int(guest) }
		if slices.ContainsFunc(ports, same) {
			return nil, usageError{fmt.Errorf("--publish %q has a port that was given before: give each port once", pair)}
		}
		ports = append(ports, pipeline.Port{Host: int(here), Guest: int(guest)})
	}
	return ports, nil
}
