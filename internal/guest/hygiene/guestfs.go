package hygiene

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// walkGuestfs adds all files to the tree, which libguestfs finds and mounts
// as the guest would and sends as one tar archive.
func (d *rawDisk) walkGuestfs(ctx context.Context, t *tree) error {
	// The disk is opened with an overlay, which takes what a journal holds.
	c := t.fish(d.dir, "--ro", "--format=raw", "--add", d.path(), "--inspector", "tar-out", "/", "-", "numericowner:true")
	d.p.Activity("reading the files with libguestfs")
	err := stream(ctx, c, host.RunAppliance, func(out *bufio.Reader) error { return d.untar(out, t) })
	if _, explained := failure.In(err); err != nil && !explained {
		err = failure.Wrap(err, "libguestfs cannot read the disk", "it needs one Linux system whose /etc/fstab names its file systems")
	}
	if err != nil {
		return err
	}
	at := mounts(t.kept["/etc/fstab"], t.volumes)
	for i := range t.volumes {
		v := &t.volumes[i]
		if v.kind != "" {
			v.mount = v.String()
		}
		// A disk without partitions has but one; members are a part of something else (LVM2_member).
		_, mounted := at[v.partition]
		v.unmounted = !mounted && v.partition > 0 && !v.passive() && !strings.HasSuffix(v.kind, "_member")
	}
	return nil
}

// fish is a run of guestfish.
func (t *tree) fish(dir string, args ...string) host.Cmd {
	c := command(dir, cmp.Or(t.guestfish, "guestfish"), args...)
	c.Env = append(c.Env, t.LibguestfsEnv...)
	return c
}

// untar adds every member of the archive. None is unpacked.
func (d *rawDisk) untar(archive io.Reader, t *tree) error {
	members := tar.NewReader(archive)
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Size > d.limit-t.bytes {
			return damaged("the file system", "its files are longer than it can hold")
		}
		e := entry{path: path.Clean("/" + h.Name), mode: uint32(h.Mode)&0o7777 | tarTypes[h.Typeflag], size: h.Size}
		if err := d.count(e.path); err != nil {
			return err
		}
		switch {
		case h.Typeflag == tar.TypeLink:
			err = t.link(e, path.Clean("/"+h.Linkname))
		case e.regular() && h.Size > 0:
			err = t.add(e, members)
		default:
			err = t.add(e, nil)
		}
		if err != nil {
			return err
		}
	}
}

// tarTypes are the types in an entry's mode; no rule is about others.
var tarTypes = map[byte]uint32{
	tar.TypeReg: typeRegular, tar.TypeLink: typeRegular, tar.TypeGNUSparse: typeRegular, tar.TypeDir: typeDir, tar.TypeSymlink: typeSymlink,
}
