package hygiene

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"regexp"
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
	tags        map[string]string // UUID, LABEL, PARTUUID, PARTLABEL, as an fstab(5) names it by

	mount     string // see FileSystem; empty where no files were read
	unmounted bool   // it has files, which no fstab mounts
}

func (v volume) String() string {
	if v.partition == 0 {
		return "the disk"
	}
	return fmt.Sprintf("partition %d", v.partition)
}

// ext says whether debugfs reads it.
func (v volume) ext() bool { return slices.Contains([]string{"ext2", "ext3", "ext4"}, v.kind) }

// passive says that no files lie in it that a rule is about: a firmware's boot
// loaders, swap, what has no signature (a BIOS boot partition). It is searched
// as blocks.
func (v volume) passive() bool { return slices.Contains([]string{"", "vfat", "swap"}, v.kind) }

// native says whether all file systems are ones that we read without libguestfs.
func native(volumes []volume) bool {
	return !slices.ContainsFunc(volumes, func(v volume) bool { return !v.ext() && !v.passive() })
}

// volumes lists the disk's partitions and what is in each. It leaves their
// many formats to sfdisk and blkid.
func (d *rawDisk) volumes(ctx context.Context) ([]volume, error) {
	whole := volume{size: d.size, tags: map[string]string{}}
	if err := d.probe(ctx, &whole); err != nil {
		return nil, err
	}
	volumes := []volume{whole}
	if whole.kind == "" {
		var err error
		if volumes, err = d.partitions(ctx); err != nil {
			return nil, err
		}
	}
	for _, v := range volumes {
		if v.kind == "crypto_LUKS" {
			return nil, failure.New(fmt.Sprintf("%s is encrypted: nobody can look into it", v), "give a disk that is not encrypted")
		}
	}
	if native(volumes) && !slices.ContainsFunc(volumes, volume.ext) {
		return nil, failure.New("no file system was found on the disk: it cannot be looked into", "give a disk with a Linux system")
	}
	return volumes, nil
}

func (d *rawDisk) partitions(ctx context.Context) ([]volume, error) {
	table, err := host.Output(ctx, command(d.dir, "sfdisk", "--json", rawName))
	if errors.Is(err, exec.ErrNotFound) {
		return nil, err
	}
	if err != nil {
		return nil, context.Cause(ctx) // sfdisk fails where there is no partition table: no volumes
	}
	found, err := parseTable(table, d.size)
	if err != nil {
		return nil, err
	}
	for i := range found {
		if err := d.probe(ctx, &found[i]); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// maxPartitions is what a GPT has room for by custom.
const maxPartitions = 128

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
		// Logical partitions of an MBR lie in an extended one, which is no volume.
		if said.Table.Label == "dos" && slices.Contains([]string{"5", "f", "85"}, p.Type) {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(p.Node, rawName))
		if err != nil || p.Start < 0 || p.Size <= 0 || p.Start > size/unit || p.Size > size/unit-p.Start {
			return nil, damaged("the partition table", p.Node+" lies outside the disk")
		}
		tags := map[string]string{"PARTUUID": p.UUID, "PARTLABEL": p.Name}
		volumes = append(volumes, volume{partition: n, start: p.Start * unit, size: p.Size * unit, tags: tags})
	}
	return volumes, nil
}

// blkidNothing is blkid's exit code where it recognises nothing.
const blkidNothing = 2

// probe asks blkid what is in the volume.
func (d *rawDisk) probe(ctx context.Context, v *volume) error {
	c, err := limited(d.dir, "blkid", "-p", "-o", "export", "--offset", fmt.Sprint(v.start), "--size", fmt.Sprint(v.size), rawName)
	if err != nil {
		return err
	}
	out, err := host.Output(ctx, c)
	if exit, ran := errors.AsType[*exec.ExitError](err); err != nil && (!ran || exit.ExitCode() != blkidNothing) {
		return err
	}
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "="); key {
		case "TYPE":
			v.kind = value
		case "UUID", "LABEL":
			v.tags[key] = value
		}
	}
	return nil
}

// mounts tells where an fstab mounts the volumes, by their partitions. Those
// that it does not name are missing, and so is a second one in one place.
func mounts(fstab []byte, volumes []volume) map[int]string {
	at, taken := map[int]string{}, map[string]bool{}
	for line := range strings.Lines(string(fstab)) {
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

var (
	byTag  = regexp.MustCompile(`^(?:/dev/disk/by-(\w+)/|([A-Z]+)=)(.*)$`)
	byNode = regexp.MustCompile(`^/dev/(?:vda|sda|nvme0n1p)(\d+)$`)
)

// named says whether an fstab's first field means the volume.
func (v volume) named(spec string) bool {
	if m := byTag.FindStringSubmatch(spec); m != nil {
		value := v.tags[strings.ToUpper(m[1])+m[2]]
		return value != "" && strings.EqualFold(strings.Trim(m[3], `"`), value)
	}
	m := byNode.FindStringSubmatch(spec)
	return m != nil && m[1] == strconv.Itoa(v.partition)
}
