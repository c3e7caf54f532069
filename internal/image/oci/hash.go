package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	blockSize   = 1 << 20 // bytes read, hashed and written at once
	blocksAhead = 4       // that a digest may lag behind
)

// digester computes a sha256 beside its writer, on another core, with a fixed
// amount of memory.
type digester struct {
	hash   hash.Hash
	size   int64
	full   chan []byte
	empty  chan []byte
	done   chan struct{}
	closed bool
}

// newDigester starts a digester. The caller must call sum or stop.
func newDigester() *digester {
	d := &digester{
		hash:  sha256.New(),
		full:  make(chan []byte, blocksAhead),
		empty: make(chan []byte, blocksAhead),
		done:  make(chan struct{}),
	}
	for range blocksAhead {
		d.empty <- make([]byte, 0, blockSize)
	}
	go func() {
		defer close(d.done)
		for block := range d.full {
			d.hash.Write(block)
			d.empty <- block[:0]
		}
	}()
	return d
}

// Write takes a copy of b; it never fails.
func (d *digester) Write(b []byte) (int, error) {
	n := len(b)
	d.size += int64(n)
	for len(b) > 0 {
		part := b[:min(len(b), blockSize)]
		d.full <- append(<-d.empty, part...)
		b = b[len(part):]
	}
	return n, nil
}

// stop ends the digester; more than one call is harmless.
func (d *digester) stop() {
	if !d.closed {
		d.closed = true
		close(d.full)
	}
	<-d.done
}

// sum returns the digest of everything written.
func (d *digester) sum() v1.Hash {
	d.stop()
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(d.hash.Sum(nil))}
}
