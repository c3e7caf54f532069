package pipeline_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/pipeline"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
	"github.com/netgroup-polito/diskforge/internal/testkit"
	"github.com/netgroup-polito/diskforge/internal/ui"
)

// keys are the files of a key as cosign makes it: the private half, and the public one.
func keys(t *testing.T, password string) (private, public string) {
	t.Helper()
	closed, open := testkit.CosignKey(t, password)
	dir := t.TempDir()
	private, public = filepath.Join(dir, "cosign.key"), filepath.Join(dir, "cosign.pub")
	require.NoError(t, os.WriteFile(private, closed, 0o600))
	require.NoError(t, os.WriteFile(public, open, 0o600))
	return private, public
}

// withReferrers is a registry that keeps referrers. It has no tags but its images'.
func withReferrers(t *testing.T) (address string) {
	server := httptest.NewServer(ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// signer is a build with the settings.
func signer(key, password string) *pipeline.Build {
	return &pipeline.Build{
		Config: settings.Config{SigningKey: key, SigningPassword: settings.Secret(password)},
		UI:     ui.New(io.Discard, false), Version: "test",
	}
}

// packedWithSBOM is a layout with an SBOM of its disk beside it.
func packedWithSBOM(t *testing.T) (layout string, made oci.Result) {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	content := make([]byte, 1<<20)
	copy(content[510:], "\x55\xAA")
	require.NoError(t, os.WriteFile(disk, content, 0o600))
	layout = filepath.Join(dir, "course")
	made, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{
		Architecture: "amd64", Title: "course", Version: "v1", BaseName: "debian-bookworm from packages", BaseDigest: "sha256:" + strings.Repeat("b", 64),
		Source: "https://example.org/playbooks.git", Revision: strings.Repeat("c", 40),
		Annotations: map[string]string{oci.AnnotationInputs: "sha256:" + strings.Repeat("1", 64), oci.AnnotationBuilt: "2026-11-30T12:00:00Z"},
	}, progress.Discard)
	require.NoError(t, err)
	require.NoError(t, sbom.Save(dir, sbom.Disk{Name: "course", Digest: made.DiskDigest}, sbom.Inventory{Packages: []sbom.Package{{Name: "bash", Version: "5.2"}}}))
	return layout, made
}

func TestWhatIsPushedIsSignedOnceWithItsProvenanceAndSBOM(t *testing.T) {
	address := withReferrers(t)
	layout, made := packedWithSBOM(t)
	private, public := keys(t, "words")
	ref := address + "/labs/course:v1"
	b := signer(private, "words")
	for range 2 { // pushed again, nothing is said twice
		pushed, err := b.PushLayout(t.Context(), layout, ref, true)
		require.NoError(t, err)
		assert.Equal(t, ref+"@"+made.Digest, pushed)
	}

	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	assert.Equal(t, ref+"@"+made.Digest, chain.Image)
	assert.Zero(t, chain.Others)
	var kinds []string
	said := map[string]json.RawMessage{}
	for _, s := range chain.Said {
		kinds = append(kinds, s.Kind)
		said[s.Kind] = s.Predicate
	}
	assert.ElementsMatch(t, []string{"signature", "provenance", "sbom-spdx", "sbom-cyclonedx"}, kinds)
	assert.JSONEq(t, `{
		"buildDefinition": {
			"buildType": "https://github.com/netgroup-polito/diskforge/blob/main/docs/signatures.md#provenance",
			"externalParameters": {"image": "course", "version": "v1", "inputs": "sha256:`+strings.Repeat("1", 64)+`"},
			"resolvedDependencies": [
				{"name": "base", "uri": "debian-bookworm from packages", "digest": {"sha256": "`+strings.Repeat("b", 64)+`"}},
				{"name": "playbook", "uri": "https://example.org/playbooks.git", "digest": {"gitCommit": "`+strings.Repeat("c", 40)+`"}}
			]
		},
		"runDetails": {
			"builder": {"id": "https://github.com/netgroup-polito/diskforge"},
			"metadata": {"finishedOn": "2026-11-30T12:00:00Z"}
		}
	}`, string(said["provenance"]))
	assert.Contains(t, string(said["sbom-spdx"]), "bash")

	told, err := signer("", "").Inspect(t.Context(), ref)
	require.NoError(t, err)
	assert.Equal(t, []string{"provenance", "sbom-cyclonedx", "sbom-spdx", "signature"}, told.Attached)
	assert.Contains(t, told.Text(), "attached      provenance, sbom-cyclonedx, sbom-spdx, signature\n")

	_, stranger := keys(t, "")
	chain, err = signer("", "").VerifySignature(t.Context(), ref, stranger, nil)
	require.ErrorContains(t, err, "no signature by the key")
	assert.Equal(t, 4, chain.Others)
}

func TestASignatureIsOfOneDigest(t *testing.T) {
	address := withReferrers(t)
	layout, made := packedWithSBOM(t)
	private, public := keys(t, "")
	_, err := signer(private, "").PushLayout(t.Context(), layout, address+"/labs/course:v1", true)
	require.NoError(t, err)
	assert.NoFileExists(t, layout+".signature.sigstore.json", "it is in the registry")
	without, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	_, err = signer(private, "").PushLayout(t.Context(), layout, without+"/labs/course:v1", true)
	require.NoError(t, err)

	other, _ := packedWithSBOM(t)
	_, err = signer("", "").PushLayout(t.Context(), other, address+"/labs/other:v1", true)
	require.NoError(t, err)
	_, err = signer("", "").VerifySignature(t.Context(), address+"/labs/other:v1", public, nil)
	require.ErrorContains(t, err, "no signature", "signatures belong to a repository's image")

	// The bundle of another image, given or attached, says nothing of this one.
	different := filepath.Join(t.TempDir(), "different.raw")
	content := make([]byte, 1<<20)
	copy(content[510:], "\x55\xAAx")
	require.NoError(t, os.WriteFile(different, content, 0o600))
	third := filepath.Join(t.TempDir(), "third")
	_, err = oci.Pack(t.Context(), different, third, oci.Metadata{Architecture: "amd64", Title: "third"}, progress.Discard)
	require.NoError(t, err)
	_, err = signer("", "").PushLayout(t.Context(), third, address+"/labs/third:v1", true)
	require.NoError(t, err)
	bundle := layout + ".signature.sigstore.json"
	require.FileExists(t, bundle)
	_, err = signer("", "").VerifySignature(t.Context(), address+"/labs/third:v1", public, []string{bundle})
	require.ErrorContains(t, err, "no signature")
	chain, err := signer("", "").VerifySignature(t.Context(), address+"/labs/other:v1", public, []string{bundle})
	require.NoError(t, err, "the same image, elsewhere")
	assert.Equal(t, made.Digest, chain.Image[len(chain.Image)-len(made.Digest):])
}

// keylessly is a bundle as cosign's without a key: a certificate and an entry of the log in
// place of a key.
func keylessly(t *testing.T, digest string) []byte {
	t.Helper()
	closed, _ := testkit.CosignKey(t, "")
	key, err := attest.ReadKey(closed, "")
	require.NoError(t, err)
	s, err := attest.New(attest.Signature, digest, "", struct{}{})
	require.NoError(t, err)
	signed, err := key.Bundle(t.Context(), s)
	require.NoError(t, err)
	var bundle map[string]any
	require.NoError(t, json.Unmarshal(signed, &bundle))
	bundle["verificationMaterial"] = map[string]any{
		"certificate": map[string]any{"rawBytes": "MIIB"},
		"tlogEntries": []any{map[string]any{
			"logIndex": "1", "logId": map[string]any{"keyId": "wNI9"}, "kindVersion": map[string]any{"kind": "dsse", "version": "0.0.1"},
			"integratedTime": "1764504000", "inclusionPromise": map[string]any{"signedEntryTimestamp": "MEUC"}, "canonicalizedBody": "e30=",
		}},
		"timestampVerificationData": map[string]any{},
	}
	signed, err = json.Marshal(bundle)
	require.NoError(t, err)
	return signed
}

func TestASignatureByACertificateIsCosignsToVerify(t *testing.T) {
	layout, made := packedWithSBOM(t)
	ref := withReferrers(t) + "/labs/course:v1"
	_, err := signer("", "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	session, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer session.Close()
	require.NoError(t, session.Attach(t.Context(), strings.TrimSuffix(ref, ":v1")+"@"+made.Digest, []registry.Referrer{{
		ArtifactType: attest.BundleType, Content: keylessly(t, made.Digest), Annotations: map[string]string{attest.AnnotationKind: attest.Signature},
	}}, progress.Discard))
	private, public := keys(t, "")
	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.ErrorContains(t, err, "signed by a certificate (keyless): verify with cosign")
	assert.Equal(t, 1, chain.Keyless)
	assert.Zero(t, chain.Others)
	told, err := signer("", "").Inspect(t.Context(), ref)
	require.NoError(t, err)
	assert.Equal(t, []string{"signature"}, told.Attached)

	_, err = signer(private, "").Sign(t.Context(), ref) // a key's holder signs it besides
	require.NoError(t, err)
	chain, err = signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	assert.Equal(t, 1, chain.Keyless)
}

func TestProvenanceIsWrittenForAnotherSigner(t *testing.T) {
	layout, _ := packedWithSBOM(t)
	private, public := keys(t, "")
	ref := withReferrers(t) + "/labs/course:v1"
	_, err := signer(private, "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "provenance.json")
	require.NoError(t, pipeline.Provenance(layout, file))
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	for _, said := range chain.Said {
		if said.Kind == "provenance" {
			assert.JSONEq(t, string(said.Predicate), string(written))
			return
		}
	}
	t.Fatal("there is no provenance")
}

func TestWithBaseKeyAContainerdiskThatIsNotSignedIsNoBase(t *testing.T) {
	address := withReferrers(t)
	layout, made := packedWithSBOM(t)
	private, public := keys(t, "")
	ref := address + "/labs/course:v1"
	base := func(url, checksum, key string) error {
		s, err := settings.Read(map[string]string{"ISO_URL": url, "ISO_CHECKSUM": checksum, "BASE_KEY": key, "CACHE_DIR": t.TempDir()}, nil)
		require.NoError(t, err)
		c, err := pipeline.Parse(s, pipeline.NeedBase)
		if err != nil {
			return err
		}
		_, err = (&pipeline.Build{Config: c, UI: ui.New(io.Discard, false)}).Base(t.Context())
		return err
	}
	byInputs := "inputs:sha256:" + strings.Repeat("1", 64)
	_, err := signer("", "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	require.ErrorContains(t, base("oci://"+ref, made.Digest, public), made.Digest+" has no signature by the key "+public)
	require.ErrorContains(t, base("oci://"+ref, byInputs, public), "has no signature")
	require.NoError(t, base("oci://"+ref, byInputs, ""))

	_, err = signer(private, "").Sign(t.Context(), ref)
	require.NoError(t, err)
	require.NoError(t, base("oci://"+ref, made.Digest, public))
	require.NoError(t, base("oci://"+ref, byInputs, public))
	_, stranger := keys(t, "")
	require.ErrorContains(t, base("oci://"+ref, made.Digest, stranger), "has no signature")

	require.ErrorContains(t, base("oci:"+layout+"@"+made.Digest, "", public), "BASE_KEY: asks for a signature, which a layout has none of")
	require.ErrorContains(t, base("oci://"+ref, made.Digest, private), "BASE_KEY: "+private+" is a private key")
}

func TestARegistryWithoutReferrersGetsNoSignatureAndTheFilesStay(t *testing.T) {
	address, _ := testkit.StartRegistry(t, testkit.RegistryOptions{})
	layout, _ := packedWithSBOM(t)
	private, public := keys(t, "")
	ref := address + "/labs/course:v1"
	_, err := signer(private, "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	bundle := layout + ".signature.sigstore.json"
	require.FileExists(t, bundle)
	require.FileExists(t, layout+".provenance.sigstore.json")
	_, err = signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.ErrorContains(t, err, "no signatures beside an image")
	_, err = signer("", "").VerifySignature(t.Context(), ref, public, []string{bundle})
	require.NoError(t, err)
	_, err = signer(private, "").Sign(t.Context(), ref)
	require.ErrorContains(t, err, "no signatures beside an image")
	resp, err := http.Get("http://" + address + "/v2/labs/course/tags/list")
	require.NoError(t, err)
	defer resp.Body.Close()
	tags, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"labs/course","tags":["v1"]}`, string(tags), "a registry's user takes each tag for a version")
}

func TestAnImageOfARegistryIsSignedLater(t *testing.T) {
	address := withReferrers(t)
	layout, made := packedWithSBOM(t)
	private, public := keys(t, "words")
	ref := address + "/labs/course:v1"
	_, err := signer("", "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	var g sync.WaitGroup
	for range 3 {
		g.Go(func() {
			signed, err := signer(private, "words").Sign(t.Context(), ref)
			assert.NoError(t, err)
			assert.Equal(t, ref+"@"+made.Digest, signed)
		})
	}
	g.Wait()
	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	var kinds []string
	for _, s := range chain.Said {
		kinds = append(kinds, s.Kind)
	}
	assert.Subset(t, kinds, []string{attest.Kind(attest.Signature), attest.Kind(attest.Provenance)})
}

func TestAKeyThatDoesNotSignIsToldBeforeAnythingIsSent(t *testing.T) {
	layout, _ := packedWithSBOM(t)
	private, public := keys(t, "words")
	for why, b := range map[string]*pipeline.Build{
		"is a public key":      signer(public, ""),
		"set SIGNING_PASSWORD": signer(private, ""),
		"SIGNING_PASSWORD":     signer(private, "no"),
		"name the file of one": signer(filepath.Join(t.TempDir(), "none"), ""),
	} {
		_, err := b.PushLayout(t.Context(), layout, "127.0.0.1:1/labs/course:v1", true)
		require.ErrorContains(t, err, why)
		assert.NotContains(t, err.Error(), "connection refused")
		assert.NotContains(t, err.Error(), "\n")
	}
	_, err := signer("", "").Sign(t.Context(), "127.0.0.1:1/labs/course:v1")
	require.ErrorContains(t, err, "SIGNING_KEY")
}

func TestAnIndexIsSignedItselfAndNotForOneOfItsImages(t *testing.T) {
	address := withReferrers(t)
	layout, _ := packedWithSBOM(t)
	private, public := keys(t, "")
	ref := address + "/labs/course:v1"
	pushed, err := signer("", "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	parsed, err := name.ParseReference(ref)
	require.NoError(t, err)
	image, err := remote.Image(parsed)
	require.NoError(t, err)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image})
	require.NoError(t, remote.WriteIndex(parsed.Context().Tag("all"), index))
	digest, err := index.Digest()
	require.NoError(t, err)
	signed, err := signer(private, "").Sign(t.Context(), address+"/labs/course:all")
	require.NoError(t, err)
	assert.Equal(t, address+"/labs/course:all@"+digest.String(), signed)
	chain, err := signer("", "").VerifySignature(t.Context(), address+"/labs/course:all", public, nil)
	require.NoError(t, err)
	assert.Len(t, chain.Said, 1)
	_, err = signer("", "").VerifySignature(t.Context(), pushed, public, nil)
	require.ErrorContains(t, err, "has no signature by the key")
	_, err = signer(private, "").Revoke(t.Context(), address+"/labs/course:all", "x")
	require.ErrorContains(t, err, "is an index of 1 image: name one of them by its digest")
}

func TestWhatIsAttachedBesideAndIsNotOursIsNamed(t *testing.T) {
	address := withReferrers(t)
	layout, made := packedWithSBOM(t)
	private, public := keys(t, "")
	ref := address + "/labs/course:v1"
	b := signer(private, "")
	_, err := b.PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	require.Len(t, chain.Said, 4)

	nonsense := filepath.Join(t.TempDir(), "nonsense")
	require.NoError(t, os.WriteFile(nonsense, []byte("{}"), 0o600))
	_, err = signer("", "").VerifySignature(t.Context(), ref, private, []string{nonsense})
	require.EqualError(t, err, "--key: "+private+" is a private key: name the public one\n--bundle: "+nonsense+" is no Sigstore bundle: name what a push left beside its layout")
	require.ErrorAs(t, err, new(settings.Mistakes), "exit code 2: nobody looked for a signature")

	s, err := registry.NewSession(registry.Options{})
	require.NoError(t, err)
	defer s.Close()
	junk := make([]registry.Referrer, 501)
	for i := range junk {
		junk[i] = registry.Referrer{ArtifactType: attest.BundleType, Content: fmt.Appendf(nil, "%d", i)}
	}
	require.NoError(t, s.Attach(t.Context(), address+"/labs/course@"+made.Digest, junk, progress.Discard))
	_, err = signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.ErrorContains(t, err, "more than 500 manifests", "not that there is no signature")
}

func TestAnnotationsThatSayNothingAreNotRepeated(t *testing.T) {
	dir := t.TempDir()
	disk, layout := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "layout")
	content := make([]byte, 1<<20)
	copy(content[510:], "\x55\xAA")
	require.NoError(t, os.WriteFile(disk, content, 0o600))
	_, err := oci.Pack(t.Context(), disk, layout, oci.Metadata{
		Architecture: "amd64", BaseDigest: "md5:zz", Annotations: map[string]string{oci.AnnotationBuilt: "yesterday"},
	}, progress.Discard)
	require.NoError(t, err)
	private, public := keys(t, "")
	ref := withReferrers(t) + "/labs/course:v1"
	_, err = signer(private, "").PushLayout(t.Context(), layout, ref, true)
	require.NoError(t, err)
	chain, err := signer("", "").VerifySignature(t.Context(), ref, public, nil)
	require.NoError(t, err)
	for _, said := range chain.Said {
		if said.Kind == "provenance" {
			assert.JSONEq(t, `{
				"buildDefinition": {"buildType": "https://github.com/netgroup-polito/diskforge/blob/main/docs/signatures.md#provenance", "externalParameters": {}, "resolvedDependencies": []},
				"runDetails": {"builder": {"id": "https://github.com/netgroup-polito/diskforge"}, "metadata": {}}
			}`, string(said.Predicate))
		}
	}
}
