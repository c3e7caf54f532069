package hygiene

// Rules are the rules of every image in the order in which they are applied.
func Rules() []Rule { return named(rules) }
