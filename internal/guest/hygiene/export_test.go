package hygiene

// Rules are the rules of every image in the order in which they are applied.
func Rules() []Rule { return named(rules) }

// WithGuestfish has a program in the place of guestfish.
func (o Options) WithGuestfish(program string, env ...string) Options {
	o.guestfish, o.LibguestfsEnv = program, append(o.LibguestfsEnv, env...)
	return o
}
