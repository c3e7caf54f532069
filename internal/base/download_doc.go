// Download_doc brings a base image here, by its checksum. The checksum is
// what makes it trustworthy, not where it came from; so a mirror may speak
// plain HTTP, and what is in the cache is hashed again each time.
//
// A download that was stopped leaves its beginning in the cache, on purpose:
// the next one goes on from there if the server still has the same file.

package base
