package accel

import (
	"os"
	"path/filepath"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// proof is what a cache directory keeps: a verdict, and what it holds for.
type proof struct {
	Key     string  `json:"key"`
	Verdict Verdict `json:"verdict"`
}

func proofFile(dir string) string { return filepath.Join(dir, "accelerator.json") }

// load returns the verdict that dir keeps for the key.
func load(dir, key string) (Verdict, bool) {
	var p proof
	if host.ReadJSON(proofFile(dir), &p) != nil || p.Key != key || p.Verdict.Accelerator != KVM && p.Verdict.Accelerator != TCG {
		return Verdict{}, false
	}
	p.Verdict.Cached = true
	return p.Verdict, true
}

func save(dir, key string, v Verdict) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return host.WriteJSON(proofFile(dir), 0o600, proof{key, v})
}
