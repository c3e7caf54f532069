package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

// guestDesktop is noVNC and VNC as an image serves them.
type guestDesktop struct {
	pages  map[string]string
	vnc    func(io.ReadWriter) // what is behind the websocket
	socket string              // its path
}

func goodDesktop() guestDesktop {
	return guestDesktop{
		pages: map[string]string{
			"/":               `<title>noVNC</title><script src="app/ui.js"></script><a href="https://novnc.com">`,
			"/app/ui.js":      `url = new URL(path, location.href);`,
			"/defaults.json":  `{}`,
			"/mandatory.json": `{"autoconnect": true, "path": "websockify", "host": ""}`,
		},
		vnc:    func(c io.ReadWriter) { serveVNC(c, func(int) byte { return byte(rand.N(256)) }) },
		socket: "/websockify",
	}
}

func (g guestDesktop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery != "" || r.Host == "" {
		http.Error(w, "query", http.StatusBadRequest)
		return
	}
	if r.URL.Path == g.socket {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		g.vnc(websocket.NetConn(r.Context(), c, websocket.MessageBinary))
		return
	}
	page, ok := g.pages[r.URL.Path]
	switch {
	case !ok:
		http.NotFound(w, r)
	case strings.HasPrefix(page, "-> "):
		w.Header().Set("Location", page[3:])
		w.WriteHeader(http.StatusFound)
	default:
		_, _ = io.WriteString(w, page)
	}
}

// serveVNC is a server of a screen of 64 by 48 pixels whose bytes are what
// pixel says.
func serveVNC(c io.ReadWriter, pixel func(i int) byte) {
	hear := func(n int) bool { _, err := io.ReadFull(c, make([]byte, n)); return err == nil }
	say := func(b ...byte) { _, _ = c.Write(b) }
	say([]byte("RFB 003.008\n")...)
	hear(12)
	say(1, 1)
	hear(1)
	say(0, 0, 0, 0)
	hear(1)
	say(append([]byte{0, 64, 0, 48}, make([]byte, 20)...)...)
	pixels := make([]byte, 64*48*4)
	for i := range pixels {
		pixels[i] = pixel(i)
	}
	for hear(20 + 8 + 10) {
		update := []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 64, 0, 48, 0, 0, 0, 0}
		say(append(update, pixels...)...)
	}
}

// quick makes a test's desktops wait less.
var quick = patience{open: time.Minute, answer: time.Minute, settle: 100 * time.Millisecond, between: 5 * time.Millisecond}

// shown goes through what a desktop shows once its port is open.
func shown(t *testing.T, g guestDesktop) found {
	t.Helper()
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return (&machine{p: progress.Discard}).servedDesktop(t.Context(), strings.TrimPrefix(server.URL, "http://"), quick)
}

func TestADesktopThatConsumersCanServePassesWithAPicture(t *testing.T) {
	t.Parallel()
	f := shown(t, goodDesktop())
	require.Len(t, f.checks, 3)
	for _, c := range f.checks {
		assert.True(t, c.OK, "%+v", c)
	}
	require.Len(t, f.pictures, 1)
	assert.Equal(t, "desktop through VNC", f.pictures[0].Title)
	config, err := png.DecodeConfig(bytes.NewReader(f.pictures[0].PNG))
	require.NoError(t, err)
	assert.Equal(t, [4]int{64, 48, 64, 48}, [4]int{config.Width, config.Height, f.pictures[0].Width, f.pictures[0].Height})
}

func TestADesktopMayBeArrangedInOtherWays(t *testing.T) {
	t.Parallel()
	g := goodDesktop()
	g.pages["/vnc.html"], g.pages["/"] = g.pages["/"], "-> vnc.html"
	g.pages["/mandatory.json"] = `{"autoconnect": "true", "path": "vnc/socket"}`
	delete(g.pages, "/defaults.json")
	g.socket = "/vnc/socket"
	for _, c := range shown(t, g).checks {
		assert.True(t, c.OK, "%+v", c)
	}
}

func TestADesktopThatBreaksBehindAPrefixIsFound(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*guestDesktop)
		want   string
	}{
		"no page":            {func(g *guestDesktop) { delete(g.pages, "/") }, "desktop page: /: 404"},
		"another page":       {func(g *guestDesktop) { g.pages["/"] = "It works!" }, "not noVNC's"},
		"absolute reference": {func(g *guestDesktop) { g.pages["/"] += `<link href='/app/x.css'>` }, "refers to /app/x.css"},
		"endless page":       {func(g *guestDesktop) { g.pages["/"] += strings.Repeat("x", maxPage) }, "larger than 1 MiB"},
		"absolute redirect":  {func(g *guestDesktop) { g.pages["/"] = "-> /vnc.html" }, "a redirect leads out of the path prefix"},
		"foreign redirect":   {func(g *guestDesktop) { g.pages["/"] = "-> http://192.0.2.1/" }, `to "http://192.0.2.1/"`},
		"redirects in rings": {func(g *guestDesktop) { g.pages["/"] = "-> ./" }, "too many redirects"},
		"noVNC before 1.6":   {func(g *guestDesktop) { g.pages["/app/ui.js"] = "url += '/' + path;" }, "take 1.6 or newer"},
		"no autoconnect":     {func(g *guestDesktop) { g.pages["/mandatory.json"] = `{"autoconnect": false}` }, "waits for a click"},
		"no settings":        {func(g *guestDesktop) { delete(g.pages, "/mandatory.json") }, "waits for a click"},
		"broken settings":    {func(g *guestDesktop) { g.pages["/mandatory.json"] = `{"autoconnect": tr` }, "mandatory.json is no JSON"},
		"absolute path":      {func(g *guestDesktop) { g.pages["/mandatory.json"] = `{"autoconnect": true, "path": "/websockify"}` }, "leads out of the path prefix"},
		"path elsewhere":     {func(g *guestDesktop) { g.pages["/mandatory.json"] = `{"autoconnect": 1, "path": "http://192.0.2.1/"}` }, "leads out of the path prefix"},
		"another host":       {func(g *guestDesktop) { g.pages["/mandatory.json"] = `{"autoconnect": "1", "host": "x"}` }, `connect to the host "x"`},
		"no websocket":       {func(g *guestDesktop) { g.socket = "/elsewhere" }, "desktop websocket: no websocket"},
		"no VNC":             {func(g *guestDesktop) { g.vnc = func(io.ReadWriter) {} }, "desktop websocket: the VNC handshake: no greeting"},
		"a black screen": {func(g *guestDesktop) {
			g.vnc = func(c io.ReadWriter) { serveVNC(c, func(i int) byte { return byte(min(i/30, 1)) - 1 }) }
		}, "desktop picture: the screen is blank"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := goodDesktop()
			tt.change(&g)
			f := shown(t, g)
			last := f.checks[len(f.checks)-1]
			assert.False(t, last.OK)
			assert.Contains(t, last.Name+": "+last.Detail, tt.want)
			assert.Empty(t, f.pictures)
		})
	}
}

// slirp listens as QEMU does: it accepts always, and closes at once where
// answer is nil.
func slirp(t *testing.T, answer func(n int) func(net.Conn)) *viewer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if a := answer(n); a != nil {
					a(c)
				}
			}()
		}
	}()
	return newViewer(l.Addr().String(), quick)
}

// forwards passes a connection on to a guest's desktop.
func forwards(t *testing.T, g guestDesktop) func(net.Conn) {
	t.Helper()
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return func(c net.Conn) {
		to, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "http://"))
		if err != nil {
			return
		}
		defer to.Close()
		go func() { _, _ = io.Copy(to, c) }()
		_, _ = io.Copy(c, to)
	}
}

func TestAPortThatOpensWithVNCBehindItIsWaitedFor(t *testing.T) {
	t.Parallel()
	good := forwards(t, goodDesktop())
	v := slirp(t, func(n int) func(net.Conn) {
		if n < 3 {
			return nil
		}
		return good
	})
	early, err := v.awaitVNC(t.Context())
	require.NoError(t, early)
	require.NoError(t, err)
}

func TestAPortThatOpensBeforeVNCIsFound(t *testing.T) {
	t.Parallel()
	g := goodDesktop()
	g.vnc = func(io.ReadWriter) {}
	good, dead := forwards(t, goodDesktop()), forwards(t, g)
	for name, first := range map[string]func(net.Conn){
		"no VNC behind it":   dead,
		"something else":     func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 503 Later\r\n\r\n") },
		"a greeting at once": func(c net.Conn) { _, _ = io.WriteString(c, "RFB 003.008\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := slirp(t, func(n int) func(net.Conn) {
				switch n {
				case 0:
					return nil
				case 1:
					return first
				}
				return good
			})
			early, err := v.awaitVNC(t.Context())
			require.NoError(t, err)
			require.ErrorContains(t, early, "TCP 6080 was open before VNC answered behind it")
		})
	}
}

func TestAPortThatStaysSilentIsOpenToo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	v := slirp(t, func(int) func(net.Conn) { return func(c net.Conn) { <-ctx.Done() } })
	v.answer = 50 * time.Millisecond
	time.AfterFunc(300*time.Millisecond, cancel)
	early, err := v.awaitVNC(ctx)
	require.ErrorContains(t, early, "was open before VNC answered")
	require.ErrorIs(t, err, context.Canceled)
}

func TestAPortThatNeverOpensIsSaid(t *testing.T) {
	t.Parallel()
	v := slirp(t, func(int) func(net.Conn) { return nil })
	v.open = 50 * time.Millisecond
	early, err := v.awaitVNC(t.Context())
	require.NoError(t, early)
	require.EqualError(t, err, "TCP 6080 did not open within 50ms")
}

func TestALargePictureIsShownSmaller(t *testing.T) {
	noise := image.NewRGBA(image.Rect(0, 0, 1000, 900))
	for i := range noise.Pix {
		noise.Pix[i] = byte(rand.N(256)) | byte(i%4/3*255)
	}
	p, err := encode("noise", noise)
	require.NoError(t, err)
	assert.LessOrEqual(t, len(p.PNG), maxPicture)
	assert.Equal(t, [2]int{500, 450}, [2]int{p.Width, p.Height})
	back, err := decode(p.PNG)
	require.NoError(t, err)
	assert.Equal(t, noise.RGBAAt(20, 40), color.RGBAModel.Convert(back.At(10, 20)))
}

func TestAPictureOfTooManyPixelsIsNotDecoded(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, 1, 1))))
	huge := b.Bytes()
	binary.BigEndian.PutUint32(huge[16:], maxSide+1) // the header's checksum is wrong now, too
	_, err := decode(huge)
	require.Error(t, err)
	for _, raw := range [][]byte{nil, []byte("P6 1 1 255 abc"), b.Bytes()[:40]} {
		_, err := decode(raw)
		require.ErrorContains(t, err, "reading a picture of the screen")
	}
}

func TestAScreenWithAPointerOnlyIsBlank(t *testing.T) {
	s := image.NewRGBA(image.Rect(0, 0, 100, 100))
	assert.True(t, blank(s))
	for i := range 90 {
		s.Set(i, i, color.White)
	}
	assert.True(t, blank(s))
	for i := range 100 {
		s.Set(i, 0, color.White) // a panel
		s.Set(i, 1, color.White)
	}
	assert.False(t, blank(s))
}

func FuzzNoVNCsPagesAndSettings(f *testing.F) {
	f.Add("noVNC <a href=/x>", "websockify", "")
	f.Add("", "../../up", "host")
	f.Add("noVNC", "http://[::1]:1/\x00", "")
	f.Fuzz(func(t *testing.T, html, path, host string) {
		_ = checkPage([]byte(html))
		s := prefixedAt(t, "127.0.0.1:1")
		at, err := s.socket(s.url, map[string]any{"path": path, "host": host})
		if err == nil {
			require.True(t, strings.HasPrefix(at, "ws://127.0.0.1:1"+prefix), at)
		}
	})
}

func FuzzPicturesOfAScreen(f *testing.F) {
	var b bytes.Buffer
	_ = png.Encode(&b, image.NewGray(image.Rect(0, 0, 3, 2)))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		picture, err := decode(raw)
		if err == nil {
			require.LessOrEqual(t, max(picture.Bounds().Dx(), picture.Bounds().Dy()), maxSide)
		}
	})
}

func prefixedAt(t *testing.T, host string) *prefixed {
	t.Helper()
	at, err := url.Parse("http://" + host + prefix)
	require.NoError(t, err)
	return &prefixed{url: at}
}
