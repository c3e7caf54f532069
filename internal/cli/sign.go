package cli

import (
	"github.com/spf13/cobra"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/text"
)

func (a *app) sign() *cobra.Command {
	return a.command("sign REF", "Sign an image that is in a registry",
		`Say, signed with SIGNING_KEY, that the image is yours, and what it was made from, as
its annotations have it. The signature is attached to the image (OCI 1.1's referrers), as
cosign 3 does: no tag is made. A build that pushes, and push, do that by themselves where
SIGNING_KEY is set, and sign the SBOM besides.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			signed, err := b.Sign(c.Context(), args[0])
			return a.printed(signed, usage(err))
		})
}

func (a *app) verifySignature() *cobra.Command {
	var key string
	var bundles []string
	c := a.command("verify-signature REF --key PUBLIC_KEY", "Say what the holder of a key says of an image",
		`Look for what is attached to an image in a registry and signed with the private half of
PUBLIC_KEY, by diskforge or by cosign: that it is theirs, what it was made from, what is
on it. The exit code is 1 where there is no signature by that key, and where its holder
revoked the image or one that it was made from. With --json all that is
said goes to standard output as one JSON object.`,
		cobra.ExactArgs(1), nil,
		func(c *cobra.Command, args []string, b *pipeline.Build) error {
			chain, err := b.VerifySignature(c.Context(), args[0], key, bundles)
			switch {
			case err != nil:
				return usage(err)
			case a.json:
				return printJSON(a.stdout, chain)
			}
			for _, said := range chain.Said {
				if err := a.print(text.Line(chain.Image + "  " + said.Kind)); err != nil {
					return err
				}
			}
			return nil
		})
	c.Flags().StringVar(&key, "key", "", "public key: its file, or NAME://KEY of a program sigstore-kms-NAME")
	c.Flags().StringArrayVar(&bundles, "bundle", nil, "file of a bundle that lay beside the layout, where the registry keeps none")
	_ = c.MarkFlagRequired("key")
	return c
}
