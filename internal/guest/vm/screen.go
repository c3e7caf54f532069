package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxScreen bounds a picture of the screen, in bytes of PNG: the guest says
// what is on it and how large it is.
const maxScreen = 8 << 20

// Screen returns what the guest's screen shows, as PNG of at most 8 MiB. It
// takes QEMU 7.1 or newer.
func (g *Guest) Screen(ctx context.Context) ([]byte, error) {
	file := filepath.Join(g.options.Dir, screenFile)
	_, err := g.qmp.execute(ctx, "screendump", map[string]any{"filename": screenFile, "format": "png"})
	defer os.Remove(file)
	if err != nil {
		return nil, fmt.Errorf("taking a picture of the guest's screen: %w", err)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	picture, err := io.ReadAll(io.LimitReader(f, maxScreen+1))
	if err != nil {
		return nil, err
	}
	if len(picture) > maxScreen {
		return nil, fmt.Errorf("the picture of the guest's screen has more than %d MiB", maxScreen>>20)
	}
	return picture, nil
}
