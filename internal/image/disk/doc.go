// Package disk looks into disk images and makes the one that is packed, with
// qemu-img. Formats are stated, never probed: a guest can write another
// format's magic into the first sector of its own raw disk.
package disk
