package accel

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
)

// cache keeps one verdict with the key it holds for. An empty dir or key
// keeps nothing.
type cache struct{ dir, key string }

type cacheEntry struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

func (c cache) file() string { return filepath.Join(c.dir, "accelerator.json") }

func (c cache) load() (Verdict, bool) {
	if c.dir == "" || c.key == "" {
		return Verdict{}, false
	}
	b, err := os.ReadFile(c.file())
	if err != nil {
		return Verdict{}, false
	}
	var e cacheEntry
	if json.Unmarshal(b, &e) != nil || e.Key != c.key || (e.Verdict.Accelerator != KVM && e.Verdict.Accelerator != TCG) {
		return Verdict{}, false
	}
	e.Verdict.Cached = true
	return e.Verdict, true
}

func (c cache) save(v Verdict) error {
	if c.dir == "" || c.key == "" {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(cacheEntry{Key: c.key, Verdict: v})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, ".accelerator-*")
	if err != nil {
		return err
	}
	_, errWrite := f.Write(b)
	err = errors.Join(errWrite, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.file())
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
