package catalogue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

const text = `{"images": [
 {"name": "base", "action": "build", "inputs": "sha256:b", "reference": "r:5000/labs/base:1"},
 {"name": "one", "from": "base", "action": "build", "reference": "r:5000/labs/one:1"},
 {"name": "two", "from": "base", "action": "build", "reference": "r:5000/labs/two:1"},
 {"name": "three", "from": "one", "action": "build", "reference": "r:5000/labs/three:1"},
 {"name": "other", "action": "skip", "why": "unchanged", "found": "sha256:o", "reference": "r:5000/labs/other:1"}]}`

func parsed(t *testing.T) []Image {
	t.Helper()
	images, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// run builds all images with build and returns the order in which they began.
func run(t *testing.T, jobs int, build func(i Image, parent string) (string, error)) ([]string, *Graph[string]) {
	t.Helper()
	images := parsed(t)
	g := NewGraph[string](images, jobs)
	var mu sync.Mutex
	var order []string
	var all sync.WaitGroup
	for _, i := range images {
		all.Go(func() {
			g.Run(context.Background(), i, func(parent string) (string, error) {
				mu.Lock()
				order = append(order, i.Name)
				mu.Unlock()
				return build(i, parent)
			})
		})
	}
	all.Wait()
	return order, g
}

func TestParentsAreMadeBeforeChildrenWhichGetTheirs(t *testing.T) {
	order, g := run(t, 2, func(i Image, parent string) (string, error) {
		if parent != i.From {
			t.Errorf("%s got what came of %q", i.Name, parent)
		}
		return i.Name, nil
	})
	for _, i := range parsed(t) {
		if i.From != "" && slices.Index(order, i.Name) < slices.Index(order, i.From) {
			t.Errorf("%s was made before %s", i.Name, i.From)
		}
		if came, err := g.Result(i.Name); came != i.Name || err != nil {
			t.Error(i.Name, came, err)
		}
	}
}

func TestAnImageThatFailsStopsItsDescendantsAndNoOther(t *testing.T) {
	failed := errors.New("a task failed")
	order, g := run(t, 1, func(i Image, _ string) (string, error) {
		if i.Name == "one" {
			return "", failed
		}
		return i.Name, nil
	})
	if slices.Contains(order, "three") || !slices.Contains(order, "two") || !slices.Contains(order, "other") {
		t.Error(order)
	}
	if _, err := g.Result("one"); !errors.Is(err, failed) {
		t.Error(err)
	}
	if _, err := g.Result("three"); !errors.Is(err, errBlocked) {
		t.Error(err)
	}
}

func TestNoMoreImagesRunThanJobs(t *testing.T) {
	var now, most atomic.Int32
	run(t, 2, func(Image, string) (string, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		return "", nil
	})
	if most.Load() > 2 {
		t.Error(most.Load())
	}
}

func TestAPlanOutOfOrderOrWithoutARegistryIsRefused(t *testing.T) {
	for _, bad := range []string{`{`, `{"images": [{"name": "a", "from": "b"}, {"name": "b"}]}`, `{"images": [{"name": "a"}, {"name": "a"}]}`, `{"images": [{}]}`, `{"images": [{"name": "a", "action": "build"}]}`} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Error(bad)
		}
	}
}

func TestAChildsBaseIsItsParentsLayoutOrTheRegistrysImage(t *testing.T) {
	images := parsed(t)
	if args := Base(images[0], Image{}, "", false, "/p"); args != nil {
		t.Error(args)
	}
	built := Base(images[1], images[0], "r:5000/labs/base:1@sha256:d", true, "/p")
	if !slices.Equal(built, []string{"--iso-url=oci:/p@sha256:d", "--iso-checksum=inputs:sha256:b"}) {
		t.Error(built)
	}
	there := Base(images[1], images[0], "r:5000/labs/base@sha256:d", false, "/p")
	if !slices.Equal(there, []string{"--iso-url=oci://r:5000/labs/base@sha256:d", "--iso-checksum=inputs:sha256:b"}) {
		t.Error(there)
	}
	if known := images[4].Known(); known != "r:5000/labs/other@sha256:o" {
		t.Error(known)
	}
}
