// Package registrytest starts Debian's docker-registry for tests.
package registrytest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/command"
)

// Options are what differs from a registry in plain HTTP that everybody may
// write to and that deletes nothing.
type Options struct {
	Htpasswd  string // its file, or empty
	Cert, Key string // files of its TLS certificate, or empty
	Deletes   bool
}

// Start starts a registry on a free port of loopback, waits until it listens,
// and returns its address and the folder of its storage. It ends with the test.
func Start(t testing.TB, o Options) (host, data string) {
	dir := t.TempDir()
	host, data = FreeAddress(t), filepath.Join(dir, "data")
	text := fmt.Sprintf(`version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %s}, maintenance: {uploadpurging: {enabled: false}}, delete: {enabled: %t}}
http: {addr: %q`, data, o.Deletes, host)
	if o.Cert != "" {
		text += fmt.Sprintf(", tls: {certificate: %s, key: %s}", o.Cert, o.Key)
	}
	text += "}\n"
	if o.Htpasswd != "" {
		text += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", o.Htpasswd)
	}
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	p, err := command.Start(context.WithoutCancel(t.Context()), command.Cmd{Program: "docker-registry", Args: []string{"serve", config}})
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", host)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	return host, data
}

// FreeAddress returns an address on loopback at which nobody listens.
func FreeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}
