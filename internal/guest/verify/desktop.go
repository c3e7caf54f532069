package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/netgroup-polito/diskforge/internal/host"
	"github.com/netgroup-polito/diskforge/internal/text"
)

// DesktopPort is the guest's TCP port where consumers look for noVNC (CrownLabs:
// forge/services.go).
const DesktopPort = 6080

const (
	defaultPath = "websockify"

	maxPage = 1 << 20 // bytes of anything that noVNC's server sends as a page
)

// patience are the times of a desktop. An emulated guest that has two processors to
// itself draws Xfce 4.20's a minute and a half after VNC answered, one that shares them with
// compilers took more than six.
type patience struct {
	open    time.Duration // from ssh until the port opens
	answer  time.Duration // for one page or handshake
	settle  time.Duration // from VNC's first answer until a desktop is drawn
	between time.Duration // two tries
}

var usual = patience{15 * time.Minute, time.Minute, 15 * time.Minute, 500 * time.Millisecond}

// errClosed says that nothing listens: QEMU accepted the connection and closed
// it without a byte.
var errClosed = errors.New("nothing listens")

// viewer looks at a desktop from outside.
type viewer struct {
	patience
	client *http.Client
	read   atomic.Int64 // bytes that came on the last connection of client
}

// newViewer looks at the guest's port that a host and port lead to, whatever
// an URL says: neither a proxy of the environment nor a redirect leads anywhere
// else.
func newViewer(address string, p patience) *viewer {
	v := &viewer{patience: p}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		v.read.Store(0)
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return counted{conn, &v.read}, err
	}
	v.client = &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return v
}

// counted is a connection that counts what came.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// desktop watches the port from the moment ssh answers. Consumers take a
// machine for ready as soon as it opens (their probe is TCP only): the first
// answer must already be VNC's. Then it looks at the page as they serve it.
func (m *machine) desktop(ctx context.Context) found {
	address := m.guest.Address(DesktopPort)
	early, err := newViewer(address, usual).awaitVNC(ctx)
	opened := time.Since(m.guest.PowerOn())
	if early != nil {
		err = errors.Join(early, err)
	}
	f := found{checks: []Check{m.check("port 6080", "open after "+text.Span(opened)+", with VNC behind it", err)}}
	if err != nil && early == nil { // it never opened
		return f
	}
	f.moments = []Moment{{Name: "desktop", At: opened}}
	served := m.servedDesktop(ctx, address, usual)
	f.checks, f.pictures = append(f.checks, served.checks...), served.pictures
	return f
}

// awaitVNC tries until VNC answers. early is not nil where the port was open
// before that.
func (v *viewer) awaitVNC(ctx context.Context) (early, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, v.open, fmt.Errorf("TCP %d did not open within %v", DesktopPort, v.open))
	defer cancel()
	for {
		_, done, err := v.vnc(ctx, "ws://desktop/"+defaultPath)
		if err == nil {
			done()
		}
		switch {
		case ctx.Err() != nil:
			return early, context.Cause(ctx)
		case err == nil:
			return early, nil
		case !errors.Is(err, errClosed) && early == nil:
			early = fmt.Errorf("TCP %d was open before VNC answered behind it: %w", DesktopPort, err)
		}
		_ = host.Sleep(ctx, v.between) // the next try finds ctx's end
	}
}

// vnc connects to VNC through the websocket at a URL, until done is called.
// errClosed says that nothing listens there.
func (v *viewer) vnc(ctx context.Context, at string) (client *vncClient, done func(), err error) {
	timed, cancel := context.WithTimeout(ctx, v.answer)
	defer cancel()
	socket, _, err := websocket.Dial(timed, at, &websocket.DialOptions{HTTPClient: v.client})
	if err != nil {
		if v.read.Load() == 0 && timed.Err() == nil {
			return nil, nil, fmt.Errorf("%w: %w", errClosed, err)
		}
		return nil, nil, fmt.Errorf("no websocket: %w", err)
	}
	conn := websocket.NetConn(ctx, socket, websocket.MessageBinary)
	err = conn.SetDeadline(time.Now().Add(v.answer))
	if err == nil {
		client, err = newVNC(conn)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	done = func() { _ = socket.CloseNow() }
	if err != nil {
		done()
	}
	return client, done, err
}

// servedDesktop looks at the desktop behind an address as consumers serve it,
// under a path prefix: the page, and through it VNC and a picture.
func (m *machine) servedDesktop(ctx context.Context, address string, p patience) (f found) {
	s, err := serveUnderPrefix(address, p.answer)
	if err != nil {
		return found{checks: []Check{m.check("desktop page", "", err)}}
	}
	defer s.close()
	socket, err := s.page(ctx, 4*p.answer)
	f.checks = append(f.checks, m.check("desktop page", "noVNC, works under a path prefix and connects by itself", err))
	if err != nil {
		return f
	}
	client, done, err := newViewer(s.url.Host, p).vnc(ctx, socket)
	f.checks = append(f.checks, m.check("desktop websocket", "VNC's handshake behind a path prefix", err))
	if err != nil {
		return f
	}
	defer done()
	began := time.Now()
	screen, err := p.settled(ctx, done, client.picture)
	detail := ""
	if err == nil {
		detail = fmt.Sprintf("%d×%d pixels, drawn after %s more", screen.Rect.Dx(), screen.Rect.Dy(), text.Span(time.Since(began)))
		var picture Picture
		if picture, err = encode("desktop through VNC", screen); err == nil {
			f.pictures = append(f.pictures, picture)
		}
	}
	f.checks = append(f.checks, m.check("desktop picture", detail, err))
	return f
}

// page checks what the port serves as a consumer's browser sees it, and
// returns the URL of the websocket that the page would open.
func (s *prefixed) page(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	html, at, err := s.get(ctx, s.url)
	if err != nil {
		return "", err
	}
	if err := checkPage(html); err != nil {
		return "", err
	}
	program, _, err := s.get(ctx, at.ResolveReference(&url.URL{Path: "app/ui.js"}))
	if err != nil {
		return "", err
	}
	if !relative.Match(program) {
		return "", errors.New("this noVNC opens its websocket at the root of the host, not beside its page: take 1.6 or newer")
	}
	settings := map[string]any{}
	for _, name := range []string{"defaults.json", "mandatory.json"} { // the second wins
		content, _, err := s.get(ctx, at.ResolveReference(&url.URL{Path: name}))
		if err == nil && json.Unmarshal(content, &settings) != nil {
			err = fmt.Errorf("noVNC's %s is no JSON object", name)
		}
		if err != nil && !errors.Is(err, errNotFound) {
			return "", err
		}
	}
	if !on(settings["autoconnect"]) {
		return "", errors.New("noVNC waits for a click: set autoconnect in its mandatory.json, for consumers give it no query")
	}
	return s.socket(at, settings)
}

// relative is how noVNC's program finds its websocket from 1.6 on: beside its
// page. Before, it puts its path after the host, where a path prefix gets lost.
var relative = regexp.MustCompile(`new URL\(\s*path\s*,\s*(window\.)?location`)

var reference = regexp.MustCompile(`(?i)\s(?:src|href)\s*=\s*["']?(/[^"'\s>]*)`)

// checkPage checks the page itself: nothing in it may leave the prefix.
func checkPage(html []byte) error {
	if !strings.Contains(string(html), "noVNC") {
		return errors.New("the page is not noVNC's")
	}
	if m := reference.FindSubmatch(html); m != nil {
		return fmt.Errorf("the page refers to %s, which is not found behind a path prefix: refer to it relatively",
			text.Line(string(m[1][:min(len(m[1]), 100)])))
	}
	return nil
}

// on says whether noVNC takes a setting for true (app/ui.js).
func on(setting any) bool {
	return setting == true || setting == "true" || setting == "1" || setting == float64(1)
}

// socket is the URL of the websocket that the page opens.
func (s *prefixed) socket(page *url.URL, settings map[string]any) (string, error) {
	if to, _ := settings["host"].(string); to != "" {
		return "", fmt.Errorf("noVNC is set to connect to the host %q", to)
	}
	path, ok := settings["path"].(string)
	if !ok {
		path = defaultPath
	}
	at, err := page.Parse(path)
	if err != nil || at.Host != page.Host || !strings.HasPrefix(at.Path, s.url.Path) {
		return "", fmt.Errorf("noVNC's websocket path %q leads out of the path prefix: it has to be relative", path)
	}
	at.Scheme = "ws"
	return at.String(), nil
}

// settled takes pictures until one is not blank and the next is the same, or
// the time is over; a desktop that never stands still is shown as it is. end
// ends a picture that does not come.
func (p patience) settled(ctx context.Context, end func(), take func() (*image.RGBA, error)) (*image.RGBA, error) {
	ctx, cancel := context.WithTimeout(ctx, p.settle)
	defer cancel()
	defer context.AfterFunc(ctx, end)()
	var last *image.RGBA
	for {
		picture, err := take()
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		if err == nil {
			if last != nil && !blank(picture) && slices.Equal(picture.Pix, last.Pix) {
				return picture, nil
			}
			last = picture
		}
		if host.Sleep(ctx, 2*p.between) != nil {
			if last == nil || blank(last) {
				return nil, fmt.Errorf("the screen is blank %v after VNC answered: no desktop was drawn", p.settle)
			}
			return last, nil
		}
	}
}

var errNotFound = errors.New("404 Not Found")

// get gets a page of the guest's, and where redirects within the prefix led.
func (s *prefixed) get(ctx context.Context, at *url.URL) ([]byte, *url.URL, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	name := "/" + strings.TrimPrefix(response.Request.URL.Path, s.url.Path)
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil, fmt.Errorf("%s: %w", name, errNotFound)
	default:
		return nil, nil, fmt.Errorf("%s: %s", name, text.Line(response.Status))
	}
	content, err := host.ReadAll(response.Body, maxPage)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return content, response.Request.URL, err
}
