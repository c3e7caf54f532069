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

// UserData is the part of cloud-init's user-data that seeds use.
type UserData struct {
	Users            []User     `yaml:"users"`
	HostKeys         *HostKeys  `yaml:"ssh_keys,omitempty"`
	PreserveHostname bool       `yaml:"preserve_hostname,omitempty"`
	ManageEtcHosts   string     `yaml:"manage_etc_hosts,omitempty"`
	BootCommands     [][]string `yaml:"bootcmd,omitempty"`
	CrownLabs        *crownLabs `yaml:",inline,omitempty"`
}

// User is an account that cloud-init makes. It may sudo without a password.
type User struct {
	Name              string   `yaml:"name"`
	Shell             string   `yaml:"shell"`
	Sudo              string   `yaml:"sudo"`
	LockPasswd        bool     `yaml:"lock_passwd"`
	Passwd            string   `yaml:"passwd,omitempty"`
	SSHAuthorizedKeys []string `yaml:"ssh_authorized_keys"`
	UID               int      `yaml:"uid,omitempty"`
	NoUserGroup       bool     `yaml:"no_user_group,omitempty"`
	PrimaryGroup      string   `yaml:"primary_group,omitempty"`
}

// NewUser is a user who logs in with a key alone.
func NewUser(name, authorizedKey string) User {
	return User{Name: name, Shell: "/bin/bash", Sudo: "ALL=(ALL) NOPASSWD:ALL", LockPasswd: true, SSHAuthorizedKeys: []string{authorizedKey}}
}

// HostKeys are the guest's own, made by us: then ssh knows whom it talks to.
type HostKeys struct {
	Private string `yaml:"ed25519_private"`
	Public  string `yaml:"ed25519_public"`
}

// HostKeys are the key as a seed brings it.
func (k Key) HostKeys() *HostKeys { return &HostKeys{string(k.Private), k.Authorized()} }

// Encode is the file that cloud-init reads.
func (u UserData) Encode() ([]byte, error) {
	b, err := yaml.Marshal(u)
	return append([]byte("#cloud-config\n"), b...), err
}

type metaData struct {
	InstanceID    string `yaml:"instance-id"`
	LocalHostname string `yaml:"local-hostname"`
}

// crownLabs is what CrownLabs' seeds have beside an ordinary one
// (operators/pkg/forge/cloudinit.go there): a network configuration where
// cloud-init does not look for one, and a list of mounts that is empty for who
// has none. cloud-init's schema warns about both, see verify.
type crownLabs struct {
	Network struct {
		Version int `yaml:"version"`
		ID0     struct {
			DHCP4 bool `yaml:"dhcp4"`
		} `yaml:"id0"`
	} `yaml:"network"`
	Mounts            [][]string `yaml:"mounts"`
	SSHAuthorizedKeys []string   `yaml:"ssh_authorized_keys"` // for the image's default user, whom nobody makes
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

// userData is the seed's user-data.
func (o Options) userData(k keys) UserData {
	seed := UserData{Users: []User{NewUser(o.User, k.user.Authorized())}}
	if o.CrownLabs {
		seed.Users[0].LockPasswd, seed.Users[0].Passwd = false, unknownPassword
		seed.CrownLabs = &crownLabs{Mounts: [][]string{}, SSHAuthorizedKeys: seed.Users[0].SSHAuthorizedKeys}
		seed.CrownLabs.Network.Version, seed.CrownLabs.Network.ID0.DHCP4 = 2, true
	}
	if !o.OwnHostKeys {
		seed.HostKeys = k.host.HostKeys()
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
	meta, err := yaml.Marshal(metaData{InstanceID: ssh.FingerprintSHA256(k.host.PublicKey()), LocalHostname: o.Hostname})
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
