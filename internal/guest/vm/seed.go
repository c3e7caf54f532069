package vm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// Key is an ssh key that is made for one machine.
type Key struct {
	ssh.Signer
	Private []byte // in OpenSSH's format
}

// NewKey makes an ed25519 key.
func NewKey(comment string) (Key, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Key{}, fmt.Errorf("making an ssh key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return Key{}, fmt.Errorf("making an ssh key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	return Key{signer, pem.EncodeToMemory(block)}, err
}

// Authorized is the public half as a line of authorized_keys.
func (k Key) Authorized() string { return authorized(k.PublicKey()) }

func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// UserData is cloud-init's user-data.
type UserData map[string]any

// NewUser is an account that cloud-init makes, of somebody who logs in with a key alone
// and may sudo without a password.
func NewUser(name, authorizedKey string) map[string]any {
	return map[string]any{
		"name": name, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": true,
		"ssh_authorized_keys": []string{authorizedKey},
	}
}

// HostKeys are the key as a seed brings it: made by us, so that ssh knows whom it talks to.
func (k Key) HostKeys() map[string]string {
	return map[string]string{"ed25519_private": string(k.Private), "ed25519_public": k.Authorized()}
}

// Encode is the file that cloud-init reads.
func (u UserData) Encode() ([]byte, error) {
	b, err := yaml.Marshal(u)
	return append([]byte("#cloud-config\n"), b...), err
}

// unknownPassword is the SHA-512 hash of a password that was thrown away:
// CrownLabs' seed has one for its user.
const unknownPassword = "$6$rounds=4096$AonQOT6sfM3ofBuM$yO6DN6SLxuqpimTQWZqDERqRNw9LG60e1Qni4hTla35eJhlS4jrjxIJ2J113hs3xocKGjI87Q53RCjVXyT1cn0"

// keys are made for one boot: the user's to log in with, the host's so that
// we know whom we talk to.
type keys struct{ user, host Key }

func newKeys() (keys, error) {
	user, errUser := NewKey("diskforge-boot")
	hostKey, errHost := NewKey("diskforge-boot-host")
	return keys{user, hostKey}, errors.Join(errUser, errHost)
}

// userData is the seed's user-data. CrownLabs' seeds (operators/pkg/forge/cloudinit.go
// there) have beside an ordinary one a network configuration where cloud-init does not
// look for one, a list of mounts that is empty for who has none, and keys for the image's
// default user, whom nobody makes. cloud-init's schema warns about the first two, see verify.
func (o Options) userData(k keys) UserData {
	user := NewUser(o.User, k.user.Authorized())
	seed := UserData{"users": []any{user}}
	if o.CrownLabs {
		user["lock_passwd"], user["passwd"] = false, unknownPassword
		seed["network"] = map[string]any{"version": 2, "id0": map[string]bool{"dhcp4": true}}
		seed["mounts"], seed["ssh_authorized_keys"] = []string{}, user["ssh_authorized_keys"]
	}
	if !o.OwnHostKeys {
		seed["ssh_keys"] = k.host.HostKeys()
	}
	return seed
}

// writeSeed writes the NoCloud seed: an ISO file system labelled cidata with
// user-data and meta-data. The instance's id is the fingerprint of a key that
// was made for it, new with each boot as each virtual machine's is. The same
// files make the same image: with SOURCE_DATE_EPOCH, xorriso takes all dates
// from it and from the files' own.
func writeSeed(ctx context.Context, o Options, k keys) error {
	user, err := o.userData(k).Encode()
	if err != nil {
		return err
	}
	meta, err := yaml.Marshal(map[string]string{"instance-id": ssh.FingerprintSHA256(k.host.PublicKey()), "local-hostname": o.Hostname})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.Dir, ".seed-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files := []string{filepath.Join(dir, "user-data"), filepath.Join(dir, "meta-data"), dir}
	err = errors.Join(os.WriteFile(files[0], user, 0o600), os.WriteFile(files[1], meta, 0o600))
	for _, file := range files {
		err = errors.Join(err, os.Chtimes(file, time.Unix(0, 0), time.Unix(0, 0)))
	}
	if err != nil {
		return fmt.Errorf("writing the cloud-init seed: %w", err)
	}
	iso := filepath.Join(o.Dir, seedFile)
	err = host.Run(ctx, host.Cmd{
		Program: "xorriso",
		Args:    []string{"-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", iso, dir},
		Env:     host.Env("SOURCE_DATE_EPOCH=0"),
		Stdout:  &bytes.Buffer{},
	})
	if err != nil {
		return fmt.Errorf("writing the cloud-init seed: %w", err)
	}
	// The seed holds the guest's host key.
	return os.Chmod(iso, 0o600)
}
