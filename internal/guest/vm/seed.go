package vm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// keys are made for one boot: the user's to log in with, the host's so that
// we know whom we talk to.
type keys struct {
	userPrivate []byte // OpenSSH's format
	user        ssh.Signer
	hostPrivate []byte
	host        ssh.PublicKey
}

func newKeys() (keys, error) {
	userPrivate, user, err := newKey("diskforge-boot")
	if err != nil {
		return keys{}, err
	}
	hostPrivate, host, err := newKey("diskforge-boot-host")
	if err != nil {
		return keys{}, err
	}
	return keys{userPrivate, user, hostPrivate, host.PublicKey()}, nil
}

func newKey(comment string) (private []byte, signer ssh.Signer, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making an ssh key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return nil, nil, fmt.Errorf("making an ssh key: %w", err)
	}
	signer, err = ssh.NewSignerFromKey(key)
	return pem.EncodeToMemory(block), signer, err
}

func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// userData is the part of cloud-init's user-data that a seed uses.
type userData struct {
	Users     []user     `yaml:"users"`
	SSHKeys   *sshKeys   `yaml:"ssh_keys,omitempty"`
	CrownLabs *crownlabs `yaml:",inline,omitempty"`
}

type user struct {
	Name              string   `yaml:"name"`
	Shell             string   `yaml:"shell"`
	Sudo              string   `yaml:"sudo"`
	LockPasswd        bool     `yaml:"lock_passwd"`
	Passwd            string   `yaml:"passwd,omitempty"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys"`
}

type sshKeys struct {
	Private string `yaml:"ed25519_private"`
	Public  string `yaml:"ed25519_public"`
}

type metaData struct {
	InstanceID    string `yaml:"instance-id"`
	LocalHostname string `yaml:"local-hostname"`
}

// crownlabs is what CrownLabs' seeds have beside an ordinary one
// (operators/pkg/forge/cloudinit.go there): a network configuration where
// cloud-init does not look for one, and a list of mounts that is empty for who
// has none. cloud-init's schema warns about both, see verify.
type crownlabs struct {
	Network           network    `yaml:"network"`
	Mounts            [][]string `yaml:"mounts"`
	SSHAuthorizedKeys []string   `yaml:"ssh_authorized_keys"` // for the image's default user, whom nobody makes
}

type network struct {
	Version int `yaml:"version"`
	ID0     struct {
		DHCP4 bool `yaml:"dhcp4"`
	} `yaml:"id0"`
}

// unknownPassword is the SHA-512 hash of a password that was thrown away:
// CrownLabs' seed has one for its user.
const unknownPassword = "$6$rounds=4096$AonQOT6sfM3ofBuM$yO6DN6SLxuqpimTQWZqDERqRNw9LG60e1Qni4hTla35eJhlS4jrjxIJ2J113hs3xocKGjI87Q53RCjVXyT1cn0"

// userData is the seed's user-data.
func (o Options) userData(k keys) userData {
	key := authorized(k.user.PublicKey())
	seed := userData{Users: []user{{
		Name: o.User, Shell: "/bin/bash", Sudo: "ALL=(ALL) NOPASSWD:ALL", LockPasswd: true, SSHAuthorizedKeys: []string{key},
	}}}
	if o.CrownLabs {
		seed.Users[0].LockPasswd, seed.Users[0].Passwd = false, unknownPassword
		seed.CrownLabs = &crownlabs{Network: network{Version: 2}, Mounts: [][]string{}, SSHAuthorizedKeys: []string{key}}
		seed.CrownLabs.Network.ID0.DHCP4 = true
	}
	if !o.OwnHostKeys {
		seed.SSHKeys = &sshKeys{Private: string(k.hostPrivate), Public: authorized(k.host)}
	}
	return seed
}

// writeSeed writes the NoCloud seed: an ISO file system labelled cidata with
// user-data and meta-data. The instance's id is the fingerprint of a key that
// was made for it, new with each boot as each virtual machine's is.
func writeSeed(ctx context.Context, o Options, k keys) error {
	user, err := yaml.Marshal(o.userData(k))
	if err != nil {
		return err
	}
	meta, err := yaml.Marshal(metaData{InstanceID: ssh.FingerprintSHA256(k.host), LocalHostname: o.Hostname})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.Dir, ".seed-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, content := range map[string][]byte{"user-data": append([]byte("#cloud-config\n"), user...), "meta-data": meta} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return makeISO(ctx, dir, filepath.Join(o.Dir, seedFile))
}

// makeISO writes the same image from the same files: with SOURCE_DATE_EPOCH,
// xorriso takes all dates from it and from the files' own.
func makeISO(ctx context.Context, dir, iso string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, name := range append(names, dir) {
		if err := os.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			return err
		}
	}
	err = host.Run(ctx, host.Cmd{
		Program: "xorriso",
		Args:    []string{"-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", iso, dir},
		Env:     host.Env("SOURCE_DATE_EPOCH=0"),
		Stdout:  &bytes.Buffer{},
	})
	if err != nil && ctx.Err() == nil {
		return failure.Wrap(err, "the cloud-init seed cannot be written", "apt-get install xorriso")
	}
	if err != nil {
		return err
	}
	// The seed holds the guest's host key.
	return os.Chmod(iso, 0o600)
}
