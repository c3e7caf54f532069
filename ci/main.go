// Build KubeVirt containerdisks from a cloud image and an Ansible playbook.
//
// A chain of objects: toolbox is the container with Packer, QEMU, Ansible and
// the diskforge program; build returns an image, which the program's stages
// make there, one exec each, when something is asked of it; its disk, oci and
// containerdisk can be taken out, summary tells of it, publish pushes it:
//
//	dagger call build --base-from-packages --ansible-playbook debian-base \
//	  publish --address registry.example.org/labs/debian:2026-11 \
//	  --registry-user me --registry-pass env://REGISTRY_PASS
//
// Arguments are the settings of `diskforge build`, by the same names. The
// module composes the program's stages and re-implements none.
package main

import "dagger/diskforge/internal/dagger"

// Diskforge builds KubeVirt containerdisks.
type Diskforge struct {
	// +private
	Source *dagger.Directory
	// +private
	BaseImage string
	// +private
	GoImage string
	// +private
	AptMirror string
}
