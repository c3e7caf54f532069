// Package address takes an image's address apart into diskforge's settings.
package address

import (
	"fmt"
	"strings"
)

// Address says where an image is published, in the parts that the settings
// TARGET_REGISTRY, REGISTRY_PREFIX, IMAGE_NAME and IMAGE_TAG have.
type Address struct{ Registry, Prefix, Name, Tag string }

// Of returns the parts, or those of a whole address where that is given
// instead. The program checks what they are made of.
func Of(whole string, parts Address) (Address, error) {
	if whole == "" {
		if parts.Registry == "" || parts.Name == "" || parts.Tag == "" {
			return parts, fmt.Errorf("there is no address to publish to: give --address, or --target-registry with --image-name and --image-tag")
		}
		return parts, nil
	}
	if parts != (Address{}) {
		return parts, fmt.Errorf("both a whole address and parts of one: give --address, or --target-registry with --registry-prefix, --image-name and --image-tag")
	}
	registry, path, ok := strings.Cut(whole, "/")
	if !ok || strings.Contains(whole, "@") {
		return parts, fmt.Errorf("--address %q is no address to publish to: give REGISTRY/PREFIX/NAME:TAG", whole)
	}
	prefix, last := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		prefix, last = path[:i], path[i+1:]
	}
	name, tag, _ := strings.Cut(last, ":")
	if name == "" || tag == "" {
		return parts, fmt.Errorf("--address %q has no name or no tag: give REGISTRY/PREFIX/NAME:TAG, a new tag for each image", whole)
	}
	return Address{Registry: registry, Prefix: prefix, Name: name, Tag: tag}, nil
}

// Host is the name of the registry of an address, or of a registry, without
// its port: the name under which a service answers.
func Host(address string) string {
	registry, _, _ := strings.Cut(address, "/")
	host, _, _ := strings.Cut(registry, ":")
	return host
}
