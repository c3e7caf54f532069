// Package packer holds the Packer template, so that the program has it outside
// its checkout.
package packer

import "embed"

// Template is the directory of the template: *.pkr.hcl and scripts/.
//
//go:embed *.pkr.hcl scripts
var Template embed.FS
