package oci

import (
	"context"
	"os"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// source is an opened disk that may become a containerdisk.
type source struct {
	*os.File
	info        os.FileInfo
	name        string // of the file in the image: disk.qcow2 or disk.img
	virtualSize int64  // bytes that the guest sees
	compressed  bool   // the data is compressed inside the disk already
}

// openDisk opens a qcow2 or raw disk and refuses every one that KubeVirt or
// CDI would refuse, or that needs another file to be read.
func openDisk(ctx context.Context, path string, p progress.Reporter) (*source, error) {
	p.Activity("checking the disk")
	about, err := disk.Inspect(ctx, path)
	if err != nil {
		return nil, err
	}
	if about.Format == disk.FormatRaw && about.FileSize != about.VirtualSize {
		return nil, failure.New(path+" ends within a sector", "give the whole disk image")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.Wrap(err, "cannot open the disk", "")
	}
	s := &source{File: f, name: "disk." + about.Format, virtualSize: about.VirtualSize, compressed: about.Compressed()}
	if about.Format == disk.FormatRaw {
		s.name = "disk.img" // the name that KubeVirt documents for raw disks
	}
	if s.info, err = f.Stat(); err != nil {
		f.Close()
		return nil, failure.Wrap(err, "cannot read the disk", "")
	}
	return s, nil
}
