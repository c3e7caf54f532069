package hygiene

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// volume is a partition, or the whole disk where it has none.
type volume struct {
	partition   int   // from 1; 0 for the whole disk
	start, size int64 // bytes
	kind        string
	uuid, label string // of the file system
	partUUID    string
	partLabel   string
}

// extTypes are what debugfs reads, by blkid's names.
var extTypes = []string{"ext2", "ext3", "ext4"}

// passive are those in which no files lie that a rule is about: a firmware's
// boot loaders, swap, what has no signature (a BIOS boot partition). They are
// searched as blocks.
var passive = []string{"", "vfat", "swap"}

func (v volume) ext() bool { return slices.Contains(extTypes, v.kind) }

// native says whether all file systems are ones that we read without libguestfs.
func native(volumes []volume) bool {
	return !slices.ContainsFunc(volumes, func(v volume) bool { return !v.ext() && !slices.Contains(passive, v.kind) })
}

// files says whether the volume has a file system with files that rules are
// about: neither passive nor a part of something else (LVM2_member).
func (v volume) files() bool {
	return !slices.Contains(passive, v.kind) && !strings.HasSuffix(v.kind, "_member")
}

// volumes lists the disk's partitions and what is in each. It leaves their
// many formats to sfdisk and blkid.
func (d *opened) volumes(ctx context.Context) ([]volume, error) {
	whole, err := d.probe(ctx, volume{size: d.size})
	if err != nil {
		return nil, err
	}
	volumes := []volume{whole}
	if whole.kind == "" {
		if volumes, err = d.partitions(ctx); err != nil {
			return nil, err
		}
	}
	for _, v := range volumes {
		if v.kind == "crypto_LUKS" {
			return nil, failure.New(fmt.Sprintf("%s is encrypted: nobody can look into it", v), "build on a base whose disk is not encrypted")
		}
	}
	if native(volumes) && !slices.ContainsFunc(volumes, volume.ext) {
		return nil, failure.New("no file system was found on the disk: it cannot be looked into", "give a disk with a Linux system")
	}
	return volumes, nil
}

func (v volume) String() string {
	if v.partition == 0 {
		return "the disk"
	}
	return fmt.Sprintf("partition %d", v.partition)
}

// maxPartitions is what a GPT has room for by custom.
const maxPartitions = 128

// extended are an MBR's types of partitions that hold others.
var extended = []string{"5", "f", "85"}

func (d *opened) partitions(ctx context.Context) ([]volume, error) {
	var out bytes.Buffer
	// sfdisk fails where there is no partition table; that means no volumes.
	if err := run(ctx, d.dir, &out, "sfdisk", "--json", rawName); err != nil {
		if _, explained := failure.In(err); explained || ctx.Err() != nil {
			return nil, err
		}
		return nil, nil
	}
	found, err := parseTable(out.Bytes(), d.size)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if found[i], err = d.probe(ctx, found[i]); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// parseTable reads sfdisk's answer about a disk of so many bytes.
func parseTable(answer []byte, size int64) ([]volume, error) {
	var said struct {
		Table struct {
			SectorSize int64
			Label      string
			Partitions []struct {
				Node, Type  string
				Start, Size int64
				UUID, Name  string
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return nil, fmt.Errorf("reading the answer of sfdisk: %w", err)
	}
	if len(said.Table.Partitions) > maxPartitions {
		return nil, damaged("the disk", "it has more than 128 partitions")
	}
	unit := said.Table.SectorSize
	if unit <= 0 {
		unit = 512
	}
	var volumes []volume
	for _, p := range said.Table.Partitions {
		// Logical partitions lie in an extended one, which is no volume.
		if said.Table.Label == "dos" && slices.Contains(extended, p.Type) {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(p.Node, rawName))
		if err != nil || p.Start < 0 || p.Size <= 0 || p.Start > size/unit || p.Size > size/unit-p.Start {
			return nil, damaged("the partition table", p.Node+" lies outside the disk")
		}
		volumes = append(volumes, volume{partition: n, start: p.Start * unit, size: p.Size * unit, partUUID: strings.ToLower(p.UUID), partLabel: p.Name})
	}
	return volumes, nil
}

// blkidNothing is blkid's exit code where it recognises nothing.
const blkidNothing = 2

// probe asks blkid what is in the volume.
func (d *opened) probe(ctx context.Context, v volume) (volume, error) {
	c, err := limited(d.dir, "blkid", "-p", "-o", "export", "--offset", strconv.FormatInt(v.start, 10), "--size", strconv.FormatInt(v.size, 10), rawName)
	if err != nil {
		return v, err
	}
	out, err := host.Output(ctx, c)
	if err != nil && exitCode(err) != blkidNothing {
		return v, err
	}
	for _, line := range strings.Split(string(out), "\n") {
		switch key, value, _ := strings.Cut(line, "="); key {
		case "TYPE":
			v.kind = value
		case "UUID":
			v.uuid = value
		case "LABEL":
			v.label = value
		}
	}
	return v, nil
}

// mounts tells where an fstab mounts the volumes, by their partitions. Those
// that it does not name are missing, and so is a second one in one place.
func mounts(fstab []byte, volumes []volume) map[int]string {
	at, taken := map[int]string{}, map[string]bool{}
	for _, line := range strings.Split(string(fstab), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || !strings.HasPrefix(fields[1], "/") {
			continue
		}
		mount := path.Clean(fields[1])
		for _, v := range volumes {
			if v.named(fields[0]) && !taken[mount] {
				at[v.partition], taken[mount] = mount, true
			}
		}
	}
	return at
}

// named says whether an fstab's first field means the volume.
func (v volume) named(spec string) bool {
	for prefix, value := range map[string]string{
		"UUID=": v.uuid, "/dev/disk/by-uuid/": v.uuid,
		"LABEL=": v.label, "/dev/disk/by-label/": v.label,
		"PARTUUID=": v.partUUID, "/dev/disk/by-partuuid/": v.partUUID,
		"PARTLABEL=": v.partLabel, "/dev/disk/by-partlabel/": v.partLabel,
	} {
		if rest, ok := strings.CutPrefix(spec, prefix); ok {
			return value != "" && strings.EqualFold(strings.Trim(rest, `"`), value)
		}
	}
	disk, ok := strings.CutSuffix(spec, strconv.Itoa(v.partition))
	return ok && slices.Contains([]string{"/dev/vda", "/dev/sda", "/dev/nvme0n1p"}, disk)
}

// damaged is the error about a structure that cannot be right.
func damaged(what, why string) error {
	return failure.New(fmt.Sprintf("%s is damaged: %s", what, why), "make the disk again")
}
