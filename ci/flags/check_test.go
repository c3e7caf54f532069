package flags

import (
	"strings"
	"testing"
)

func TestWhatAnArgumentAloneTellsIsToldAllAtOnceAndNamesWhatToGive(t *testing.T) {
	err := Check(Of("memory", "lots", "disk-size", "10X", "cpus", "0", "accelerator", "hvf", "qcow2-compression", "xz", "sparsify", "virt-sparsify", "suite", "sid",
		"boot-timeout", "soon", "vm-user", "Me", "iso-url", "/base.qcow2", "iso-checksum", "md5:0", "target-registry", "https://r", "image-tag", "a b", "max-age", "7"))
	if err == nil {
		t.Fatal("nothing was said")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 14 {
		t.Errorf("%d lines:\n%v", len(lines), err)
	}
	for _, want := range []string{`--memory "lots" is not understood: give a number of MiB`, `--disk-size "10X"`, `--compression "xz"`, "the toolbox has no virt-sparsify", "given as --base"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
}

func TestWhatTheProgramTakesIsLetThrough(t *testing.T) {
	for _, args := range [][]string{
		Of("memory", "2048", "disk-size", "20G"), Of("memory", "4Gi", "disk-size", "10240"), Of("memory", "4g", "disk-size", "10GiB"),
		Of("cpus", "64", "accelerator", "tcg", "architecture", "x86_64", "boot-timeout", "1h30m", "base-timeout", "90s", "build-user", "maker", "suite", "trixie"),
		Of("iso-url", "oci://registry:5000/a:1", "iso-checksum", "inputs:sha256:"+strings.Repeat("0", 64)),
		Of("iso-url", "https://me@example.org/a.img", "iso-checksum", "file:https://example.org/SHA256SUMS", "http-proxy", "http://me:word@proxy:3128"),
		Of("target-registry", "registry:5000", "registry-prefix", "a/b", "image-name", "debian-12.1", "image-tag", "2026-11-23", "max-age", "7d"),
		Of("extra-vars", "{}", "unknown", "x"), nil,
	} {
		if err := Check(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestAPasswordInAURLIsNotRepeated(t *testing.T) {
	if err := Check(Of("https-proxy", "me:hidden-word@proxy")); err == nil || strings.Contains(err.Error(), "hidden-word") {
		t.Error(err)
	}
}

func TestAPlaybookThatTheTreeDoesNotHaveIsNamedWithThoseItHas(t *testing.T) {
	files := []string{"playbooks/ubuntu-base.yml", "playbooks/debian-base.yml", "roles/x/tasks/main.yml", "requirements.yml", "labs/course.yaml"}
	for _, name := range []string{"debian-base", "debian-base.yml", "playbooks/debian-base.yml", "ansible/playbooks/debian-base.yml", "labs/course.yaml", "course"} {
		if err := Playbook(name, files); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := Playbook("nonexistent", files)
	if err == nil || err.Error() != `there is no playbook "nonexistent": there are debian-base, ubuntu-base` {
		t.Error(err)
	}
}
