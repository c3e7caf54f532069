package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
	"github.com/netgroup-polito/diskforge/internal/image/sbom"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Sidecar is what the stages hand on about a disk where there is no
// work directory: `provision -o DISK` and the other stages on their own. It
// lies beside the disk as DISK.json and belongs to one digest.
type Sidecar struct {
	Digest       string    `json:"digest"`  // "sha256:…" of the disk it was written for
	Trimmed      bool      `json:"trimmed"` // the guest trimmed its filesystems
	BaseName     string    `json:"baseName,omitempty"`
	BaseDigest   string    `json:"baseDigest,omitempty"`
	Source       string    `json:"source,omitempty"`   // where the playbooks came from
	Revision     string    `json:"revision,omitempty"` // their commit or content's hash
	Created      time.Time `json:"created,omitzero"`
	Architecture string    `json:"architecture,omitempty"`
	Title        string    `json:"title,omitempty"`
	Version      string    `json:"version,omitempty"`
	Inputs       string    `json:"inputs,omitempty"` // digest of all that it was made from
	Built        time.Time `json:"built,omitzero"`   // when the playbook had run
	Guest        string    `json:"guest,omitempty"`  // its distribution: debian, ubuntu
	// Settings are those that a refresh of the image needs.
	Settings map[string]string `json:"settings,omitempty"`
	Original oci.Original      `json:"original,omitzero"`  // of a refresh
	Verified string            `json:"verified,omitempty"` // digest of the disk that was booted

	// Inventory is what is installed, where the disk was looked into at rest.
	Inventory *sbom.Inventory `json:"inventory,omitempty"`

	Report json.RawMessage `json:"report,omitempty"` // of the stages so far
}

// IsVerified says whether exactly this disk was booted with success.
func (s Sidecar) IsVerified() bool { return s.Verified != "" && s.Verified == s.Digest }

func sidecarFile(disk string) string { return disk + ".json" }

// ReadSidecar hashes the disk and returns what is known about it. Digest is
// that of the disk in any case. A sidecar that is missing, unreadable or of
// another digest counts for nothing; the two latter are warned of.
func ReadSidecar(ctx context.Context, disk string, warn func(string)) (Sidecar, error) {
	digest, err := host.DigestFile(ctx, disk, progress.Discard)
	if err != nil {
		return Sidecar{}, err
	}
	var s Sidecar
	err = host.ReadJSON(sidecarFile(disk), &s)
	if err == nil && !host.ValidDigest(s.Digest) {
		err = fmt.Errorf("its digest %q is none", s.Digest)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		warn(fmt.Sprintf("%s is ignored: %v", sidecarFile(disk), err))
	case s.Digest != digest:
		warn(fmt.Sprintf("%s is ignored: it belongs to the disk %s, this one is %s", sidecarFile(disk), s.Digest, digest))
	default:
		return s, nil
	}
	return Sidecar{Digest: digest}, nil
}

// WriteSidecar writes what is known about the disk beside it. Digest must be
// set.
func WriteSidecar(disk string, s Sidecar) error {
	if !host.ValidDigest(s.Digest) {
		return fmt.Errorf("writing %s: its digest %q is none", sidecarFile(disk), s.Digest)
	}
	return host.WriteJSON(sidecarFile(disk), 0o644, s)
}
