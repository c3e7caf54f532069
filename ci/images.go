package main

// Images that the module starts from, by digest. Each is the default of an
// argument of the constructor, which names it again (a default is a comment
// there): a test holds both equal.
const (
	// baseImage is what the toolbox is made of: Debian 13, whose Ansible manages
	// guests with Python up to 3.13.
	baseImage = "debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f"
	// goImage compiles diskforge, Packer, its plugins and goss.
	goImage = "golang:1.26.5-trixie@sha256:87ffdb09b6a2e29ff910748b745395e8a0299aa80b7c0551cdca9b55e3fd2b3e"
)
