package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/text"
)

const (
	// builder is who builds, and buildType how, as provenance names them.
	builder   = "https://github.com/netgroup-polito/diskforge"
	buildType = builder + "/blob/main/docs/signatures.md#provenance"

	maxKey  = 64 << 10 // bytes of a key's file
	maxSBOM = 24 << 20 // bytes of an SBOM; more does not get into a referrer
)

// signs says whether what is pushed is signed.
func (w *way) signs() bool { return w.Config.SigningKey != "" }

// signingKey reads SIGNING_KEY, which signs.
func signingKey(ctx context.Context, c settings.Config) (attest.Key, error) {
	key, err := readKey(ctx, c.SigningKey, string(c.SigningPassword))
	if err == nil && !key.Signs() {
		return key, failure.New(c.SigningKey+" is a public key", "name the private one")
	}
	return key, err
}

// PublicKey reads the key that verifies signatures, in a file or kept by a program.
func PublicKey(ctx context.Context, file string) (attest.Key, error) {
	key, err := readKey(ctx, file, "")
	if errors.Is(err, attest.ErrPassword) || err == nil && key.Signs() && !settings.Kept(file) {
		err = failure.New(file+" is a private key", "name the public one")
	}
	return key, err
}

func readKey(ctx context.Context, file, password string) (key attest.Key, err error) {
	if settings.Kept(file) {
		return attest.ReadKept(ctx, file)
	}
	content, err := host.ReadFile(file, maxKey)
	if err != nil {
		return key, failure.Wrap(err, "reading the key", "name the file of one")
	}
	if key, err = attest.ReadKey(content, password); err != nil {
		return key, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// checkSigning says, before anything slow starts, whether the image can be signed.
func (w *way) checkSigning(ctx context.Context) error {
	if !w.signs() {
		return nil
	}
	if _, err := w.key(ctx); err != nil || w.address == "" || w.whole && !w.pushes() {
		return err
	}
	return w.show(ctx, "signing key", func(ctx context.Context, p progress.Reporter) (string, error) {
		session, err := w.session()
		if err != nil {
			return "", err
		}
		defer session.Close()
		takes, err := session.TakesReferrers(ctx, w.address)
		if err == nil && !takes {
			p.Warn("the registry keeps no signatures beside an image (OCI 1.1's referrers): they will lie beside the layout")
		}
		return "signs", err
	})
}

func (w *way) session() (*registry.Session, error) {
	login, err := w.login()
	if err != nil {
		return nil, err
	}
	return registry.NewSession(login)
}

// Provenance writes what push would sign of a layout's provenance into a file: the predicate
// alone, for another signer.
func Provenance(layout, file string) error {
	image, err := oci.Load(layout)
	if err != nil {
		return err
	}
	all, err := statements(image.Digest, image.Annotations)
	if err != nil {
		return err
	}
	return host.WriteJSON(file, 0o644, all[len(all)-1].Predicate)
}

// sign says of the pushed image that it is ours, what it was made from and what is on it.
func (w *way) sign(ctx context.Context, _ string, p progress.Reporter) (result, error) {
	w.Layout = filepath.Clean(w.Layout)
	layout, err := oci.Load(w.Layout)
	if err != nil {
		return nil, err
	}
	all, err := statements(layout.Digest, layout.Annotations)
	if err != nil {
		return nil, err
	}
	for _, bill := range []struct{ kind, file string }{{attest.SPDX, sbom.SPDXFile}, {attest.CycloneDX, sbom.CycloneDXFile}} {
		content, err := host.ReadFile(filepath.Join(filepath.Dir(w.Layout), bill.file), maxSBOM)
		// Where somebody packed by hand, that of another disk may lie there.
		if err != nil || !bytes.Contains(content, []byte(strings.TrimPrefix(layout.DiskDigest, "sha256:"))) {
			continue
		}
		s, err := attest.New(bill.kind, layout.Digest, layout.DiskDigest, json.RawMessage(content))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	reference, _, _ := strings.Cut(w.Reference, "@")
	reference += "@" + layout.Digest
	said, err := w.say(ctx, reference, all, w.Layout, p)
	if err != nil {
		return nil, failure.Wrap(err, "the image is pushed, and not signed", "diskforge sign "+reference)
	}
	return line(said), nil
}

// Sign signs an image that is in a registry: that it is ours, and what it was made from,
// as it says itself.
func (b *Build) Sign(ctx context.Context, reference string) (signed string, err error) {
	return b.attest(ctx, "sign", reference, statements)
}

// attest signs statements about an image that is in a registry, whose digest and
// annotations they are made of, and attaches them to it.
func (b *Build) attest(ctx context.Context, stage, reference string,
	statements func(digest string, annotations map[string]string) ([]attest.Statement, error),
) (image string, err error) {
	w := b.way(nil)
	if !w.signs() {
		wrong := settings.Mistakes{}
		wrong.Add("SIGNING_KEY", "is not set: name the file of a private key: --signing-key cosign.key")
		return "", wrong
	}
	err = w.show(ctx, stage, func(ctx context.Context, p progress.Reporter) (string, error) {
		login, err := w.login()
		if err != nil {
			return "", err
		}
		opened, err := registry.Open(ctx, reference, login)
		if err != nil {
			return "", err
		}
		defer opened.Close()
		digest, m := opened.Digest, v1.Manifest{}
		switch index := opened.Index; {
		case index != nil && index.Digest != "" && stage != "sign":
			return "", failure.New(reference+" is an index of "+text.Count(len(index.Platforms), "image"), "name one of them by its digest")
		case index != nil && index.Digest != "": // what its images were made from, their own signatures say
			digest = index.Digest
		default:
			if err := json.Unmarshal(opened.Manifest, &m); err != nil {
				return "", failure.Wrap(err, reference+" has no manifest of an image", "")
			}
		}
		all, err := statements(digest, m.Annotations)
		if err != nil {
			return "", err
		}
		name, _, _ := strings.Cut(reference, "@")
		image = name + "@" + digest
		return w.say(ctx, image, all, "", p)
	})
	return image, err
}

// statements are what an image's own annotations allow to be said of it.
func statements(digest string, annotations map[string]string) ([]attest.Statement, error) {
	type described struct {
		Name   string            `json:"name"`
		URI    string            `json:"uri,omitempty"`
		Digest map[string]string `json:"digest,omitempty"`
	}
	of := []described{}
	for _, one := range []described{
		{"base", oci.BaseName(annotations), digestSet(annotations[oci.AnnotationBaseDigest])},
		{"playbook", annotations[oci.AnnotationSource], digestSet(annotations[oci.AnnotationRevision])},
	} {
		if one.URI != "" || one.Digest != nil {
			of = append(of, one)
		}
	}
	parameters := map[string]string{}
	for name, annotation := range map[string]string{"image": oci.AnnotationTitle, "version": oci.AnnotationVersion, "inputs": oci.AnnotationInputs} {
		if value := annotations[annotation]; value != "" {
			parameters[name] = value
		}
	}
	when := map[string]string{}
	if _, err := time.Parse(time.RFC3339, annotations[oci.AnnotationBuilt]); err == nil {
		when["finishedOn"] = annotations[oci.AnnotationBuilt]
	}
	made := map[string]any{
		"buildDefinition": map[string]any{
			"buildType": buildType, "externalParameters": parameters, "resolvedDependencies": of,
		},
		"runDetails": map[string]any{
			"builder": map[string]any{"id": builder}, "metadata": when,
		},
	}
	ours, err := attest.New(attest.Signature, digest, "", struct{}{})
	if err != nil || annotations[oci.AnnotationDisk] == "" { // others' image: nobody knows
		return []attest.Statement{ours}, err
	}
	provenance, err := attest.New(attest.Provenance, digest, annotations[oci.AnnotationDisk], made)
	return []attest.Statement{ours, provenance}, err
}

// commit is a git commit's id.
var commit = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)

// digestSet is a digest, or a commit, as in-toto has them; nothing, where it is neither.
func digestSet(of string) map[string]string {
	switch digits, sha256 := strings.CutPrefix(of, "sha256:"); {
	case sha256 && host.ValidDigest(of):
		return map[string]string{"sha256": digits}
	case commit.MatchString(of):
		return map[string]string{"gitCommit": of}
	}
	return nil
}

// say signs statements about an image in a registry, and attaches them to it. What the
// key has said before is not said again. Where the registry keeps no referrers, the bundles
// lie beside the layout, if there is one, as LAYOUT.KIND.sigstore.json.
func (w *way) say(ctx context.Context, reference string, all []attest.Statement, layout string, p progress.Reporter) (string, error) {
	key, err := w.key(ctx)
	if err != nil {
		return "", err
	}
	session, err := w.session()
	if err != nil {
		return "", err
	}
	defer session.Close()
	_, there, _, err := session.Referrers(ctx, reference, attest.BundleType)
	keeps := !errors.Is(err, registry.ErrNoReferrers)
	if err != nil && (keeps || layout == "") {
		return "", err
	}
	var add []registry.Referrer
	var said []string
	for _, s := range all {
		said = append(said, attest.Kind(s.PredicateType))
		if saidBefore(ctx, key, s, there) {
			continue
		}
		bundle, err := key.Bundle(ctx, s)
		if err != nil {
			return "", err
		}
		if !keeps {
			file := layout + "." + attest.Kind(s.PredicateType) + ".sigstore.json"
			if err := host.WriteJSON(file, 0o644, json.RawMessage(bundle)); err != nil {
				return "", failure.Wrap(err, "a signature cannot lie beside the layout",
					"push it to a registry that keeps referrers, or from a folder that can be written")
			}
		}
		add = append(add, registry.Referrer{ArtifactType: attest.BundleType, Content: bundle, Annotations: map[string]string{
			"dev.sigstore.bundle.content": "dsse-envelope", attest.AnnotationKind: s.PredicateType, // as cosign's
		}})
	}
	line := strings.Join(said, ", ")
	switch {
	case !keeps:
		return line + ", beside the layout", nil
	case len(add) == 0:
		return line + ", all said before", nil
	}
	return line, session.Attach(ctx, reference, add, p)
}

// saidBefore says whether one of the bundles has the statement with the key's signature.
func saidBefore(ctx context.Context, key attest.Key, s attest.Statement, bundles []registry.Referrer) bool {
	for _, b := range bundles {
		if before, err := key.Open(ctx, b.Content); err == nil && before.Equal(s) {
			return true
		}
	}
	return false
}

// Chain is what a key's holder says of an image.
type Chain struct {
	Image  string `json:"image"`  // with digest
	Others int    `json:"others"` // bundles that say nothing of it, or are signed with another key
	// Keyless are bundles that are signed with a certificate's key, which cosign verifies.
	Keyless int    `json:"keyless,omitempty"`
	Said    []Said `json:"said"`
}

// Said is one thing that is said of it.
type Said struct {
	Kind      string          `json:"kind"` // signature, provenance, sbom-spdx, sbom-cyclonedx, or the predicate's type
	Predicate json.RawMessage `json:"predicate"`
}

// VerifySignature returns what the holder of a public key, in a file, says of an image in
// a registry. That there is no signature of theirs is an error, and so is that they revoked
// the image, or one that it was made from. Bundles in files count as if they were in the
// registry.
func (b *Build) VerifySignature(ctx context.Context, reference, publicKey string, files []string) (Chain, error) {
	w := b.way(nil)
	wrong := settings.Mistakes{}
	key, err := PublicKey(ctx, publicKey)
	wrong.Check("--key", err)
	var given []registry.Referrer
	for _, file := range files {
		content, err := host.ReadFile(file, maxSBOM*2)
		if err == nil && !attest.IsBundle(content) {
			err = failure.New(file+" is no Sigstore bundle", "name what a push left beside its layout")
		}
		wrong.Check("--bundle", err)
		given = append(given, registry.Referrer{Content: content})
	}
	if len(wrong) > 0 {
		return Chain{}, wrong
	}
	session, err := w.session()
	if err != nil {
		return Chain{}, err
	}
	defer session.Close()
	digest, there, broken, err := session.Referrers(ctx, reference, attest.BundleType)
	switch f, known := failure.In(err); {
	case err != nil && len(files) == 0 && known && errors.Is(err, registry.ErrNoReferrers):
		f.Try = "name the files that lay beside the layout with --bundle"
		return Chain{}, f
	case err != nil && !errors.Is(err, registry.ErrNoReferrers):
		return Chain{}, err
	}
	there = append(there, given...)
	name, _, _ := strings.Cut(reference, "@")
	chain, ours := Chain{Image: name + "@" + digest, Others: broken}, false
	for _, bundle := range there {
		s, err := key.Open(ctx, bundle.Content)
		switch {
		case err != nil && attest.Keyless(bundle.Content):
			chain.Keyless++
			continue
		case err != nil || !s.Of(digest):
			chain.Others++
			continue
		}
		ours = ours || s.PredicateType == attest.Signature
		chain.Said = append(chain.Said, Said{attest.Kind(s.PredicateType), s.Predicate})
	}
	if err := session.RevokedAt(ctx, chain.Image, &key); err != nil || ours {
		return chain, err
	}
	what := chain.Image + " has no signature by the key " + publicKey
	if chain.Others > 0 {
		what += ", but " + text.Count(chain.Others, "bundle") + " by others or about others"
	}
	if chain.Keyless > 0 {
		return chain, failure.New(what+"; it is signed by a certificate (keyless)", "verify with cosign: cosign verify --certificate-identity … "+chain.Image)
	}
	return chain, failure.New(what, "do not use it, or ask whoever published it for their key")
}
