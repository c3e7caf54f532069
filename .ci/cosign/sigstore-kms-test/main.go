// Program sigstore-kms-test keeps a key for tests: that of test://FILE. It is made with
// sigstore's own half of the protocol.
package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
)

// keeper signs with the key in a file.
type keeper struct{ signature.SignerVerifier }

var errNot = errors.New("is nothing that signing needs")

func (keeper) CreateKey(context.Context, string) (crypto.PublicKey, error) { return nil, errNot }
func (keeper) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, errNot
}
func (keeper) SupportedAlgorithms() []string { return nil }
func (keeper) DefaultAlgorithm() string      { return "" }

func main() {
	if err := answer(); err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
	}
}

func answer() error {
	fmt.Fprintln(os.Stderr, "words that nobody asked for")
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		return err
	}
	if _, shown := os.LookupEnv("REGISTRY_PASS"); shown || os.Getenv("TEST_PIN") != "1234" {
		return errors.New("the PIN is\nwrong")
	}
	file := args.InitOptions.KeyResourceID
	if other := os.Getenv("TEST_SIGNS_WITH"); other != "" && args.MethodName == "signMessage" {
		file = other
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	private, err := cryptoutils.UnmarshalPEMToPrivateKey(content, cryptoutils.SkipPassword)
	if err != nil {
		return err
	}
	signer, err := signature.LoadSignerVerifier(private, args.InitOptions.HashFunc)
	if err != nil {
		return err
	}
	_, err = handler.Dispatch(os.Stdout, os.Stdin, args, keeper{signer})
	return err
}
