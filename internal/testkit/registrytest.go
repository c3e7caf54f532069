// Package testkit is what tests of several packages need: a registry, a small
// file system, the peak of this process's memory.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// RegistryOptions are what differs from a registry in plain HTTP that everybody may
// write to and that deletes nothing.
type RegistryOptions struct {
	Htpasswd  string // its file, or empty
	Cert, Key string // files of its TLS certificate, or empty
	Address   string // where it listens, or empty: a free port of loopback
	Deletes   bool
}

// StartRegistry starts a registry, waits until it listens, and returns its address and
// the folder of its storage. It ends with the test.
func StartRegistry(t testing.TB, o RegistryOptions) (address, data string) {
	dir := t.TempDir()
	if address, data = o.Address, filepath.Join(dir, "data"); address == "" {
		address = FreeAddress(t)
	}
	text := fmt.Sprintf(`version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %s}, maintenance: {uploadpurging: {enabled: false}}, delete: {enabled: %t}}
http: {addr: %q`, data, o.Deletes, address)
	if o.Cert != "" {
		text += fmt.Sprintf(", tls: {certificate: %s, key: %s}", o.Cert, o.Key)
	}
	text += "}\n"
	if o.Htpasswd != "" {
		text += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", o.Htpasswd)
	}
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	p, err := host.Start(context.WithoutCancel(t.Context()), host.Cmd{Program: "docker-registry", Args: []string{"serve", config}})
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	return address, data
}

// FreeAddress returns an address on loopback at which nobody listens, nor will
// somebody to whom the kernel gives a port: those lie above.
func FreeAddress(t testing.TB) string {
	for {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(20000)))
		if !errors.Is(err, syscall.EADDRINUSE) {
			require.NoError(t, err)
			defer l.Close()
			return l.Addr().String()
		}
	}
}
