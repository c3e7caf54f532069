package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/playbook"
	"github.com/netgroup-polito/diskforge/internal/guest/verify"
	"github.com/netgroup-polito/diskforge/internal/guest/vm"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
	"github.com/netgroup-polito/diskforge/internal/registry"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Port leads from one of the loopback to one of the guest.
type Port struct{ Host, Guest int }

// Desk is where an image is looked at.
type Desk struct {
	Ports []Port
	Say   func(what, how string) error // how to come to what the guest has

	// Keys are the lines of somebody who tries a playbook, Config.Playbook, in the
	// guest (see loop); nil: nobody does.
	Keys io.Reader
	Line func(string) // of what Ansible says
}

// Attend boots an overlay of a containerdisk's disk as KubeVirt does, with the
// network of this host, and says how to come to what it has: ssh, the console, the
// ports and, when it answers, the desktop. It returns when the guest has powered off
// or the context ends, which is no error, and then leaves nothing. The image is a
// disk's file, an OCI layout or a registry's reference.
func (b *Build) Attend(ctx context.Context, image string, d Desk) error {
	ports, say := d.Ports, d.Say
	if err := checkPorts(ports); err != nil {
		return err
	}
	w := b.way(nil)
	if err := CheckCache(b.Config.CacheDir); err != nil {
		return err
	}
	var found disk.Info
	var path string
	err := w.show(ctx, "image", func(ctx context.Context, p progress.Reporter) (string, error) {
		o, err := w.diskOf(ctx, image, p)
		if err != nil {
			return "", err
		}
		path = o.Path
		found, err = w.rooms.disk(ctx, path)
		return path, err
	})
	if err != nil {
		return err
	}
	firmware, err := w.ofDisk(path)
	if err != nil {
		return err
	}
	if err := w.show(ctx, "accelerator", w.accelerator); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "diskforge-run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o := vm.Options{
		Disk: path, Format: found.Format, Dir: dir, MemoryMiB: b.Config.MemoryMiB, CPUs: b.Config.CPUs, Accel: w.accel,
		User: b.Config.VMUser, Timeout: bootTimeout(b.Config, w.accel), UEFI: firmware.UEFI && !firmware.BIOS,
		Forward: []int{verify.DesktopPort}, At: map[int]int{}, Online: true, Reboots: true,
	}
	for _, port := range ports {
		o.At[port.Guest] = port.Host
		if port.Guest != verify.DesktopPort && port.Guest != 22 {
			o.Forward = append(o.Forward, port.Guest)
		}
	}
	if d.Keys != nil {
		if err := w.prepareLoop(ctx, dir); err != nil {
			return err
		}
	}
	var guest *vm.Guest
	err = w.show(ctx, "boot", func(ctx context.Context, p progress.Reporter) (string, error) {
		guest, err = vm.Start(ctx, o, p)
		if f, ok := failure.In(err); ok {
			f.Log = "" // it goes with the folder; its end is shown
		}
		return "", err
	})
	if err != nil {
		return err
	}
	err = errors.Join(say("ssh", guest.SSHCommand()), say("console", "tail -F "+guest.ConsoleLog()))
	for _, port := range ports {
		err = errors.Join(err, say(fmt.Sprintf("port %d", port.Guest), guest.Address(port.Guest)))
	}
	switch {
	case err != nil:
	case d.Keys != nil:
		err = w.loop(ctx, guest, dir, d)
	default:
		err = attend(ctx, guest, say)
	}
	return errors.Join(err, guest.Close())
}

// attend waits for the end of the guest, and says so when its desktop answers.
func attend(ctx context.Context, guest *vm.Guest, say func(what, how string) error) error {
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-guest.Done():
			return say("end", "the guest has powered off")
		case <-look.C:
			if !answers(ctx, guest.Address(verify.DesktopPort)) {
				continue
			}
			look.Stop()
			if err := say("desktop", "http://"+guest.Address(verify.DesktopPort)+"/"); err != nil {
				return err
			}
		}
	}
}

// answers says whether a web server is at an address of the loopback.
func answers(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return false
	}
	answer, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		return false
	}
	return answer.Body.Close() == nil && answer.StatusCode < http.StatusInternalServerError
}

// checkPorts refuses ports that another program has, before anything slow begins.
func checkPorts(ports []Port) error {
	for _, port := range ports {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port.Host))
		if err != nil {
			return failure.Wrap(err, fmt.Sprintf("the port %d of this host is not free", port.Host), "give another one, or end the program that has it")
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// diskOf is the disk of an image, taken into the cache where it is packed.
func (w *way) diskOf(ctx context.Context, name string, p progress.Reporter) (o origin, err error) {
	image := Locate(name)
	if image.Reference == "" {
		switch info, err := os.Stat(image.Layout); {
		case err != nil:
			return o, failure.New("there is no disk and no layout "+image.Layout+" here",
				"give a disk, the folder of an OCI layout, or REGISTRY/REPOSITORY:TAG")
		case !info.IsDir():
			o.Path, err = filepath.Abs(image.Layout)
			return o, err
		}
	}
	taken, title, err := w.takeOut(ctx, image, 0, p)
	o.Path, o.Digest, o.Manifest, o.Name = taken.Path, taken.Digest, taken.Manifest, title
	o.Guest, o.Known = playbook.GuessGuest(append(taken.Hints, title)...)
	return o, err
}

// Inspect says what the containerdisk is at a path, where there is one, else at a
// registry's reference.
func (b *Build) Inspect(ctx context.Context, what string) (r *contract.Report, err error) {
	stage := b.UI.Stage("inspect")
	defer func() { stage.End(r.Read(), err) }()
	at := Locate(what)
	if at.Reference == "" {
		if _, err := os.Stat(at.Layout); errors.Is(err, fs.ErrNotExist) {
			return nil, failure.New("there is no folder or file "+at.Layout+" here, and it names no registry either", "")
		}
		r, err = contract.Layout(ctx, at.Layout, stage)
		if err == nil && at.Digest != "" && r.Digest != at.Digest {
			err = failure.New(fmt.Sprintf("%s has the image %s, not %s", at.Layout, r.Digest, at.Digest), "build it again, or leave the digest out")
		}
		return r, err
	}
	options, err := RegistryOptions(b.Config, b.Version)
	if err != nil {
		return nil, err
	}
	stage.Activity("reading " + at.Reference)
	image, err := registry.Open(ctx, at.Reference, options)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	if r, err = contract.Image(ctx, image.Image, stage); err != nil {
		return nil, err
	}
	r.Attached = image.Attached(ctx)
	err = image.Revoked(ctx, nil)
	if why, revoked := errors.AsType[registry.Revocation](err); revoked {
		r.Checks, err = append(r.Checks, contract.Result{Check: "revocation", Level: contract.Error, Detail: why.Error()}), nil
	}
	return r, err
}

// Locate says where an image is: a path (Layout), of which nobody says what is there,
// or a registry's reference; also in the forms in which builds print it and ISO_URL
// takes it, oci:DIR@DIGEST and oci://REFERENCE. What comes before the first slash must
// look like a registry: clients take a lone name for a folder of Docker Hub.
func Locate(what string) settings.BaseImage {
	if strings.HasPrefix(what, "oci:") {
		return splitImage(what)
	}
	first, _, slash := strings.Cut(what, "/")
	named := slash && strings.Trim(first, ".") != "" && (first == "localhost" || strings.ContainsAny(first, ".:@"))
	if _, err := os.Stat(what); err == nil || !named {
		return settings.BaseImage{Layout: what}
	}
	return splitImage("oci://" + what)
}
