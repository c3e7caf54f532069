package ui

import (
	"io"

	"golang.org/x/term"
)

// plainWidth is the width, in columns, of what is shown where there is no
// terminal: logs are read in wide windows.
const plainWidth = 100

// Show writes for people what takes more than a line, in so many columns and
// in colours where they work. Machines, and a table of images, are spared it.
func (u *UI) Show(write func(w io.Writer, width int, colour bool) error) {
	if u.json || u.image {
		return
	}
	width, colour := plainWidth, u.screen != nil
	if colour {
		if w, _, err := term.GetSize(int(u.screen.out.Fd())); err == nil && w > 0 {
			width = w
		}
	}
	// As with all that is told to people, what a closed terminal does not take
	// changes no result.
	u.print(func() { _ = write(u.out, width, colour) })
}
