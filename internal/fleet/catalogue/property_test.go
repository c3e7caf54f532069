package catalogue_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

// graph is the text of a catalogue: image i is from the image with the number
// parents[i], or has a base where that is negative.
func graph(parents []int) string {
	var b strings.Builder
	b.WriteString("images:\n")
	for i, parent := range parents {
		start := "base: {packages: bookworm}"
		if parent >= 0 {
			start = fmt.Sprintf("from: i%d", parent)
		}
		fmt.Fprintf(&b, "- {name: i%d, %s, playbook: p}\n", i, start)
	}
	return b.String()
}

// cyclic says whether following the parents of some image never ends.
func cyclic(parents []int) bool {
	for i := range parents {
		for steps := 0; i >= 0; steps++ {
			if steps > len(parents) {
				return true
			}
			i = parents[i]
		}
	}
	return false
}

func TestEveryOrderRespectsParentsAndCyclesAreAlwaysFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "images")
		parents := rapid.SliceOfN(rapid.IntRange(-n/2-1, n-1), n, n).Draw(t, "parents")
		c, err := parse(graph(parents))
		if cyclic(parents) {
			var mistakes catalogue.Mistakes
			if !errors.As(err, &mistakes) || !strings.Contains(err.Error(), "from itself") && !strings.Contains(err.Error(), "from each other") {
				t.Fatalf("a cycle is not told: %v", err)
			}
			return
		}
		require.NoError(t, err)
		require.Len(t, c.Images, n)
		built := map[string]bool{}
		for _, i := range c.Images {
			assert.True(t, i.From == "" || built[i.From], "%s before its parent", i.Name)
			assert.False(t, built[i.Name], "%s twice", i.Name)
			built[i.Name] = true
		}
		checkSelection(t, c)
	})
}

// checkSelection checks that a choice has what it needs, and nothing else.
func checkSelection(t *rapid.T, c *catalogue.Catalogue) {
	wanted := rapid.SampledFrom(c.Images).Draw(t, "wanted").Name
	chosen, err := c.Select(wanted)
	require.NoError(t, err)
	assert.Equal(t, wanted, chosen[len(chosen)-1].Name)
	for i, image := range chosen {
		assert.Equal(t, image.Name == wanted, image.Wanted)
		if i > 0 {
			assert.Equal(t, chosen[i-1].Name, image.From, "only a line of parents is needed")
		}
	}
	assert.Empty(t, chosen[0].From)
}

func TestAMatrixMakesEveryCombinationOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(1, 5), 1, 4).Draw(t, "sizes")
		left := rapid.IntRange(0, sizes[0]-1).Draw(t, "left out")
		name, matrix, count := "x", "", 1
		for i, size := range sizes {
			var values []string
			for v := range size {
				values = append(values, fmt.Sprintf("v%d", v))
			}
			name += fmt.Sprintf("-{a%d}", i)
			matrix += fmt.Sprintf("a%d: [%s], ", i, strings.Join(values, ", "))
			count *= size
		}
		text := fmt.Sprintf("images:\n- {name: '%s', matrix: {%s}, exclude: [{a0: v%d}], base: {packages: bookworm}, playbook: p}\n", name, matrix, left)
		text += "- {name: last, base: {packages: bookworm}, playbook: p}\n"
		c, err := parse(text)
		require.NoError(t, err)
		require.Len(t, c.Images, count-count/sizes[0]+1)
		all := names(c.Images)
		slices.Sort(all)
		assert.Len(t, slices.Compact(all), len(c.Images), "names are unique")
		for _, n := range all {
			assert.False(t, strings.HasPrefix(n, fmt.Sprintf("x-v%d", left)), "%s is left out", n)
		}
	})
}

// FuzzParse: no text makes the loader panic, run away or accept what the
// schema refuses.
func FuzzParse(f *testing.F) {
	for _, text := range accepted {
		f.Add(text)
	}
	for text := range refused {
		f.Add(text)
	}
	for text := range wrong {
		f.Add(text)
	}
	s := compiled(f)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if err != nil {
			var mistakes catalogue.Mistakes
			require.ErrorAs(t, err, &mistakes)
			for _, m := range mistakes {
				assert.Positive(t, m.Line)
				assert.NotEmpty(t, m.What)
			}
			return
		}
		assert.NoError(t, valid(t, s, text), "the schema refuses what the loader accepts")
		for _, i := range c.Images {
			assert.NotEmpty(t, i.Name)
			assert.NotEmpty(t, i.Settings["ANSIBLE_PLAYBOOK"]+i.Settings["PACKAGES"])
		}
	})
}

// thousand is a catalogue of 1000 images: ten parents, 99 children of each.
func thousand() []byte {
	var b strings.Builder
	b.WriteString("defaults: {git: {url: 'https://example.org/r.git'}, memory: 4096, vars: {a: [1, 2, 3], b: text}}\nimages:\n")
	for i := range 10 {
		fmt.Fprintf(&b, "- {name: parent-%d, base: {url: 'https://example.org/%d.img', checksum: 'file:https://example.org/SUMS'}, playbook: base}\n", i, i)
		for j := range 99 {
			fmt.Fprintf(&b, "- {name: child-%d-%d, from: parent-%d, playbook: course-%d, vars: {number: %d}, size: 20G}\n", i, j, i, j, j)
		}
	}
	return []byte(b.String())
}

func TestAThousandImagesAreRead(t *testing.T) {
	t.Parallel()
	c, err := catalogue.Parse("catalogue.yaml", dir, thousand())
	require.NoError(t, err)
	assert.Len(t, c.Images, 1000)
}

func BenchmarkLoadAThousandImages(b *testing.B) {
	text := thousand()
	b.ReportAllocs()
	for b.Loop() {
		_, err := catalogue.Parse("catalogue.yaml", dir, text)
		require.NoError(b, err)
	}
}
