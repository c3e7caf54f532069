package pipeline_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/testkit"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// pushImage pushes an image of ours, made from another one, and returns the reference with
// digest. Its disk is told by its reference.
func pushImage(t *testing.T, b *pipeline.Build, ref, base string) string {
	t.Helper()
	dir := t.TempDir()
	content := make([]byte, 1<<20)
	copy(content, ref)
	copy(content[510:], "\x55\xAA")
	require.NoError(t, os.WriteFile(dir+"/disk.raw", content, 0o600))
	_, digest, _ := strings.Cut(base, "@")
	_, err := oci.Pack(t.Context(), dir+"/disk.raw", dir+"/layout",
		oci.Metadata{Architecture: "amd64", BaseName: base, BaseDigest: digest}, progress.Discard)
	require.NoError(t, err)
	pushed, err := b.PushLayout(t.Context(), dir+"/layout", ref, true)
	require.NoError(t, err)
	return pushed
}

// loud is a build whose screen is read.
func loud(key string) (*pipeline.Build, *bytes.Buffer) {
	screen := &bytes.Buffer{}
	b := signer(key, "")
	b.UI = ui.New(screen, false)
	return b, screen
}

func TestARevokedImageAndWhatWasMadeFromItAreRefused(t *testing.T) {
	address := withReferrers(t)
	private, public := keys(t, "")
	b := signer(private, "")
	base := pushImage(t, b, address+"/labs/base:1", "")
	// As a build has it that starts from a registry, and as one that starts from a layout.
	child := pushImage(t, b, address+"/labs/child:1", base)
	_, digest, _ := strings.Cut(child, "@")
	grandchild := pushImage(t, b, address+"/labs/grandchild:1", "child@"+digest)
	stranger := pushImage(t, b, address+"/labs/stranger:1", address+"/labs/gone:1@sha256:"+strings.Repeat("0", 64))
	images := map[string]string{
		base:       "is revoked (by whom was not checked): root has no password",
		child:      "was made from " + strings.Replace(base, ":1@", "@", 1) + ", which is revoked (by whom was not checked): root has no password",
		grandchild: "was made from " + strings.Replace(base, ":1@", "@", 1) + ", which is revoked (by whom was not checked): root has no password",
	}
	fetched := t.TempDir() // by somebody who has the disks already
	take := func(ref, cache string) error {
		_, err := registry.Fetch(t.Context(), ref, registry.FetchOptions{CacheDir: cache}, progress.Discard)
		return err
	}
	for ref := range images {
		require.NoError(t, take(ref, fetched))
	}

	for range 2 { // the second time, nothing is added
		revoked, err := b.Revoke(t.Context(), address+"/labs/base:1", "root has\n\x1b[31mno password")
		require.NoError(t, err)
		assert.Equal(t, base, revoked)
	}
	s, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer s.Close()
	_, all, _, err := s.Referrers(t.Context(), base, attest.BundleType)
	require.NoError(t, err)
	assert.Len(t, all, 3, "a signature, provenance, a revocation")

	for ref, why := range images {
		r, err := b.Inspect(t.Context(), ref)
		require.NoError(t, err)
		assert.Contains(t, r.Checks, contract.Result{Check: "revocation", Level: contract.Error, Detail: why})
		name, _, _ := strings.Cut(ref, "@")
		for what, err := range map[string]error{
			"run":       one(b, t.TempDir()).Attend(t.Context(), ref, pipeline.Desk{}),
			"base":      onBase(t, ref),
			"cached":    take(ref, fetched),
			"by tag":    take(name, t.TempDir()),
			"signature": verify(t, ref, public),
			"promote":   promote(t, ref, ""),
			"with key":  promote(t, ref, public),
		} {
			require.ErrorContains(t, err, "revoked", what)
			assert.ErrorContains(t, err, "root has no password: take another image", what)
			assert.NotContains(t, err.Error(), "\n")
			assert.NotContains(t, err.Error(), "\x1b")
			if what == "signature" || what == "with key" {
				assert.NotContains(t, err.Error(), "by whom", "that was checked")
			}
		}
	}
	require.NoError(t, take(stranger, t.TempDir()), "what is not there was not revoked")

	// Only the key's holder can revoke for the one who has the key.
	other, _ := keys(t, "")
	theirs := pushImage(t, b, address+"/labs/theirs:1", "")
	_, err = signer(other, "").Revoke(t.Context(), theirs, "envy")
	require.NoError(t, err)
	require.ErrorContains(t, take(theirs, t.TempDir()), "is revoked (by whom was not checked): envy")
	require.NoError(t, verify(t, theirs, public))
	require.NoError(t, promote(t, theirs, public))
}

// one is a build with a cache of its own.
func one(b *pipeline.Build, cache string) *pipeline.Build {
	c := *b
	c.Config.CacheDir = cache
	return &c
}

// onBase takes the image as a base, as the stage does.
func onBase(t *testing.T, ref string) error {
	name, digest, _ := strings.Cut(ref, "@")
	b := one(signer("", ""), t.TempDir())
	b.Config.BaseImage = settings.BaseImage{Reference: name, Digest: digest}
	_, err := b.Base(t.Context())
	return err
}

func verify(t *testing.T, ref, key string) error {
	_, err := signer("", "").VerifySignature(t.Context(), ref, key, nil)
	return err
}

func promote(t *testing.T, ref, key string) error {
	_, err := signer("", "").Promote(t.Context(), ref, "stable", key)
	return err
}

func TestABundleOfAnotherImageOrAnotherKindRevokesNothing(t *testing.T) {
	address := withReferrers(t)
	private, public := keys(t, "")
	b := signer(private, "")
	image, other := pushImage(t, b, address+"/labs/image:1", ""), pushImage(t, b, address+"/labs/other:1", "")
	_, err := b.Revoke(t.Context(), other, "old")
	require.NoError(t, err)
	s, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer s.Close()
	_, all, _, err := s.Referrers(t.Context(), other, attest.BundleType)
	require.NoError(t, err)
	tampered := 0
	for i := range all {
		if all[i].Annotations[attest.AnnotationKind] == attest.Revocation {
			// Made to be of this image: no signature fits.
			all = append(all, retold(t, all[i], other, image))
			tampered++
		} else {
			all[i].Annotations[attest.AnnotationKind] = attest.Revocation
		}
	}
	require.Equal(t, 1, tampered)
	require.NoError(t, s.Attach(t.Context(), image, all[:len(all)-1], progress.Discard))
	_, err = registry.Fetch(t.Context(), image, registry.FetchOptions{CacheDir: t.TempDir()}, progress.Discard)
	require.NoError(t, err)
	require.NoError(t, s.Attach(t.Context(), image, all[len(all)-1:], progress.Discard))
	require.NoError(t, verify(t, image, public), "tampered")
}

// retold is a bundle whose statement is about another image.
func retold(t *testing.T, r registry.Referrer, from, to string) registry.Referrer {
	t.Helper()
	var b map[string]any
	require.NoError(t, json.Unmarshal(r.Content, &b))
	said, err := attest.Read(t.Context(), nil, r.Content)
	require.NoError(t, err)
	_, old, _ := strings.Cut(from, "sha256:")
	_, new, _ := strings.Cut(to, "sha256:")
	payload, err := json.Marshal(said)
	require.NoError(t, err)
	b["dsseEnvelope"].(map[string]any)["payload"] = bytes.ReplaceAll(payload, []byte(old), []byte(new)) // JSON has bytes in base64
	r.Content, err = json.Marshal(b)
	require.NoError(t, err)
	again, err := attest.Read(t.Context(), nil, r.Content)
	require.NoError(t, err)
	require.True(t, again.Of("sha256:"+new))
	return r
}

func TestARegistryWithoutReferrersHasNoRevocations(t *testing.T) {
	address, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	private, _ := keys(t, "")
	image := pushImage(t, signer("", ""), address+"/labs/image:1", "")
	_, err := signer(private, "").Revoke(t.Context(), image, "old")
	require.ErrorContains(t, err, image+" cannot be revoked: its registry keeps no referrers (OCI 1.1): delete it, and what was made from it")
	assert.NotContains(t, err.Error(), "\n")
	_, err = signer("", "").Revoke(t.Context(), image, "old")
	require.ErrorAs(t, err, new(settings.Mistakes))
	require.ErrorContains(t, err, "SIGNING_KEY")
	child := pushImage(t, signer("", ""), address+"/labs/child:1", image)
	require.NoError(t, onBase(t, child))
	require.NoError(t, promote(t, child, ""))
	_, err = signer("", "").Inspect(t.Context(), child)
	require.NoError(t, err)
}

func TestAChannelMovesToWhatIsSignedAndSaysTheWayBack(t *testing.T) {
	address := withReferrers(t)
	private, public := keys(t, "")
	one, two := pushImage(t, signer(private, ""), address+"/labs/image:1", ""), pushImage(t, signer("", ""), address+"/labs/image:2", "")
	named := func() string {
		s, err := registry.NewSession(registry.Options{})
		require.NoError(t, err)
		defer s.Close()
		e, _, err := s.Entry(t.Context(), address+"/labs/image:stable")
		require.NoError(t, err)
		return e.Digest
	}
	b, screen := loud("")
	promoted, err := b.Promote(t.Context(), address+"/labs/image:1", "stable", public)
	require.NoError(t, err)
	_, digest, _ := strings.Cut(one, "@")
	assert.Equal(t, address+"/labs/image:stable@"+digest, promoted)
	assert.Contains(t, screen.String(), "stable is new")
	assert.NotContains(t, screen.String(), "not checked")
	assert.Equal(t, digest, named())

	_, err = b.Promote(t.Context(), two, "stable", public)
	require.ErrorContains(t, err, "has no signature by the key")
	assert.Equal(t, digest, named(), "nothing moved")
	_, err = b.Promote(t.Context(), two, "stable", "")
	require.NoError(t, err)
	assert.Contains(t, screen.String(), "whose image it is was not checked: name --key")
	assert.Contains(t, screen.String(), "diskforge images promote "+address+"/labs/image@"+digest+" --to stable")
	assert.NotEqual(t, digest, named())
	_, err = b.Promote(t.Context(), two, "stable", "")
	require.NoError(t, err)
	assert.Contains(t, screen.String(), "it had stable before")

	nobodys := filepath.Join(t.TempDir(), "none")
	_, err = b.Promote(t.Context(), two, "2026-11", nobodys)
	require.ErrorAs(t, err, new(settings.Mistakes))
	require.ErrorContains(t, err, "--to: a channel has no digits")
	require.ErrorContains(t, err, "--key: ")
	_, err = b.Promote(t.Context(), address+"/labs/image:3", "stable", "")
	require.ErrorContains(t, err, "there is no image "+address+"/labs/image:3")
}
