package registry_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/testkit"
)

func TestAnImageThatAnIndexNamesIsNotDeletedBeforeTheIndex(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	repository := host + "/other/app"
	image, index := foreign(t, repository)
	in := session(t, alice)
	for _, ref := range []string{repository + ":one", repository + "@" + image.String()} {
		_, err := in.Delete(t.Context(), ref)
		require.ErrorContains(t, err, ref+" is a part of the index "+repository+":many")
		require.ErrorContains(t, err, "delete the index first, "+repository+"@"+index.String())
	}
	entries, err := in.Entries(t.Context(), repository)
	require.NoError(t, err)
	assert.Len(t, entries, 2)

	for _, ref := range []string{repository + "@" + index.String(), repository + ":one"} {
		_, err = in.Delete(t.Context(), ref)
		require.NoError(t, err)
	}
	entries, err = in.Entries(t.Context(), repository)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestAListedImageIsDeletedUnlessItGotATagSince(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	repository := host + "/lab/ubuntu"
	in := session(t, alice)
	listed := func() registry.Entry {
		entries, err := in.Entries(t.Context(), repository)
		require.NoError(t, err)
		require.NotEmpty(t, entries)
		return entries[0]
	}
	made := stored(t, repository+":v1", alice, digestOf(1))
	e := listed()
	require.NoError(t, in.Tag(t.Context(), repository+"@"+made.Digest, "latest"))
	err := in.DeleteListed(t.Context(), e)
	require.ErrorContains(t, err, repository+"@"+made.Digest+" has got the tag latest since it was listed")

	e = listed()
	assert.Equal(t, []string{"latest", "v1"}, e.Tags)
	stored(t, repository+":latest", alice, digestOf(2))
	require.NoError(t, in.DeleteListed(t.Context(), e), "that it lost a tag is no reason to keep it")
	assert.Equal(t, []string{"latest"}, listed().Tags)
}

func TestAListedImageIsKeptWhereAnIndexNamesItMeanwhile(t *testing.T) {
	t.Parallel()
	host, _ := testkit.StartRegistry(t, testkit.RegistryOptions{Deletes: true})
	image, _ := foreign(t, host+"/other/app")
	err := session(t, alice).DeleteListed(t.Context(), registry.Entry{Repository: host + "/other/app", Digest: image.String(), Tags: []string{"one"}})
	require.ErrorContains(t, err, "is a part of the index "+host+"/other/app:many")
}
