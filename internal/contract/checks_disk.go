package contract

import (
	"cmp"
	"errors"
	"fmt"
	"math"

	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/image/oci"
)

// overhead is the part of a file system that CDI leaves free.
const overhead = 0.06

// diskChecks are about the disk that KubeVirt would start.
var diskChecks = []check{
	{"format", func(s *subject, f *findings) string {
		i := s.looked.Image
		switch {
		case s.Disk == nil:
			return ""
		case s.Disk.FileSize == 0:
			f.fail("the disk is empty")
		case i.Unpartitioned:
			f.warn("it is data without a partition table; KubeVirt takes that for a raw disk")
		case i.Format == "":
			f.fail("the disk looks like %s, KubeVirt takes qcow2 and raw", i.Other)
		case i.Damage != nil:
			f.fail("the disk is truncated or damaged: %v", i.Damage)
		case i.Dirty:
			f.fail("the disk was not closed properly")
		case i.Corrupt:
			f.fail("the disk is marked as corrupt")
		}
		return i.Format
	}},
	{"no other files", func(s *subject, f *findings) string {
		if s.looked.BackingFile != "" {
			f.fail("the disk has a backing file, %q, which would be looked for where it is started", s.looked.BackingFile)
		}
		if s.looked.ExternalData {
			f.fail("the disk keeps its data in another file, which would be looked for where it is started")
		}
		return s.onlyQCOW2("neither a backing file nor external data")
	}},
	{"encryption", func(s *subject, f *findings) string {
		if s.looked.Encrypted {
			f.fail("the disk is encrypted: nobody gives KubeVirt the key")
		}
		return s.onlyQCOW2("none")
	}},
	{"snapshots", func(s *subject, f *findings) string {
		switch {
		case s.looked.Snapshots > 0:
			f.fail("the disk holds %d internal snapshots: earlier states that anybody can read", s.looked.Snapshots)
		case s.looked.Bitmaps:
			f.warn("the disk holds bitmaps of a backup program")
		}
		return s.onlyQCOW2("none")
	}},
	{"virtual size", func(s *subject, f *findings) string {
		i := s.looked.Image
		switch {
		case s.Disk == nil || i.Damage != nil || s.Disk.FileSize == 0:
			return ""
		case i.OutOfRange():
			f.fail("%d bytes are out of range: above 0 and at most 2 TiB is usual", i.VirtualSize)
		case i.VirtualSize%512 != 0:
			f.fail("%d bytes are no whole sectors", i.VirtualSize)
		}
		gib := float64(i.VirtualSize) / (1 << 30)
		return fmt.Sprintf("%.2f GiB; a volume that CDI imports it into needs %.2f GiB", gib, math.Ceil(gib/(1-overhead)*100)/100)
	}},
	{"tables", func(s *subject, f *findings) string {
		t := s.looked.tables
		switch {
		case s.onlyQCOW2("is") == "" || s.looked.OutOfRange():
			return ""
		case errors.Is(s.looked.tablesErr, disk.ErrNotRead):
			f.note("none was read: they lie too far from the disk's beginning, or are too large")
		case s.looked.tablesErr != nil:
			f.fail("the disk is truncated or damaged: %v", s.looked.tablesErr)
		case t.Read < t.All:
			f.note("%d of %d were read; whether the others are whole was not checked", t.Read, t.All)
		}
		return fmt.Sprintf("all %d lie within the file", t.All)
	}},
	{"qemu-img", func(s *subject, f *findings) string {
		switch {
		case s.Disk == nil:
			return ""
		case s.looked.qemu != "":
			f.fail("%s", s.looked.qemu)
		case s.looked.notAsked != "":
			f.note("not asked: %s", s.looked.notAsked)
		}
		return "opens it within KubeVirt's limits"
	}},
	{"compression", func(s *subject, f *findings) string {
		if s.Disk == nil || len(s.layers) == 0 {
			return ""
		}
		on, inside := s.layers[s.tree.paths[s.Disk.Name].layer].Compression, s.looked.tables.Compression
		packed := inside == disk.Zstd || inside == disk.Zlib
		level := Warning
		if s.looked.tables.Read < s.looked.tables.All {
			level = Note // the tables that were not read may say otherwise
		}
		switch {
		case packed && on != oci.Plain:
			f.add(level, "a disk that is compressed inside is compressed again (%s): that saves next to nothing, and parts of it cannot be read alone", on)
		case !packed && on == oci.Plain && s.Disk.FileSize > 0 && (s.looked.Format != disk.FormatQCOW2 || s.looked.tables.Data > 0):
			f.add(level, "neither the disk nor the layer is compressed")
		}
		if inside == disk.Zstd {
			f.note("the disk is compressed with zstd, which Harvester on Longhorn cannot read; KubeVirt 1.0 and CDI can")
		}
		return fmt.Sprintf("disk: %s, layer: %s", cmp.Or(string(inside), oci.Plain), on)
	}},
}

// onlyQCOW2 is what is right with a qcow2 disk, and nothing for others.
func (s *subject) onlyQCOW2(right string) string {
	if s.looked.Format != disk.FormatQCOW2 || s.looked.Damage != nil {
		return ""
	}
	return right
}
