package attest

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// keptForm is that of a reference to a key that a program keeps, and the program's name in it.
var keptForm = regexp.MustCompile(`^([a-z0-9][a-z0-9-]*)://(.+)$`)

// keeper is a program that keeps a key, as cosign 3 has them: sigstore-kms-NAME for
// NAME://KEY. Sigstore's client of that protocol (sigstore/sigstore, kms/cliplugin,
// protocol v1) would hand it our passwords and this terminal, and bring five modules.
type keeper struct{ program, key string }

// ReadKept asks the program that keeps a key for its public half, by a reference
// NAME://KEY. The key signs by that program, which must be on PATH.
func ReadKept(ctx context.Context, reference string) (Key, error) {
	parts := keptForm.FindStringSubmatch(reference)
	if parts == nil {
		return Key{}, failure.New(text.Line(reference)+" is no reference to a key", "give NAME://KEY, where the program sigstore-kms-NAME keeps KEY")
	}
	k := keeper{"sigstore-kms-" + parts[1], parts[2]}
	if _, err := host.Look(k.program); err != nil {
		return Key{}, &failure.Error{
			What: text.Line(reference) + " is a key of " + k.program + ", which is not on PATH",
			Try:  "install that program, or name the file of a key", Err: err,
		}
	}
	said, err := k.ask(ctx, "publicKey", `{"publicKeyOptions": {"rpcOptions": {}}}`, nil)
	if err != nil {
		return Key{}, err
	}
	key, err := ReadKey(said.PublicKey.PEM, "")
	if err != nil {
		return Key{}, fmt.Errorf("the key of %s: %w", k.program, err)
	}
	key.sign = func(ctx context.Context, data []byte) ([]byte, error) {
		said, err := k.ask(ctx, "signMessage", `{"signOptions": {"rpcOptions": {}, "messageOptions": {}}}`, data)
		if err == nil && key.Verify(ctx, data, said.SignMessage.Signature) != nil {
			err = failure.New(k.program+" signed with another key than it shows", "see which key "+text.Line(reference)+" names")
		}
		return said.SignMessage.Signature, err
	}
	return key, nil
}

// answer is what such a program says.
type answer struct {
	Wrong     string `json:"errorMessage"`
	PublicKey struct {
		PEM []byte `json:"publicKeyPEM"`
	} `json:"publicKey"`
	SignMessage struct {
		Signature []byte `json:"signature"`
	} `json:"signMessage"`
}

// ask has the program do one thing. It sees the environment, where its PIN may stand, but
// for the registry's password.
func (k keeper) ask(ctx context.Context, method, options string, message []byte) (said answer, err error) {
	args, err := json.Marshal(map[string]any{
		"initOptions": map[string]any{"protocolVersion": "v1", "keyResourceID": k.key, "hashFunc": crypto.SHA256, "rpcOptions": struct{}{}},
		"methodName":  method,
		method:        json.RawMessage(options),
	})
	if err != nil {
		return said, err
	}
	var out bytes.Buffer
	err = host.Run(ctx, host.Cmd{
		Program: k.program, Args: []string{"v1", string(args)}, Stdin: bytes.NewReader(message), Stdout: &out,
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "REGISTRY_PASS=") }),
	})
	switch unread := json.Unmarshal(out.Bytes(), &said); {
	case unread == nil && said.Wrong == "": // the protocol's exit code says nothing
		return said, nil
	case unread == nil:
		err = errors.New(k.program + ": " + said.Wrong)
	case err == nil:
		err = fmt.Errorf("%s: its answer is no JSON: %w", k.program, unread)
	}
	return said, &failure.Error{What: text.Line(err.Error()), Try: "see what that program needs", Err: err}
}
