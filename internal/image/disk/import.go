package disk

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// Import writes the disk of a machine to out, a qcow2 image that is not compressed.
// The disk is a qcow2, raw, VDI, VMDK, VHDX or VHD image, a raw disk behind gzip or
// zstd, the one in an OVA or in an OCI archive of KubeVirt's VirtualMachineExport, or a block device. It is
// refused where it refers to other files: what was the machine's is then elsewhere.
// Memory does not grow with the disk; a compressed raw disk needs room beside out.
func Import(ctx context.Context, from, out string, p progress.Reporter) error {
	f, err := OpenSource(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s := source{File: f, name: from}
	if info.Mode().IsRegular() {
		s.size = info.Size()
		err = s.recognise(ctx, out, p)
	} else {
		s.driver, s.device = FormatRaw, true // a guest can write any magic into its first sector
		s.size, err = f.Seek(0, io.SeekEnd)
	}
	if s.unpacked != "" {
		defer os.Remove(s.unpacked)
	}
	if err != nil {
		return named(from, err)
	}
	return s.convert(ctx, out, p)
}

// forms are the sources of Import.
const forms = "give a qcow2, raw, VDI, VMDK, VHDX or VHD image, a raw disk behind gzip or zstd, an OVA, KubeVirt's export or a block device"

// OpenSource opens what Import may read: a file or a block device. Nothing else is
// opened, as a named pipe would wait for its other end.
func OpenSource(name string) (*os.File, error) {
	info, err := os.Stat(name)
	if err == nil && !info.Mode().IsRegular() && info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return nil, failure.New(name+" is neither a file nor a block device", forms)
	}
	if strings.Contains(name, "://") && err != nil {
		return nil, failure.New(name+" is no file on this host", "download it, and give the file")
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, &failure.Error{What: err.Error(), Try: "check the path and its permissions", Err: err}
	}
	return f, nil
}

// source is a disk, in a window of a file: from offset, size bytes.
type source struct {
	*os.File
	name         string
	driver       string // QEMU's
	device       bool   // it is a block device
	offset, size int64
	unpacked     string // a file of ours that holds it, or empty
}

func (s *source) window() *io.SectionReader { return io.NewSectionReader(s.File, s.offset, s.size) }

// recognise finds the driver, and what the file is wrapped in.
func (s *source) recognise(ctx context.Context, out string, p progress.Reporter) error {
	format, looks := recognise(s.window(), s.size)
	if format != "" {
		s.driver = format
		i := Look(s.window(), s.size)
		if err := i.refusal(""); err != nil || format == FormatRaw {
			return err
		}
		if _, err := i.Tables(ctx, s.window(), math.MaxInt64); err != nil { // what QEMU would read as zeroes
			return truncated(err)
		}
		return nil
	}
	switch s.driver = drivers[looks.what]; s.driver {
	case "tar":
		return s.archive(ctx, out, p)
	case "gzip", "zstd":
		return s.decompress(ctx, s.driver, "", out, p)
	case "vmdk":
		return s.checkVMDK()
	case "vdi":
		return s.checkVDI()
	case "":
		return failure.New("this is no machine's disk, it looks like "+looks.what, forms)
	}
	return nil // QEMU refuses VDI and VHDX images that are differences to others
}

// drivers are QEMU's, or what a disk is wrapped in, by what a file looks like.
var drivers = map[string]string{
	"a VMDK image": "vmdk", "a VMDK descriptor, whose data lie in other files": "vmdk",
	"a VDI image": "vdi", "a VHDX image": "vhdx", "a VHD image": "vpc",
	"a tar archive (an OVA is one, too)": "tar", "a gzip archive": "gzip", "a zstd archive": "zstd",
}

// maxDescriptor bounds the descriptor in a VMDK and each description in an archive, in
// bytes.
const maxDescriptor = 1 << 20

// checkVMDK refuses an image that makes QEMU open other files: one that is a
// descriptor of extents, or a difference to a parent (VMware's "Virtual Disk
// Format 5.0"; QEMU's block/vmdk.c).
func (s *source) checkVMDK() error {
	head := readAt(s.window(), 0, sectorSize)
	if len(head) < sectorSize || string(head[:4]) != "KDMV" || binary.LittleEndian.Uint64(head[12:]) == 0 {
		return failure.New("the VMDK has its data in other files", "export the machine as an OVA")
	}
	at, size := binary.LittleEndian.Uint64(head[28:]), binary.LittleEndian.Uint64(head[36:])
	if at > uint64(s.size)/sectorSize || size > maxDescriptor/sectorSize {
		return failure.New("the VMDK is damaged: its descriptor lies outside of it", "export it again")
	}
	if bytes.Contains(readAt(s.window(), int64(at*sectorSize), int64(size*sectorSize)), []byte("parentFileNameHint")) {
		return failure.New("the VMDK is a snapshot, the difference to another disk", "delete the machine's snapshots, or export it as an OVA")
	}
	return nil
}

// checkVDI refuses an image that is shorter than the blocks that its header counts,
// which QEMU reads as zeroes (VirtualBox' VDICore.h, VDIHEADER1).
func (s *source) checkVDI() error {
	head := readAt(s.window(), 0, sectorSize)
	if len(head) < sectorSize {
		return truncated(errTruncated)
	}
	data, block, allocated := binary.LittleEndian.Uint32(head[0x158:]), binary.LittleEndian.Uint32(head[0x178:]), binary.LittleEndian.Uint32(head[0x184:])
	if uint64(data)+uint64(block)*uint64(allocated) > uint64(s.size) {
		return truncated(errTruncated)
	}
	return nil
}

// archive finds the one disk of a machine in a tar.
func (s *source) archive(ctx context.Context, out string, p progress.Reporter) error {
	members, described := members{}, ""
	archive := s.window()
	for files := tar.NewReader(archive); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return failure.Wrap(err, "the archive is truncated or damaged", "export it again")
		}
		at, err := archive.Seek(0, io.SeekCurrent) // where the member's content begins: tar reads whole blocks
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		members[name] = io.NewSectionReader(s.File, s.offset+at, h.Size)
		if described == "" && path.Ext(name) == ".ovf" {
			described = name
		}
	}
	switch {
	case members["index.json"] != nil:
		return s.exported(ctx, members, out, p)
	case described != "":
		return s.appliance(ctx, members, described, out, p)
	}
	return failure.New("the tar archive holds no machine: no .ovf as in an OVA, no index.json as in KubeVirt's export", tryUnpack)
}

// members are the contents of a tar's files.
type members map[string]*io.SectionReader

// read decodes a member that describes others.
func (m members) read(name string, decode func([]byte, any) error, to any) error {
	if m[name] == nil {
		return fmt.Errorf("%s is missing", name)
	}
	text, err := host.ReadAll(m[name], maxDescriptor)
	if err != nil {
		return err
	}
	return decode(text, to)
}

// appliance finds the disk of an OVA, which a file in it describes (DMTF's DSP0243,
// Open Virtualization Format).
func (s *source) appliance(ctx context.Context, files members, name, out string, p progress.Reporter) error {
	var described struct {
		Files []struct {
			ID          string `xml:"id,attr"`
			Href        string `xml:"href,attr"`
			Compression string `xml:"compression,attr"`
		} `xml:"References>File"`
		Disks []struct {
			FileRef string `xml:"fileRef,attr"`
		} `xml:"DiskSection>Disk"`
	}
	if err := files.read(name, xml.Unmarshal, &described); err != nil {
		return failure.Wrap(err, "the OVA's description cannot be read", "export it again")
	}
	if n := len(described.Disks); n != 1 {
		return failure.New(fmt.Sprintf("the OVA has %d disks, and a containerdisk is one", n), "export a machine with the disk of its system alone")
	}
	for _, file := range described.Files {
		content := files[path.Clean(file.Href)]
		if file.ID != described.Disks[0].FileRef || content == nil {
			continue
		}
		if file.Compression != "" && file.Compression != "identity" {
			return failure.New("the OVA's disk is compressed with "+file.Compression, tryUnpack)
		}
		_, s.offset, s.size = content.Outer()
		return s.recognise(ctx, out, p)
	}
	return failure.New("the OVA lacks the file of its disk", "export it again")
}

// exportedDisk is the type of a disk in what KubeVirt 1.9 and newer export of a machine
// or a template (pkg/storage/oci/oci.go).
const exportedDisk = "application/vnd.kubevirt.disk.raw+zstd"

// exported finds the disk of a machine in the OCI archive of a VirtualMachineExport: a
// blob that is the raw disk behind zstd, and no tar as the layer of a containerdisk is.
func (s *source) exported(ctx context.Context, files members, out string, p progress.Reporter) error {
	blob := func(digest v1.Hash) string { return path.Join("blobs", digest.Algorithm, digest.Hex) }
	var index v1.IndexManifest
	var manifest v1.Manifest
	err := files.read("index.json", json.Unmarshal, &index)
	if err == nil && len(index.Manifests) == 1 {
		err = files.read(blob(index.Manifests[0].Digest), json.Unmarshal, &manifest)
	}
	if err != nil {
		return failure.Wrap(err, "the OCI archive is damaged", "export it again")
	}
	disks := slices.DeleteFunc(manifest.Layers, func(d v1.Descriptor) bool { return d.MediaType != exportedDisk })
	switch {
	case len(disks) > 1:
		return failure.New(fmt.Sprintf("the export has %d disks, and a containerdisk is one", len(disks)), "export a machine with the disk of its system alone")
	case len(disks) == 0:
		return failure.New("the OCI archive is no export of a KubeVirt machine",
			"a containerdisk is no machine that was used: build from it, with ISO_URL=oci:LAYOUT")
	}
	content := files[blob(disks[0].Digest)]
	if content == nil || content.Size() != disks[0].Size {
		return failure.New("the OCI archive lacks the machine's disk", "export it again")
	}
	_, s.offset, s.size = content.Outer()
	return s.decompress(ctx, "zstd", disks[0].Digest.String(), out, p)
}

// decompress unpacks a raw disk into a sparse file beside out. What is compressed has
// the digest, where one is given.
func (s *source) decompress(ctx context.Context, how, digest, out string, p progress.Reporter) error {
	p.Activity("unpacking the disk")
	packed := progress.Reader(host.Reader(ctx, s.window()), s.size, p)
	if digest != "" {
		packed = host.Verify(packed, s.size, digest, func(got string) error { return errors.New("its digest is " + got) })
	}
	content, _, err := host.Unpack(packed)
	if err != nil {
		return failure.Wrap(err, "the "+how+" archive cannot be read", "make it again")
	}
	defer content.Close()
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+"-*.raw")
	if err != nil {
		return err
	}
	s.File, s.name, s.unpacked, s.offset = f, f.Name(), f.Name(), 0
	to := &host.SparseWriter{File: f}
	_, err = io.Copy(to, io.LimitReader(content, maxVirtualSize+1))
	if s.size = to.At; err == nil {
		err = f.Truncate(s.size)
	}
	if err != nil {
		f.Close()
		if explained := explain(ctx, err, filepath.Dir(out)); ctx.Err() != nil || host.DiskFull(err) {
			return explained
		}
		return failure.Wrap(err, "the "+how+" archive is truncated or damaged", "make it again")
	}
	defer f.Close()
	if format, other := recognise(f, s.size); format != FormatRaw {
		return failure.New("in the "+how+" archive is no raw disk, it looks like "+cmp.Or(other.what, "a qcow2 image"), tryUnpack)
	}
	s.driver = FormatRaw
	i := Look(f, s.size)
	return i.refusal("")
}

// checkCorrupt is the exit code of qemu-img check for an image with errors, 1 for one that
// it could not read to the end; others say
// that it leaks, or that its format cannot be checked.
const checkCorrupt = 2

// convert has QEMU read the window with the stated driver.
func (s *source) convert(ctx context.Context, out string, p progress.Reporter) error {
	from, err := filepath.Abs(s.name)
	if err != nil {
		return err
	}
	type fields map[string]any
	file := fields{"driver": "file", "filename": from}
	if s.device {
		file["driver"] = "host_device"
	}
	if s.offset > 0 {
		file = fields{"driver": FormatRaw, "offset": s.offset, "size": s.size, "file": file}
	}
	spec, err := json.Marshal(fields{"driver": s.driver, "file": file})
	if err != nil {
		return err
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	if s.driver == "vmdk" { // its tables may point behind its end, which QEMU reads as zeroes, too
		err := host.Run(ctx, host.Cmd{Program: "qemu-img", Args: []string{"check", "-q", "json:" + string(spec)}})
		if exit, ran := errors.AsType[*exec.ExitError](err); ran && exit.ExitCode() <= checkCorrupt {
			return named(s.name, truncated(err))
		}
	}
	p.Activity("copying the disk")
	err = host.Run(ctx, host.Cmd{
		Program: "qemu-img", Args: []string{"convert", "-p", "-O", FormatQCOW2, "-o", "compat=1.1", "json:" + string(spec), out},
		Stdout: percent(s.size, p),
	})
	if err == nil || ctx.Err() != nil {
		return explain(ctx, err, filepath.Dir(out))
	}
	os.Remove(out) // half a disk
	if explained := explain(ctx, err, filepath.Dir(out)); !errors.Is(explained, err) || host.DiskFull(err) {
		return explained
	}
	return named(s.name, failure.Wrap(err, "QEMU cannot read the disk", "where it has snapshots, delete them; else export it again"))
}
