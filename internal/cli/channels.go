package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

func (a *app) promoteImage() *cobra.Command {
	var channel, key string
	c := a.command("promote REF --to CHANNEL", "Give an image the tag of a channel",
		`Move the tag CHANNEL, such as stable or testing, to the image REF, and say how to move it
back. With --key the holder of the key must have signed the image; without it, it must be
one of diskforge's, whoever pushed it. A revoked image is refused, and what was made from
one. A channel has no digits in its name: by that prune knows it, and keeps what it names.`,
		cobra.ExactArgs(1), nil, func(c *cobra.Command, args []string, b *pipeline.Build) error {
			promoted, err := b.Promote(c.Context(), args[0], channel, key)
			return a.printed(promoted, usage(err))
		})
	c.Flags().StringVar(&channel, "to", "", "the channel: a tag without digits")
	c.Flags().StringVar(&key, "key", "", "public key (its file, or NAME://KEY) of whoever must have signed the image")
	_ = c.MarkFlagRequired("to")
	return c
}

func (a *app) revokeImage() *cobra.Command {
	var reason string
	c := a.command("revoke REF --reason TEXT", "Say of an image that nobody may use it any more",
		`Attach to the image REF, signed with SIGNING_KEY, that it is revoked and why. inspect
shows that; run, export, promote and a build refuse the image and what was made from it, a
catalogue's is built anew. The registry must keep referrers (OCI 1.1). It is not taken back:
build the image again.`,
		cobra.ExactArgs(1), nil, func(c *cobra.Command, args []string, b *pipeline.Build) error {
			if strings.TrimSpace(reason) == "" {
				return usageError{errors.New("--reason says nothing: write for whom and for what the image is not good")}
			}
			revoked, err := b.Revoke(c.Context(), args[0], reason)
			return a.printed(revoked, usage(err))
		})
	c.Flags().StringVar(&reason, "reason", "", "why, in a line, for whoever wants to use it")
	_ = c.MarkFlagRequired("reason")
	return c
}
