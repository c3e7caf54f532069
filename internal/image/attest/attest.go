// Package attest says of an image what others can check: in-toto statements
// (in-toto/attestation, spec/v1) about its digest, each signed with a key and kept in
// a Sigstore bundle (sigstore/protobuf-specs, bundle v0.3), as cosign 3 writes and
// reads them. The envelope and cosign's encrypted keys are go-securesystemslib's.
//
// sigstore-go makes such bundles, too, and brings 60 modules for what is not needed
// with a key: logs, time stamps, certificates.
package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

const (
	// BundleType is the media type of a bundle, and the artifact type of the
	// referrer that holds one.
	BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

	statementType = "https://in-toto.io/Statement/v1"
	// formerStatementType is what cosign attest still writes.
	formerStatementType = "https://in-toto.io/Statement/v0.1"
	payloadType         = "application/vnd.in-toto+json"
)

// The kinds of statements, by the type of their predicate.
const (
	Signature  = "https://sigstore.dev/cosign/sign/v1" // nothing but: this is ours
	Provenance = "https://slsa.dev/provenance/v1"
	SPDX       = "https://spdx.dev/Document"
	CycloneDX  = "https://cyclonedx.org/bom"
	Revocation = "https://github.com/netgroup-polito/diskforge/blob/main/docs/signatures.md#revocation" // with a Revoked
)

// AnnotationKind is an annotation of a referrer, as cosign's: the type of the predicate
// in its bundle.
const AnnotationKind = "dev.sigstore.bundle.predicateType"

// Revoked is the predicate of a Revocation.
type Revoked struct {
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"` // when it was revoked
}

// Statement is something that is said of an image.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about.
type Subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"` // by algorithm, in hexadecimal
}

// Kind is a statement's type in a word.
func Kind(predicateType string) string {
	switch predicateType {
	case Signature:
		return "signature"
	case Provenance:
		return "provenance"
	case SPDX:
		return "sbom-spdx"
	case CycloneDX:
		return "sbom-cyclonedx"
	case Revocation:
		return "revocation"
	}
	return predicateType
}

// New says something of the image with the digest of its manifest ("sha256:…"),
// and of its disk, where that one's digest is known. The predicate becomes JSON.
func New(kind, image, disk string, predicate any) (Statement, error) {
	content, err := json.Marshal(predicate)
	s := Statement{Type: statementType, PredicateType: kind, Predicate: content, Subject: []Subject{{Digest: digestSet(image)}}}
	if disk != "" && kind != Signature {
		s.Subject = append(s.Subject, Subject{Name: "disk", Digest: digestSet(disk)})
	}
	return s, err
}

func digestSet(digest string) map[string]string {
	algorithm, digits, _ := strings.Cut(digest, ":")
	return map[string]string{algorithm: digits}
}

// Of says whether the statement is about the image with that digest.
func (s Statement) Of(image string) bool {
	algorithm, digits, _ := strings.Cut(image, ":")
	return digits != "" && slices.ContainsFunc(s.Subject, func(of Subject) bool { return of.Digest[algorithm] == digits })
}

// Equal says whether both say the same of the same. An image is revoked once, whatever
// the reason.
func (s Statement) Equal(other Statement) bool {
	if s.PredicateType == Revocation {
		s.Predicate, other.Predicate = nil, nil
	}
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(other)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// bundle is a Sigstore bundle with a DSSE envelope, signed with a key.
type bundle struct {
	MediaType            string        `json:"mediaType"`
	VerificationMaterial material      `json:"verificationMaterial"`
	Envelope             dsse.Envelope `json:"dsseEnvelope"`
}

type material struct {
	PublicKey struct {
		Hint string `json:"hint"` // base64 of the sha256 of the key in DER, as cosign's
	} `json:"publicKey"`
	// Of a bundle that is signed without a key of one's own, or their chain before bundle v0.3.
	Certificate  json.RawMessage `json:"certificate,omitempty"`
	Certificates json.RawMessage `json:"x509CertificateChain,omitempty"`
}

// Key signs and verifies, or verifies alone.
type Key struct {
	sign   func(ctx context.Context, data []byte) ([]byte, error) // or nil
	public crypto.PublicKey
	der    []byte
}

var _ dsse.SignerVerifier = Key{}

// ErrPassword is the cause of the error of a private key that its password does not open.
var ErrPassword = errors.New("the password does not open the key")

// ReadKey reads a key in PEM form: a private one, as openssl (PKCS #8, SEC 1) or cosign
// writes it, which is encrypted with the password, or a public one. ECDSA on P-256 and
// Ed25519 are taken, which are what cosign takes.
func ReadKey(content []byte, password string) (Key, error) {
	block, rest := pem.Decode(content)
	if block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key
		block, rest = pem.Decode(rest)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return Key{}, failure.New("it holds more than one key", "leave one in it")
	}
	if block == nil {
		return Key{}, failure.New("it is no key in PEM form", "make one with cosign generate-key-pair, or openssl genpkey -algorithm ed25519")
	}
	var private any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Key{}, failure.Wrap(err, "it is no public key", "")
		}
		return keyOf(nil, public)
	case "ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY":
		plain, failed := encrypted.Decrypt(block.Bytes, []byte(password))
		if failed != nil && password == "" {
			return Key{}, failure.Wrap(ErrPassword, "it is encrypted", "set SIGNING_PASSWORD to its password")
		}
		if failed != nil {
			return Key{}, failure.Wrap(ErrPassword, "it is encrypted", "correct SIGNING_PASSWORD")
		}
		private, err = x509.ParsePKCS8PrivateKey(plain)
	case "ENCRYPTED PRIVATE KEY":
		return Key{}, failure.New("it is encrypted by openssl, which is not supported",
			"decrypt it (openssl pkey -in …), or have cosign encrypt it: cosign import-key-pair")
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		err = fmt.Errorf("its PEM type is %q", block.Type)
	}
	signer, ok := private.(crypto.Signer)
	if err != nil || !ok {
		return Key{}, failure.Wrap(errors.Join(err), "it is no private key of a known form",
			"make one with cosign generate-key-pair, or openssl genpkey -algorithm ed25519")
	}
	return keyOf(signer, signer.Public())
}

func keyOf(private crypto.Signer, public crypto.PublicKey) (Key, error) {
	switch k := public.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return Key{}, failure.New("it is an ECDSA key on "+k.Curve.Params().Name, "take one on P-256, or an Ed25519 key")
		}
	default:
		return Key{}, failure.New("it is neither an ECDSA nor an Ed25519 key", "take an ECDSA key on P-256, or an Ed25519 key")
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	key := Key{nil, public, der}
	if private != nil {
		key.sign = func(_ context.Context, data []byte) ([]byte, error) {
			if _, ok := public.(ed25519.PublicKey); ok {
				return private.Sign(nil, data, crypto.Hash(0))
			}
			sum := sha256.Sum256(data)
			return private.Sign(rand.Reader, sum[:], crypto.SHA256)
		}
	}
	return key, err
}

// Signs says whether the key is a private one.
func (k Key) Signs() bool { return k.sign != nil }

// KeyID implements dsse.SignerVerifier: bundles have none.
func (k Key) KeyID() (string, error) { return "", nil }

// Public implements dsse.SignerVerifier.
func (k Key) Public() crypto.PublicKey { return k.public }

// Sign implements dsse.SignerVerifier.
func (k Key) Sign(ctx context.Context, data []byte) ([]byte, error) { return k.sign(ctx, data) }

var errSignature = errors.New("another key's signature")

// Verify implements dsse.SignerVerifier.
func (k Key) Verify(_ context.Context, data, sig []byte) (err error) {
	ok := false
	switch public := k.public.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(public, data, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(data)
		ok = ecdsa.VerifyASN1(public, sum[:], sig)
	}
	if !ok {
		return errSignature
	}
	return nil
}

// Bundle signs a statement.
func (k Key) Bundle(ctx context.Context, s Statement) ([]byte, error) {
	payload, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	signer, err := dsse.NewEnvelopeSigner(k)
	if err != nil {
		return nil, err
	}
	envelope, err := signer.SignPayload(ctx, payloadType, payload)
	if err != nil {
		return nil, err
	}
	b := bundle{MediaType: BundleType, Envelope: *envelope}
	hint := sha256.Sum256(k.der)
	b.VerificationMaterial.PublicKey.Hint = base64.StdEncoding.EncodeToString(hint[:])
	return json.Marshal(b)
}

// IsBundle says whether it is a Sigstore bundle, whatever its version.
func IsBundle(content []byte) bool {
	var b bundle
	return json.Unmarshal(content, &b) == nil && strings.HasPrefix(b.MediaType, "application/vnd.dev.sigstore.bundle")
}

// Keyless says whether a bundle has a certificate in place of a key: whoever signed it is
// known by that, which is cosign's to check.
func Keyless(content []byte) bool {
	var b bundle
	return json.Unmarshal(content, &b) == nil && len(b.VerificationMaterial.Certificate)+len(b.VerificationMaterial.Certificates) > 0
}

// Open returns what a bundle says, if the key signed it.
func (k Key) Open(ctx context.Context, content []byte) (Statement, error) {
	return open(content, func(envelope *dsse.Envelope) error {
		verifier, err := dsse.NewEnvelopeVerifier(k)
		if err != nil {
			return err
		}
		if _, err := verifier.Verify(ctx, envelope); err != nil {
			return errSignature
		}
		return nil
	})
}

// Read returns what a bundle says, if the key signed it; without a key, whoever did.
func Read(ctx context.Context, key *Key, content []byte) (Statement, error) {
	if key != nil {
		return key.Open(ctx, content)
	}
	return open(content, func(*dsse.Envelope) error { return nil })
}

func open(content []byte, verify func(*dsse.Envelope) error) (Statement, error) {
	var b bundle
	var s Statement
	if err := json.Unmarshal(content, &b); err != nil {
		return s, err
	}
	if b.Envelope.PayloadType != payloadType {
		return s, fmt.Errorf("its payload is %q, no statement", b.Envelope.PayloadType)
	}
	if err := verify(&b.Envelope); err != nil {
		return s, err
	}
	payload, err := b.Envelope.DecodeB64Payload()
	if err == nil {
		err = json.Unmarshal(payload, &s)
	}
	if err == nil && s.Type != statementType && s.Type != formerStatementType {
		err = fmt.Errorf("its statement is of the type %q", s.Type)
	}
	return s, err
}
