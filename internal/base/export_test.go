package base

import "github.com/netgroup-polito/diskforge/internal/httpclient"

// Through connects by dial, so that names need not exist.
func (o DownloadOptions) Through(dial httpclient.Dial) DownloadOptions {
	o.dial = dial
	return o
}

// ReadPackages reads a list.
var ReadPackages = readPackages
