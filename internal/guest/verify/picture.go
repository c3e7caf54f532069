package verify

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
)

const (
	maxPicture = 1 << 20  // bytes of PNG in a result
	maxSide    = 8192     // pixels of a screen that is decoded,
	maxPixels  = 16 << 20 // and in all
)

// decodable says whether a screen of so many pixels is looked at.
func decodable(width, height int) bool {
	return width > 0 && height > 0 && width <= maxSide && height <= maxSide && width*height <= maxPixels
}

// screen returns a picture of the machine's own screen.
func (m *machine) screen(ctx context.Context) (Picture, error) {
	raw, err := m.guest.Screen(ctx)
	if err != nil {
		return Picture{}, err
	}
	screen, err := decode(raw)
	if err != nil {
		return Picture{}, err
	}
	return encode("console at login", screen)
}

// decode reads a PNG, which a guest filled, within bounds.
func decode(raw []byte) (image.Image, error) {
	config, err := png.DecodeConfig(bytes.NewReader(raw))
	if err == nil && !decodable(config.Width, config.Height) {
		err = fmt.Errorf("it has %d×%d pixels", config.Width, config.Height)
	}
	var screen image.Image
	if err == nil {
		screen, err = png.Decode(bytes.NewReader(raw))
	}
	if err != nil {
		return nil, fmt.Errorf("reading a picture of the screen: %w", err)
	}
	return screen, nil
}

// encode makes a picture of at most maxPicture: what is larger loses every
// other line and column, until it fits.
func encode(title string, screen image.Image) (Picture, error) {
	for {
		var b bytes.Buffer
		encoder := png.Encoder{CompressionLevel: png.BestCompression}
		if err := encoder.Encode(&b, screen); err != nil {
			return Picture{}, fmt.Errorf("writing the picture %q: %w", title, err)
		}
		if b.Len() <= maxPicture {
			return Picture{Title: title, PNG: b.Bytes(), Width: screen.Bounds().Dx(), Height: screen.Bounds().Dy()}, nil
		}
		screen = halved(screen)
	}
}

func halved(from image.Image) image.Image {
	r := from.Bounds()
	to := image.NewRGBA(image.Rect(0, 0, r.Dx()/2, r.Dy()/2))
	for y := range to.Rect.Max.Y {
		for x := range to.Rect.Max.X {
			to.Set(x, y, from.At(r.Min.X+2*x, r.Min.Y+2*y))
		}
	}
	return to
}

// blank says that nearly all of the screen has one colour: nothing is drawn
// yet but perhaps a pointer.
func blank(screen *image.RGBA) bool {
	count := map[color.RGBA]int{}
	most := 0
	for i := 0; i+3 < len(screen.Pix); i += 4 {
		c := color.RGBA{screen.Pix[i], screen.Pix[i+1], screen.Pix[i+2], 0xff}
		count[c]++
		most = max(most, count[c])
	}
	return most*100 >= len(screen.Pix)/4*99
}
