// Rfb looks at a screen through VNC's protocol, Remote Framebuffer
// (RFC 6143): the handshake, and pictures in the Raw encoding. It shows
// nothing to anybody and sends neither keys nor pointers.
//
// The server is a guest's: everything that it says has a bound.

package verify

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"strings"
)

const (
	maxText      = 4 << 10 // bytes of a name or a reason
	maxVNCSide   = 8192    // pixels of width or height
	maxVNCPixels = 16 << 20
	maxCut       = 1 << 20 // bytes of clipboard text that are skipped
	// A server may cover a place more than once in one update, but not
	// without end.
	maxCover = 2
	// Messages that are no picture (a bell, the clipboard) before the one that
	// was asked for.
	maxOther = 100
)

// version is what a server's first twelve bytes say.
type version struct{ major, minor int }

// Client is a connection after the handshake.
type VNC struct {
	in  *bufio.Reader
	out io.Writer
	// Name is what the server calls its desktop.
	Name          string
	width, height int
}

// New does the handshake of a client that wants no password. It returns when
// the server has said how large its screen is, which shows that VNC is there
// and works.
func NewVNC(conn io.ReadWriter) (*VNC, error) {
	c := &VNC{in: bufio.NewReaderSize(conn, 64<<10), out: conn}
	if err := c.handshake(); err != nil {
		return nil, fmt.Errorf("the VNC handshake: %w", err)
	}
	return c, nil
}

func (c *VNC) handshake() error {
	v, err := c.version()
	if err != nil {
		return err
	}
	if err := c.security(v); err != nil {
		return err
	}
	if err := c.write([]byte{1}); err != nil { // shared: others may look, too
		return err
	}
	var init struct {
		Width, Height uint16
		Format        [16]byte
		NameLength    uint32
	}
	if err := c.read(&init); err != nil {
		return err
	}
	c.width, c.height = int(init.Width), int(init.Height)
	if c.width == 0 || c.height == 0 || c.width > maxVNCSide || c.height > maxVNCSide || c.width*c.height > maxVNCPixels {
		return fmt.Errorf("its screen has %d×%d pixels", c.width, c.height)
	}
	c.Name, err = c.text(init.NameLength)
	return err
}

// version settles on 3.3, 3.7 or 3.8, the three that there are.
func (c *VNC) version() (version, error) {
	greeting := make([]byte, 12)
	if _, err := io.ReadFull(c.in, greeting); err != nil {
		return version{}, fmt.Errorf("no greeting: %w", err)
	}
	var v version
	if n, err := fmt.Sscanf(string(greeting), "RFB %03d.%03d\n", &v.major, &v.minor); n != 2 {
		return v, fmt.Errorf("the greeting is %q: %v", greeting, err)
	}
	switch {
	case v.major != 3 || v.minor < 3:
		return v, fmt.Errorf("it speaks RFB %d.%d", v.major, v.minor)
	case v.minor >= 8:
		v.minor = 8
	case v.minor != 7:
		v.minor = 3 // RFC 6143, 7.1.1: others count as 3.3
	}
	return v, c.write(fmt.Appendf(nil, "RFB %03d.%03d\n", v.major, v.minor))
}

// securityNone is the security type of a server that asks for nothing.
const securityNone = 1

func (c *VNC) security(v version) error {
	if v.minor == 3 { // the server decides
		var kind uint32
		if err := c.read(&kind); err != nil {
			return err
		}
		return c.accepted(kind)
	}
	var n uint8
	if err := c.read(&n); err != nil {
		return err
	}
	if n == 0 {
		return c.refused()
	}
	kinds := make([]byte, n)
	if _, err := io.ReadFull(c.in, kinds); err != nil {
		return err
	}
	if !strings.ContainsRune(string(kinds), securityNone) {
		return c.accepted(uint32(kinds[0]))
	}
	if err := c.write([]byte{securityNone}); err != nil {
		return err
	}
	if v.minor < 8 {
		return nil
	}
	var result uint32
	if err := c.read(&result); err != nil {
		return err
	}
	if result != 0 {
		return c.refused()
	}
	return nil
}

func (c *VNC) accepted(kind uint32) error {
	switch kind {
	case securityNone:
		return nil
	case 0:
		return c.refused()
	case 2:
		return errors.New("it asks for a password")
	}
	return fmt.Errorf("it asks for security of type %d, where none is expected", kind)
}

func (c *VNC) refused() error {
	var n uint32
	if err := c.read(&n); err != nil {
		return err
	}
	reason, err := c.text(n)
	if err != nil {
		return err
	}
	return fmt.Errorf("it refuses: %q", reason)
}

// Picture asks for the whole screen and returns it.
func (c *VNC) Picture() (*image.RGBA, error) {
	picture, err := c.picture()
	if err != nil {
		return nil, fmt.Errorf("a picture through VNC: %w", err)
	}
	return picture, nil
}

// setup asks for 32 bits a pixel, red, green, blue and nothing from the lowest
// byte on, in the Raw encoding, which every server must know.
var setup = []byte{
	0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0, // SetPixelFormat
	2, 0, 0, 1, 0, 0, 0, 0, // SetEncodings: Raw
}

func (c *VNC) picture() (*image.RGBA, error) {
	request := append([]byte(nil), setup...)
	request = append(request, 3, 0, 0, 0, 0, 0) // FramebufferUpdateRequest: all, not only changes
	request = binary.BigEndian.AppendUint16(request, uint16(c.width))
	request = binary.BigEndian.AppendUint16(request, uint16(c.height))
	if err := c.write(request); err != nil {
		return nil, err
	}
	for range maxOther {
		var kind uint8
		if err := c.read(&kind); err != nil {
			return nil, err
		}
		if kind == 0 {
			return c.update()
		}
		if err := c.skip(kind); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("it sends everything but a picture")
}

// skip reads over a message that is no picture.
func (c *VNC) skip(kind uint8) error {
	var n int64
	switch kind {
	case 1: // SetColourMapEntries
		var m struct {
			_            uint8
			First, Count uint16
		}
		if err := c.read(&m); err != nil {
			return err
		}
		n = 6 * int64(m.Count)
	case 2: // Bell
	case 3: // ServerCutText
		var m struct {
			_      [3]uint8
			Length uint32
		}
		if err := c.read(&m); err != nil {
			return err
		}
		n = int64(m.Length)
	default:
		return fmt.Errorf("an unknown message of type %d", kind)
	}
	if n > maxCut {
		return fmt.Errorf("a message of type %d with %d bytes", kind, n)
	}
	_, err := io.CopyN(io.Discard, c.in, n)
	return err
}

// update reads the rectangles of one FramebufferUpdate. It has to cover the
// screen: RFC 6143, 7.5.3, all was asked for.
func (c *VNC) update() (*image.RGBA, error) {
	var head struct {
		_     uint8
		Rects uint16
	}
	if err := c.read(&head); err != nil {
		return nil, err
	}
	picture := image.NewRGBA(image.Rect(0, 0, c.width, c.height))
	pixels := 0
	for range head.Rects {
		n, err := c.rectangle(picture)
		if err != nil {
			return nil, err
		}
		if pixels += n; pixels > maxCover*c.width*c.height {
			return nil, errors.New("it sends more than its screen")
		}
	}
	if pixels < c.width*c.height {
		return nil, fmt.Errorf("%d of %d pixels came", pixels, c.width*c.height)
	}
	return picture, nil
}

// rectangle reads one rectangle into the picture and returns how many pixels it has.
func (c *VNC) rectangle(picture *image.RGBA) (int, error) {
	var head struct {
		X, Y, Width, Height uint16
		Encoding            int32
	}
	if err := c.read(&head); err != nil {
		return 0, err
	}
	r := image.Rect(int(head.X), int(head.Y), int(head.X)+int(head.Width), int(head.Y)+int(head.Height))
	if head.Encoding != 0 || !r.In(picture.Rect) {
		return 0, fmt.Errorf("a rectangle %v of encoding %d", r, head.Encoding)
	}
	if r.Empty() { // it may be anywhere
		return 0, nil
	}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		line := picture.Pix[picture.PixOffset(r.Min.X, y):][:4*r.Dx()]
		if _, err := io.ReadFull(c.in, line); err != nil {
			return 0, err
		}
		for i := 3; i < len(line); i += 4 {
			line[i] = 0xff // the fourth byte means nothing in RFB
		}
	}
	return r.Dx() * r.Dy(), nil
}

func (c *VNC) read(v any) error { return binary.Read(c.in, binary.BigEndian, v) }

func (c *VNC) write(b []byte) error {
	_, err := c.out.Write(b)
	return err
}

func (c *VNC) text(n uint32) (string, error) {
	if n > maxText {
		return "", fmt.Errorf("a text of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c.in, b)
	return strings.ToValidUTF8(string(b), "?"), err
}
