package cli

// What the tests ask for alone.
var (
	SSH      = ssh
	Writable = writable
)
