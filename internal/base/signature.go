package base

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgp "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

const (
	maxSignature = 64 << 10 // bytes; one of a single key has about 800
	maxKeyring   = 16 << 20 // bytes; Debian's of all its developers has more
	tryPublisher = "ask its publisher, or write a digest that you trust into ISO_CHECKSUM"
	tryKey       = "if you trust it all the same, name its key in BASE_KEYRING, or write the digest itself into ISO_CHECKSUM"
)

//go:embed keys/ubuntu-cloud-images.asc
var ubuntuKey []byte

// signing are the publishers that sign every list, by the hosts of their lists, with
// their keys. Debian signs none of its cloud images' lists (cloud.debian.org): there
// https is all that vouches for one.
var signing = map[string][]byte{"cloud-images.ubuntu.com": ubuntuKey}

// CheckKeyring says what is wrong with a file of OpenPGP public keys.
func CheckKeyring(file string) error {
	_, err := readKeyring(file)
	return err
}

func readKeyring(file string) (openpgp.EntityList, error) {
	content, err := host.ReadFile(file, maxKeyring)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(content)
	if err != nil || len(keys) == 0 {
		return nil, failure.New(file+" has no OpenPGP public key in it", "give what gpg --export or gpg --export --armor writes")
	}
	return keys, nil
}

// guard makes an error of a panic: go-crypto 1.4.1 has one for some malformed packets,
// such as a signature with an empty subpacket of exportability.
func guard(err *error) {
	if why := recover(); why != nil {
		*err = failure.New(fmt.Sprintf("its OpenPGP packets are malformed (%v)", why), tryPublisher)
	}
}

// parseKeys reads binary keys, or those of all armored blocks.
func parseKeys(content []byte) (all openpgp.EntityList, err error) {
	defer guard(&err)
	if !bytes.Contains(content, []byte("-----BEGIN PGP")) {
		return openpgp.ReadKeyRing(bytes.NewReader(content))
	}
	for r := bufio.NewReader(bytes.NewReader(content)); ; {
		block, err := armor.Decode(r) // which goes on in the same buffer
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		keys, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
}

// keys are those of which one must have signed the list; none, where nobody need.
func (c *client) keys(at source) (openpgp.EntityList, error) {
	switch {
	case c.Keyring != "":
		return readKeyring(c.Keyring)
	case at.url != nil:
		return parseKeys(signing[strings.ToLower(at.url.Hostname())])
	}
	return nil, nil
}

// signed returns what is signed of the list, and the fingerprint of whose key did it.
func (c *client) signed(ctx context.Context, at source, content []byte) (text []byte, by string, err error) {
	keys, err := c.keys(at)
	if err != nil || len(keys) == 0 {
		return content, Nobody, err
	}
	if block, _ := clearsign.Decode(content); block != nil {
		by, err = verify(keys, block.Bytes, block.ArmoredSignature.Body)
		return block.Plaintext, by, err // what stands around it is not signed
	}
	for _, ending := range []string{".gpg", ".sign", ".asc"} { // Ubuntu's, Debian's, Rocky's
		signature, _, err := c.read(ctx, at.with(ending), "a signature", maxSignature)
		if errors.Is(err, fs.ErrNotExist) || answered(err, http.StatusNotFound) || answered(err, http.StatusForbidden) || answered(err, http.StatusGone) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		by, err = verify(keys, content, unarmored(signature))
		return content, by, err
	}
	return nil, "", failure.New(fmt.Sprintf("it is not signed: beside it is no %s.gpg, .sign or .asc", at.name), tryPublisher)
}

// with is the file of which the name has that ending more.
func (s source) with(ending string) source {
	s.name, s.path = s.name+ending, s.path+ending
	if s.url != nil {
		u := *s.url
		u.Path += ending
		if u.RawPath != "" {
			u.RawPath += ending
		}
		s.url = &u
	}
	return s
}

// unarmored is a signature in its binary form.
func unarmored(signature []byte) io.Reader {
	if block, err := armor.Decode(bytes.NewReader(signature)); err == nil {
		return block.Body
	}
	return bytes.NewReader(signature)
}

// verify returns the fingerprint of the key, one of keys, by which the text has a good
// signature; others' signatures besides do not matter. Keys count as they are today:
// with one that was lost, somebody else may sign, and write a date of long ago.
func verify(keys openpgp.EntityList, text []byte, signatures io.Reader) (by string, err error) {
	defer guard(&err)
	var why error
	var others []string
	for r := packet.NewOpaqueReader(signatures); ; {
		raw, err := r.Next()
		if err != nil {
			break // the end, or what is no signature any more
		}
		p, _ := raw.Parse()
		s, ok := p.(*packet.Signature)
		if !ok || s.IssuerKeyId == nil {
			continue
		}
		by = fmt.Sprintf("%016X", *s.IssuerKeyId)
		if len(s.IssuerFingerprint) > 0 {
			by = fmt.Sprintf("%X", s.IssuerFingerprint)
		}
		var one bytes.Buffer
		if err := raw.Serialize(&one); err != nil {
			return "", err
		}
		_, key, err := openpgp.VerifyDetachedSignature(keys, bytes.NewReader(text), &one, nil)
		switch weak := (*packet.Config)(nil).RejectMessageHashAlgorithm(s.Hash); {
		case err == nil && !weak:
			return fingerprint(key), nil
		case errors.Is(err, pgp.ErrUnknownIssuer):
			others = append(others, by)
		case err == nil:
			err = fmt.Errorf("it is signed with %v, which can be forged", s.Hash)
			fallthrough
		default:
			why = cmp.Or(why, explain(err, by))
		}
	}
	switch {
	case why != nil:
		return "", why
	case len(others) == 0:
		return "", failure.New("its signature is none of OpenPGP", tryPublisher)
	}
	var known []string
	for _, key := range keys {
		known = append(known, fingerprint(key))
	}
	return "", failure.New(fmt.Sprintf("it is signed by the key %s, and not by %s", few(others), few(known)), tryKey)
}

// explain says why the signature of a key that is known does not count.
func explain(err error, by string) error {
	what := "its signature by the key " + by + " does not count: " + err.Error()
	switch {
	case errors.Is(err, pgp.ErrKeyExpired):
		what = "the key " + by + " by which it is signed has expired"
	case errors.Is(err, pgp.ErrKeyRevoked):
		what = "the key " + by + " by which it is signed was revoked"
	case errors.Is(err, pgp.ErrSignatureExpired):
		what = "its signature by the key " + by + " has expired, or is of the future"
	case errors.As(err, new(pgp.SignatureError)):
		what = "it is not what the key " + by + " signed: it was changed, or its signature is another list's"
	}
	return failure.New(what, tryPublisher)
}

func fingerprint(key *openpgp.Entity) string {
	return fmt.Sprintf("%X", key.PrimaryKey.Fingerprint)
}

// few are at most three of the names.
func few(names []string) string {
	if len(names) > 3 {
		names = append(slices.Clone(names[:3]), "…")
	}
	return strings.Join(names, ", ")
}
