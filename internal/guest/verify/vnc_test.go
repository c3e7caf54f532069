package verify

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stream is what a server says, whatever it is told.
type stream struct {
	io.Reader
	told bytes.Buffer
}

func (s *stream) Write(b []byte) (int, error) { return s.told.Write(b) }

func said(parts ...any) *stream {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		default:
			_ = binary.Write(&b, binary.BigEndian, p)
		}
	}
	return &stream{Reader: &b}
}

// screen is a ServerInit of a screen of this size.
func screen(width, height uint16) string {
	b := binary.BigEndian.AppendUint16(nil, width)
	b = binary.BigEndian.AppendUint16(b, height)
	return string(b) + string(make([]byte, 16)) + "\x00\x00\x00\x03lab"
}

const none38 = "RFB 003.008\n\x01\x01\x00\x00\x00\x00"

func rect(x, y, w, h uint16, encoding int32, pixels string) string {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.BigEndian, []uint16{x, y, w, h})
	_ = binary.Write(&b, binary.BigEndian, encoding)
	return b.String() + pixels
}

func TestEveryVersionOfTheHandshakeIsSpoken(t *testing.T) {
	tests := map[string]struct{ server, told string }{
		"3.3":            {"RFB 003.003\n\x00\x00\x00\x01", "RFB 003.003\n\x01"},
		"3.5, so 3.3":    {"RFB 003.005\n\x00\x00\x00\x01", "RFB 003.003\n\x01"},
		"3.7":            {"RFB 003.007\n\x02\x02\x01", "RFB 003.007\n\x01\x01"},
		"3.8":            {none38, "RFB 003.008\n\x01\x01"},
		"3.889 of macOS": {"RFB 003.889\n\x01\x01\x00\x00\x00\x00", "RFB 003.008\n\x01\x01"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := said(tt.server, screen(2, 1))
			c, err := newVNC(s)
			require.NoError(t, err)
			assert.Equal(t, "lab", c.name)
			assert.Equal(t, tt.told, s.told.String())
		})
	}
}

func TestWhatIsNoOpenDesktopIsSaid(t *testing.T) {
	for server, want := range map[string]string{
		"":                              "no greeting: EOF",
		"HTTP/1.1 400":                  `the greeting is "HTTP/1.1 400"`,
		"RFB 004.001\n":                 "it speaks RFB 4.1",
		"RFB 003.008\n\x01\x02":         "it asks for a password",
		"RFB 003.008\n\x01\x13":         "it asks for security of type 19",
		"RFB 003.003\n\x00\x00\x00\x02": "it asks for a password",
		"RFB 003.008\n\x00\x00\x00\x00\x03too many":                `it refuses: "too"`,
		"RFB 003.003\n\x00\x00\x00\x00\x00\x00\x00\x03no!":         `it refuses: "no!"`,
		"RFB 003.008\n\x01\x01\x00\x00\x00\x01\x00\x00\x00\x03no!": `it refuses: "no!"`,
		"RFB 003.008\n\x00\xff\xff\xff\xff":                        "a text of 4294967295 bytes",
		none38:                                                     "EOF",
		none38 + screen(0, 5):                                      "0×5 pixels",
		none38 + screen(65535, 65535):                              "65535×65535 pixels",
		none38 + "\x00\x01\x00\x01" + string(make([]byte, 16)) + "\x7f\xff\xff\xff": "a text of 2147483647 bytes",
	} {
		_, err := newVNC(said(server))
		require.ErrorContains(t, err, want, "%q", server)
	}
}

func TestAPictureIsPutTogetherFromItsRectangles(t *testing.T) {
	s := said(none38, screen(2, 2),
		"\x02",                                 // a bell
		"\x03\x00\x00\x00\x00\x00\x00\x04text", // the clipboard
		"\x01\x00\x00\x00\x00\x01"+"colour",    // a colour map
		"\x00\x00\x00\x03",                     // an update of three rectangles
		rect(0, 0, 2, 1, 0, "\xff\x00\x00\x00"+"\x00\xff\x00\x00"),
		rect(9, 9, 0, 3, 0, ""), // empty, and nowhere
		rect(0, 1, 2, 1, 0, "\x00\x00\xff\x00"+"\x01\x02\x03\x99"))
	c, err := newVNC(s)
	require.NoError(t, err)
	s.told.Reset()
	picture, err := c.picture()
	require.NoError(t, err)
	assert.Equal(t, image.Rect(0, 0, 2, 2), picture.Bounds())
	assert.Equal(t, color.RGBA{R: 255, A: 255}, picture.RGBAAt(0, 0))
	assert.Equal(t, color.RGBA{G: 255, A: 255}, picture.RGBAAt(1, 0))
	assert.Equal(t, color.RGBA{B: 255, A: 255}, picture.RGBAAt(0, 1))
	assert.Equal(t, color.RGBA{R: 1, G: 2, B: 3, A: 255}, picture.RGBAAt(1, 1))
	told := s.told.Bytes()
	assert.Equal(t, setup, told[:len(setup)])
	assert.Equal(t, "\x03\x00\x00\x00\x00\x00\x00\x02\x00\x02", string(told[len(setup):]))
}

func TestAPictureThatIsNoneIsRefused(t *testing.T) {
	full := rect(0, 0, 2, 2, 0, "0123456789abcdef")
	for update, want := range map[string]string{
		"":                 "EOF",
		"\x00\x00\x00\x00": "0 of 4 pixels came",
		"\x00\x00\x00\x01" + rect(0, 0, 2, 1, 0, "01234567"): "2 of 4 pixels came",
		"\x00\x00\x00\x01" + rect(0, 0, 2, 2, 0, "short"):    "unexpected EOF",
		"\x00\x00\x00\x01" + rect(1, 0, 2, 2, 0, ""):         "a rectangle (1,0)-(3,2)",
		"\x00\x00\x00\x01" + rect(0, 0, 2, 2, 7, ""):         "of encoding 7",
		"\x00\x00\x00\x03" + full + full + full:              "more than its screen",
		"\x03\x00\x00\x00\xff\xff\xff\xff":                   "a message of type 3 with 4294967295 bytes",
		"\x77":                                               "an unknown message of type 119",
		string(bytes.Repeat([]byte{2}, maxOther)) + "\x00":   "everything but a picture",
	} {
		c, err := newVNC(said(none38, screen(2, 2), update))
		require.NoError(t, err)
		_, err = c.picture()
		require.ErrorContains(t, err, want, "%q", update)
	}
}

func TestTheHandshakeWaitsForTheServersTurns(t *testing.T) {
	ours, theirs := net.Pipe() // no buffer: a wrong turn is a dead end
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	go func() {
		for _, turn := range []struct {
			say  string
			hear int
		}{{"RFB 003.008\n", 12}, {"\x01\x01", 1}, {"\x00\x00\x00\x00", 1}, {screen(1, 1), 0}} {
			if _, err := theirs.Write([]byte(turn.say)); err != nil {
				return
			}
			if _, err := io.ReadFull(theirs, make([]byte, turn.hear)); err != nil {
				return
			}
		}
	}()
	c, err := newVNC(ours)
	require.NoError(t, err)
	assert.Equal(t, "lab", c.name)
}

func FuzzAnyServerIsSurvived(f *testing.F) {
	f.Add([]byte(none38 + screen(2, 2) + "\x02\x00\x00\x00\x01" + rect(0, 0, 2, 2, 0, "0123456789abcdef")))
	f.Add([]byte("RFB 003.003\n\x00\x00\x00\x01" + screen(100, 1) + "\x00\x00\x00\x01" + rect(9, 65000, 0, 9, 0, "")))
	f.Add([]byte("RFB 003.007\n\x00\x00\x00\x00\x05wrong"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := newVNC(&stream{Reader: bytes.NewReader(b)})
		if err != nil {
			return
		}
		require.LessOrEqual(t, c.width*c.height, maxPixels)
		if picture, err := c.picture(); err == nil {
			require.Len(t, picture.Pix, 4*c.width*c.height)
		}
	})
}
