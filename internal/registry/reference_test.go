package registry_test

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/registry"
)

func TestTheSettingsMakeAReference(t *testing.T) {
	t.Parallel()
	for want, s := range map[string][4]string{
		"harbor.example.org/lab/ubuntu:v1":   {"harbor.example.org", "lab", "ubuntu", "v1"},
		"harbor.example.org/lab/ubuntu:v2":   {"harbor.example.org", "/lab/", "ubuntu", "v2"},
		"localhost:5000/ubuntu-base:1.0":     {"localhost:5000", "", "ubuntu-base", "1.0"},
		"localhost/a/b/c_d/e:_x":             {"localhost", "a/b", "c_d/e", "_x"},
		"[::1]:5000/a:latest":                {"[::1]:5000", "", "a", "latest"},
		"10.0.0.1/a:20260501":                {"10.0.0.1", "", "a", "20260501"},
		"registry:443/p/a:" + long("t", 128): {"registry:443", "p", "a", long("t", 128)},
		"":                                   {"", "lab", "ubuntu", "v1"}, // nothing is pushed
	} {
		got, err := registry.ParseReference(s[0], s[1], s[2], s[3])
		require.NoError(t, err, "%q", s)
		assert.Equal(t, want, got)
		if want != "" {
			parsed, err := registry.Parse(got)
			require.NoError(t, err)
			assert.Equal(t, want, parsed)
		}
	}
}

func long(s string, n int) string { return strings.Repeat(s, n) }

func TestASettingThatNoRegistryTakesIsNamedInOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host, prefix, image, tag string
		words                    string
	}{
		{"https://harbor.example.org", "p", "a", "1", "TARGET_REGISTRY cannot be \"https://harbor.example.org\": leave out http:// or https://"},
		{"harbor.example.org/lab", "p", "a", "1", "that is REGISTRY_PREFIX"},
		{"alice@harbor.example.org", "p", "a", "1", "that is REGISTRY_USER"},
		{"harbor", "p", "a", "1", "harbor:443"},
		{"harbor.example.org:0", "p", "a", "1", "port"},
		{"harbor.example.org:http", "p", "a", "1", "PORT"},
		{"harbor..org", "p", "a", "1", "host name"},
		{"har bor.org", "p", "a", "1", "host name"},
		{"[::1", "p", "a", "1", "host name"},
		{"[1::2::3]", "p", "a", "1", "IPv6"},
		{"::1", "p", "a", "1", "host name"},
		{"localhost:5000", "Lab", "a", "1", "REGISTRY_PREFIX cannot be \"Lab\""},
		{"localhost:5000", "a//b", "a", "1", "REGISTRY_PREFIX"},
		{"localhost:5000", "p", "Ubuntu", "1", "IMAGE_NAME cannot be \"Ubuntu\": registries take lower-case"},
		{"localhost:5000", "p", "a:b", "1", "IMAGE_NAME"},
		{"localhost:5000", "p", "a b", "1", "IMAGE_NAME"},
		{"localhost:5000", "p", "../a", "1", "IMAGE_NAME"},
		{"localhost:5000", "p", "", "1", "IMAGE_NAME is not set"},
		{"", "p", "-a", "1", "IMAGE_NAME"},
		{"localhost:5000", "p", long("a", 254), "1", "longer than 255"},
		{"localhost:5000", "p", "a", "", "IMAGE_TAG is not set"},
		{"localhost:5000", "p", "a", ".1", "IMAGE_TAG"},
		{"localhost:5000", "p", "a", "1/2", "IMAGE_TAG"},
		{"localhost:5000", "p", "a", long("t", 129), "IMAGE_TAG"},
		{"localhost:5000", "p", "a", "sha256-" + long("0", 64), "referrers"},
	} {
		_, err := registry.ParseReference(c.host, c.prefix, c.image, c.tag)
		require.ErrorContains(t, err, c.words)
		assert.NotContains(t, err.Error(), "\n")
		_, ok := failure.In(err)
		assert.True(t, ok)
	}
}

func TestAllBadSettingsAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := registry.ParseReference("http://x", "P", "A", "")
	require.Error(t, err)
	assert.Len(t, strings.Split(err.Error(), "\n"), 4)
}

func TestAReferenceMustSayRegistryAndTag(t *testing.T) {
	t.Parallel()
	for ref, words := range map[string]string{
		"":                                "name a registry",
		"ubuntu":                          "Docker Hub",
		"ubuntu:1":                        "no tag", // taken for a registry and its port
		"lab/ubuntu:1":                    "Docker Hub",
		"localhost:5000/ubuntu":           "no tag",
		"localhost:5000/ubuntu:":          "tag is empty",
		"localhost:5000/:1":               "it is empty",
		"https://localhost:5000/ubuntu:1": "leave out http",
		"localhost:5000/a@sha256:" + long("0", 64): "leave out the digest",
		"localhost:5000/A:1":                       "lower-case",
	} {
		_, err := registry.Parse(ref)
		require.ErrorContains(t, err, words, ref)
		require.ErrorIs(t, err, registry.ErrReference)
		require.EqualError(t, registry.CheckTarget(ref), err.Error())
	}
	require.NoError(t, registry.CheckTarget("localhost:5000/ubuntu:1"))
}

func FuzzReference(f *testing.F) {
	for _, s := range [][4]string{
		{"localhost:5000", "p", "a", "1"}, {"[::1]:1", "", "a", "b"}, {"a.b", "//", "c/d", "e"}, {"docker.io", "library", "x", "y"},
		{"a:1:2", "p", "n", "t"}, {"index.docker.io", "", "x", "y"}, {"[1::%25x]", "", "a", "b"},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	f.Fuzz(func(t *testing.T, host, prefix, image, tag string) {
		ref, err := registry.ParseReference(host, prefix, image, tag)
		if err != nil || ref == "" {
			return
		}
		// What the settings are good for must come through whole.
		if _, err := registry.Parse(ref); err != nil {
			t.Fatalf("%q was accepted and then refused: %v", ref, err)
		}
		parsed, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := parsed.RegistryStr(); got != host && host != "docker.io" {
			t.Fatalf("%q goes to registry %q, not %q", ref, got, host)
		}
		if parsed.TagStr() != tag || !strings.HasSuffix(parsed.RepositoryStr(), image) {
			t.Fatalf("%q was taken apart to %q and %q", ref, parsed.RepositoryStr(), parsed.TagStr())
		}
	})
}

func TestAnImageInARegistryIsNamedByTagOrDigestOrBoth(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + long("0", 64)
	for ref, want := range map[string][2]string{
		"localhost:5000/lab/ubuntu:v1":             {"localhost:5000/lab/ubuntu", "v1"},
		"quay.io/containerdisks/ubuntu@" + digest:  {"quay.io/containerdisks/ubuntu", digest},
		"quay.io/a/b:24.04@" + digest:              {"quay.io/a/b", digest},
		"localhost:5000/a:sha256-" + long("0", 64): {"localhost:5000/a", "sha256-" + long("0", 64)},
		"[::1]:5000/a@" + digest:                   {"[::1]:5000/a", digest},
	} {
		repository, identifier, err := registry.ParseStored(ref)
		require.NoError(t, err, ref)
		assert.Equal(t, want, [2]string{repository, identifier})
	}
	for ref, words := range map[string]string{
		"localhost:5000/a":                          "no tag",
		"localhost:5000/a@":                         "behind @",
		"localhost:5000/a@sha256:1":                 "behind @",
		"localhost:5000/a@sha512:" + long("0", 128): "behind @",
		"localhost:5000/a:@" + digest:               "tag is empty",
		"localhost:5000/A@" + digest:                "lower-case",
		"ubuntu@" + digest:                          "registry",
		"https://quay.io/a:1":                       "leave out http",
	} {
		_, _, err := registry.ParseStored(ref)
		require.ErrorContains(t, err, words, ref)
		require.ErrorIs(t, err, registry.ErrReference)
		require.EqualError(t, registry.CheckStored(ref), err.Error())
		_, ok := failure.In(err)
		assert.True(t, ok)
	}
	require.NoError(t, registry.CheckStored("quay.io/a/b@"+digest))
}
