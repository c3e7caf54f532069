package verify

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"image"
	"io"
	"slices"
	"strings"
)

const (
	maxVNCText = 4 << 10 // bytes of a name or a reason
	maxCut     = 1 << 20 // bytes of clipboard text that are skipped
	// A server may cover a place more than once in one update, but not
	// without end.
	maxCover = 2
	// Messages that are no picture (a bell, the clipboard) before the one that
	// was asked for.
	maxOther = 100
)

// vncClient looks at a screen through VNC's protocol, Remote Framebuffer
// (RFC 6143): the handshake, and pictures in the Raw encoding. It sends neither
// keys nor pointers. The server is a guest's: all that it says has a bound.
//
// The first error is kept in err. What is read after it is zero.
type vncClient struct {
	in            *bufio.Reader
	out           io.Writer
	name          string // what the server calls its desktop
	width, height int
	err           error
}

// newVNC does the handshake of a client that wants no password. It returns when
// the server has said how large its screen is, which shows that VNC is there
// and works.
func newVNC(conn io.ReadWriter) (*vncClient, error) {
	c := &vncClient{in: bufio.NewReaderSize(conn, 64<<10), out: conn}
	c.security(c.version())
	c.write(1) // shared: others may look, too
	var init struct {
		Width, Height uint16
		Format        [16]byte
		NameLength    uint32
	}
	c.read(&init)
	c.width, c.height = int(init.Width), int(init.Height)
	if !decodable(c.width, c.height) {
		c.fail("its screen has %d×%d pixels", c.width, c.height)
	}
	c.name = c.text(init.NameLength)
	if c.err != nil {
		return nil, fmt.Errorf("the VNC handshake: %w", c.err)
	}
	return c, nil
}

// version settles on 3.3, 3.7 or 3.8, the three that there are, and returns
// the second number.
func (c *vncClient) version() int {
	var greeting [12]byte
	if c.read(&greeting); c.err != nil {
		c.err = fmt.Errorf("no greeting: %w", c.err)
	}
	var major, minor int
	if n, err := fmt.Sscanf(string(greeting[:]), "RFB %03d.%03d\n", &major, &minor); n != 2 {
		c.fail("the greeting is %q: %v", greeting[:], err)
	}
	switch {
	case major != 3 || minor < 3:
		c.fail("it speaks RFB %d.%d", major, minor)
	case minor >= 8:
		minor = 8
	case minor != 7:
		minor = 3 // RFC 6143, 7.1.1: others count as 3.3
	}
	c.write(fmt.Appendf(nil, "RFB %03d.%03d\n", major, minor)...)
	return minor
}

// The security types that are told apart (RFC 6143, 7.1.2).
const (
	securityRefused  = 0
	securityNone     = 1
	securityPassword = 2
)

func (c *vncClient) security(minor int) {
	var kind, result uint32
	if minor == 3 {
		c.read(&kind) // the server decides
	} else {
		var n uint8
		c.read(&n)
		kinds := make([]byte, n)
		c.read(kinds)
		if slices.Contains(kinds, securityNone) {
			kind = securityNone
			c.write(securityNone)
		} else if n > 0 {
			kind = uint32(kinds[0])
		}
	}
	switch {
	case kind == securityPassword:
		c.fail("it asks for a password")
	case kind > securityPassword:
		c.fail("it asks for security of type %d, where none is expected", kind)
	case kind == securityNone && minor == 8:
		c.read(&result)
	}
	if kind == securityRefused || result != 0 {
		var n uint32
		c.read(&n)
		reason := c.text(n)
		c.fail("it refuses: %q", reason)
	}
}

// setup asks for 32 bits a pixel, red, green, blue and nothing from the lowest
// byte on, in the Raw encoding, which every server must know.
var setup = []byte{
	0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0, // SetPixelFormat
	2, 0, 0, 1, 0, 0, 0, 0, // SetEncodings: Raw
}

// picture asks for the whole screen and returns it.
func (c *vncClient) picture() (*image.RGBA, error) {
	request := append(slices.Clone(setup), 3, 0, 0, 0, 0, 0) // FramebufferUpdateRequest: all, not only changes
	request = binary.BigEndian.AppendUint16(request, uint16(c.width))
	request = binary.BigEndian.AppendUint16(request, uint16(c.height))
	c.write(request...)
	var picture *image.RGBA
	for n := 0; picture == nil && c.err == nil; n++ {
		if n == maxOther {
			c.fail("it sends everything but a picture")
		}
		picture = c.message()
	}
	if c.err != nil {
		return nil, fmt.Errorf("a picture through VNC: %w", c.err)
	}
	return picture, nil
}

// message reads one message, and returns nil where it is no picture.
func (c *vncClient) message() *image.RGBA {
	var kind uint8
	c.read(&kind)
	switch kind {
	case 0:
		return c.update()
	case 1: // SetColourMapEntries
		var head struct {
			_            uint8
			First, Count uint16
		}
		c.read(&head)
		c.skip(kind, 6*int64(head.Count))
	case 2: // Bell
	case 3: // ServerCutText
		var head struct {
			_      [3]uint8
			Length uint32
		}
		c.read(&head)
		c.skip(kind, int64(head.Length))
	default:
		c.fail("an unknown message of type %d", kind)
	}
	return nil
}

// update reads the rectangles of one FramebufferUpdate. It has to cover the
// screen: RFC 6143, 7.5.3, all was asked for.
func (c *vncClient) update() *image.RGBA {
	var head struct {
		_     uint8
		Rects uint16
	}
	c.read(&head)
	picture := image.NewRGBA(image.Rect(0, 0, c.width, c.height))
	came, all := 0, c.width*c.height
	for range head.Rects {
		if came += c.rectangle(picture); came > maxCover*all {
			c.fail("it sends more than its screen")
		}
		if c.err != nil {
			return nil
		}
	}
	if came < all {
		c.fail("%d of %d pixels came", came, all)
	}
	return picture
}

// rectangle reads one rectangle into the picture and returns how many pixels it has.
func (c *vncClient) rectangle(picture *image.RGBA) int {
	var head struct {
		X, Y, Width, Height uint16
		Encoding            int32
	}
	c.read(&head)
	r := image.Rect(int(head.X), int(head.Y), int(head.X)+int(head.Width), int(head.Y)+int(head.Height))
	if head.Encoding != 0 || !r.In(picture.Rect) { // an empty one may be anywhere
		c.fail("a rectangle %v of encoding %d", r, head.Encoding)
		return 0
	}
	for y := r.Min.Y; y < r.Max.Y && !r.Empty(); y++ {
		line := picture.Pix[picture.PixOffset(r.Min.X, y):][:4*r.Dx()]
		c.read(line)
		for i := 3; i < len(line); i += 4 {
			line[i] = 0xff // the fourth byte means nothing in RFB
		}
	}
	return r.Dx() * r.Dy()
}

func (c *vncClient) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *vncClient) read(v any) {
	if c.err == nil {
		c.err = binary.Read(c.in, binary.BigEndian, v)
	}
}

func (c *vncClient) write(b ...byte) {
	if c.err == nil {
		_, c.err = c.out.Write(b)
	}
}

func (c *vncClient) skip(kind uint8, n int64) {
	if n > maxCut {
		c.fail("a message of type %d with %d bytes", kind, n)
	}
	if c.err == nil {
		_, c.err = io.CopyN(io.Discard, c.in, n)
	}
}

func (c *vncClient) text(n uint32) string {
	if n > maxVNCText {
		c.fail("a text of %d bytes", n)
		return ""
	}
	b := make([]byte, n)
	c.read(b)
	return strings.ToValidUTF8(string(b), "?")
}
