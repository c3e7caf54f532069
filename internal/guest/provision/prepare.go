package provision

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/packer"
)

// keyComment ends the build's public key; clean.sh deletes keys by it.
const keyComment = "diskforge-build"

// buildUID is the build user's: below 1000, so that the first login user of
// the VM gets 1000, and between the ranges from which distributions hand out
// system users (from 100 upwards and from 999 downwards).
const buildUID = 555

// path is that of a short-lived file of this run.
func (b *build) path(elem ...string) string {
	return filepath.Join(append([]string{b.run}, elem...)...)
}

// prepare writes everything that Packer reads.
func (b *build) prepare() error {
	for _, step := range []func() error{b.clear, b.template, b.seed, b.variables} {
		if err := step(); err != nil {
			return fmt.Errorf("preparing the build: %w", err)
		}
	}
	return nil
}

// clear removes what a former run left, makes the directories and the logs of
// this one, and gives plain names to files that may have any: the base, whose
// name also says its format to Packer, and the console's log.
func (b *build) clear() error {
	for _, old := range []string{b.out, b.log("packer.log"), b.log("packer-debug.log"), b.log("console.log"), b.log("ansible.log")} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "cache", "config", "control", "seed"} {
		if err := os.Mkdir(b.path(dir), 0o700); err != nil {
			return err
		}
	}
	console, err := newLog(b.log("console.log"))
	if err != nil {
		return err
	}
	return errors.Join(
		console.Close(),
		os.Symlink(b.log("console.log"), b.path("console.log")),
		os.Symlink(b.opts.Base, b.path("base."+b.opts.BaseFormat)),
		b.events.open(b.log("packer.log"), b.log("ansible.log")),
	)
}

func newLog(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// Template is what Packer builds by.
var Template = packer.Template

// template copies it.
func (b *build) template() error {
	return fs.WalkDir(Template, ".", func(name string, entry fs.DirEntry, err error) error {
		to := b.path("packer", filepath.FromSlash(name))
		if err != nil || entry.IsDir() {
			return errors.Join(err, os.MkdirAll(to, 0o700))
		}
		content, err := Template.ReadFile(name)
		return errors.Join(err, os.WriteFile(to, content, 0o600))
	})
}

// seed makes the keys of this build and the NoCloud seed with them.
func (b *build) seed() error {
	key, err := vm.NewKey(keyComment)
	if err != nil {
		return err
	}
	// The guest's own key comes from us: ssh knows whom it talks to, and the
	// guest spends no time on making keys that are deleted at the end.
	hostKey, err := vm.NewKey("build")
	if err != nil {
		return err
	}
	userData, err := b.userData(key, hostKey)
	if err != nil {
		return err
	}
	return b.write(map[string]string{
		"key":            string(key.Private),
		"known_hosts":    vm.KnownHost(hostKey.PublicKey()),
		"seed/user-data": string(userData),
		"seed/meta-data": "instance-id: build-" + b.id + "\n",
	})
}

func (b *build) write(files map[string]string) error {
	for name, content := range files {
		if err := os.WriteFile(b.path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// userData is the seed's cloud-config.
func (b *build) userData(key, hostKey vm.Key) ([]byte, error) {
	user := vm.NewUser(b.opts.user(), key.Authorized()+" "+keyComment)
	if !b.opts.BakeUser {
		// Its own group would take GID 1000.
		user["uid"], user["no_user_group"], user["primary_group"] = buildUID, true, "users"
	}
	// Nothing here may make cloud-init restart sshd (ssh_pwauth would), which
	// by then has let us in.
	config := vm.UserData{
		"users": []any{user}, "ssh_keys": hostKey.HostKeys(),
		"preserve_hostname": true,
		// Every sudo looks the host's name up; the network may take seconds to
		// not know it.
		"manage_etc_hosts": "localhost",
	}
	script, err := b.settingsScript()
	if err != nil {
		return nil, err
	}
	if script != "" {
		config["bootcmd"] = [][]string{{"sh", "-c", script}}
	}
	return config.Encode()
}

// settingsScript installs what the guest needs during the build alone; clean.sh
// removes it. It is empty where nothing is needed.
func (b *build) settingsScript() (string, error) {
	var script strings.Builder
	install := func(content, redirect string) {
		fmt.Fprintf(&script, "echo %s | base64 -d %s\n", base64.StdEncoding.EncodeToString([]byte(content)), redirect)
	}
	if env := b.proxyEnvironment(); env != "" {
		install(env, ">>/etc/environment")
	}
	if apt := b.aptProxies(); apt != "" {
		install(apt, ">/etc/apt/apt.conf.d/00diskforge-build")
	}
	if b.opts.CAFile != "" {
		pem, err := os.ReadFile(b.opts.CAFile)
		if err != nil {
			return "", failure.Wrap(err, "reading CA_FILE", "name a file with certificates in PEM form")
		}
		install(string(pem), ">/usr/local/share/ca-certificates/diskforge-build.crt")
		script.WriteString("update-ca-certificates\n")
	}
	return script.String(), nil
}

// proxyEnvironment is the part of /etc/environment for the build.
func (b *build) proxyEnvironment() string {
	var lines strings.Builder
	for _, v := range [][2]string{{"http_proxy", b.opts.HTTPProxy}, {"https_proxy", b.opts.HTTPSProxy}, {"no_proxy", b.opts.NoProxy}} {
		if v[1] != "" {
			fmt.Fprintf(&lines, "%s=%s\n%s=%s\n", v[0], v[1], strings.ToUpper(v[0]), v[1])
		}
	}
	if lines.Len() == 0 {
		return ""
	}
	return "# diskforge build begin\n" + lines.String() + "# diskforge build end\n"
}

func (b *build) aptProxies() (conf string) {
	for _, v := range [][2]string{{"http", b.opts.HTTPProxy}, {"https", b.opts.HTTPSProxy}} {
		if v[1] != "" {
			conf += fmt.Sprintf("Acquire::%s::Proxy %q;\n", v[0], v[1])
		}
	}
	return conf
}

// variables writes the template's variables and Ansible's extra variables.
func (b *build) variables() error {
	if err := playbook.WriteExtraVars(b.path("extra-vars.json"), b.opts.Variables()); err != nil {
		return err
	}
	hold := b.path("hold")
	if b.opts.KeepOnError {
		if err := os.WriteFile(hold, nil, 0o600); err != nil {
			return err
		}
	}
	a, firmware := arch.Of(b.opts.Accel.Architecture), arch.Firmware{}
	if !a.BIOS {
		var err error
		if firmware, err = vm.Firmware(a, false); err != nil {
			return err
		}
	}
	vars, err := json.MarshalIndent(map[string]any{
		"base":                 b.path("base." + b.opts.BaseFormat),
		"base_format":          b.opts.BaseFormat,
		"use_backing_file":     b.opts.BackingFile,
		"output_directory":     filepath.Base(b.out), // relative: the folder's name may be any
		"disk_size":            b.opts.DiskSize,
		"memory":               b.opts.MemoryMiB,
		"cpus":                 b.opts.Accel.CPUs(b.opts.CPUs),
		"accelerator":          b.opts.Accel.Accelerator,
		"tcg_thread":           b.opts.Accel.Threads(),
		"qemu_binary":          a.QEMU,
		"machine_type":         a.BuildMachine,
		"cpu_model":            a.CPU,
		"firmware_code":        firmware.Code,
		"firmware_vars":        firmware.Vars,
		"seed_files":           []string{b.path("seed", "user-data"), b.path("seed", "meta-data")},
		"console_log":          b.path("console.log"),
		"ssh_username":         b.opts.user(),
		"ssh_private_key_file": b.path("key"),
		"ssh_timeout":          b.opts.SSHTimeout.String(),
		"bake_user":            b.opts.BakeUser,
		"playbook_file":        filepath.Join(b.opts.Playbook.Root, filepath.FromSlash(b.opts.Playbook.File)),
		"extra_vars_file":      b.path("extra-vars.json"),
		"hold_file":            hold,
	}, "", "  ")
	if err != nil {
		return err
	}
	return b.write(map[string]string{"vars.pkrvars.json": string(vars)})
}

// Variables are what the playbook is given: those that CrownLabs' playbooks know, and the user's. The first
// two are text, as Packer's key=value gave them: playbooks compare them with it.
func (o Options) Variables() map[string]any {
	vars := map[string]any{
		"crownlabs_mode":              "true",
		"install_desktop_environment": strconv.FormatBool(o.Desktop),
		"vm_user":                     o.VMUser,
	}
	if o.AptMirror != "" {
		vars["apt_mirror"] = o.AptMirror
	}
	maps.Copy(vars, o.ExtraVars)
	return vars
}

// environment is Packer's, and through it Ansible's. All that they write
// besides their results stays in this run's directory.
func (b *build) environment(debugLog string) []string {
	env := b.opts.Playbook.Env()
	env = append(env,
		marker+b.id,
		"CHECKPOINT_DISABLE=1",
		"TMPDIR="+b.path("tmp"),
		"PACKER_CONFIG_DIR="+b.path("config"),
		"PACKER_CACHE_DIR="+b.path("cache"),
		"PACKER_PLUGIN_PATH="+b.opts.Tools.PluginDir,
		// Always on, because only there is what QEMU says when it fails.
		"PACKER_LOG=1",
		"PACKER_LOG_PATH="+debugLog,
		"ANSIBLE_PIPELINING=1",
		"ANSIBLE_DEPRECATION_WARNINGS=1", // in the log, and see events.brokenCondition
		"ANSIBLE_SSH_TRANSFER_METHOD=piped",
		"ANSIBLE_SSH_RETRIES=5", // the base's own cloud-init settings may restart sshd
		"ANSIBLE_TIMEOUT=120",   // a guest on a busy host answers sudo late
		// Asking the guest which Python it has would cost two more commands.
		"ANSIBLE_PYTHON_INTERPRETER=/usr/bin/python3",
		"ANSIBLE_SSH_CONTROL_PATH_DIR="+b.path("control"),
		// A guest that reboots may leave its connection without a word, and QEMU
		// keeps our end of it: after two minutes without an answer it is given up.
		"ANSIBLE_SSH_ARGS="+strings.Join(append(vm.SSHOptions(b.path("known_hosts")),
			"-o", "ControlMaster=auto", "-o", "ControlPersist=10m", "-o", "Compression=no",
			"-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8"), " "),
	)
	return host.Env(env...)
}
