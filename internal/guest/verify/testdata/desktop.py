"""A stand-in for a desktop: noVNC's pages and VNC behind a websocket on TCP
6080, from Python's standard library alone. It shows coloured stripes."""

import base64
import hashlib
import socketserver

PAGES = {
    "/": b'<title>noVNC</title><script type="module" src="app/ui.js"></script>',
    "/app/ui.js": b"url = new URL(path, location.href);",
    "/mandatory.json": b'{"autoconnect": true}',
}
WIDTH, HEIGHT = 64, 48


class Desktop(socketserver.StreamRequestHandler):
    def handle(self):
        path = self.rfile.readline().split()[1].decode()
        headers = {}
        while line := self.rfile.readline().strip():
            name, value = line.decode().split(": ", 1)
            headers[name.lower()] = value
        if path == "/websockify":
            self.websocket(headers["sec-websocket-key"])
        elif path in PAGES:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PAGES[path])
        else:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n")

    def websocket(self, key):
        accept = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
        )
        self.say(b"RFB 003.008\n")
        self.hear()
        self.say(b"\x01\x01")
        self.hear()
        self.say(bytes(4))
        self.hear()
        size = WIDTH.to_bytes(2, "big") + HEIGHT.to_bytes(2, "big")
        self.say(size + bytes(20))
        stripes = b"".join(bytes([x * 4, 255 - x * 4, 128, 0]) for x in range(WIDTH)) * HEIGHT
        while self.hear():
            self.say(bytes([0, 0, 0, 1]) + bytes(4) + size + bytes(4) + stripes)

    def say(self, data):
        self.wfile.write(b"\x82\x7e" + len(data).to_bytes(2, "big") + data)

    def hear(self):
        """One message of the client: at most 125 bytes, masked."""
        head = self.rfile.read(2)
        if len(head) < 2 or head[0] & 15 != 2:
            return b""
        mask = self.rfile.read(4)
        return bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server(("", 6080), Desktop).serve_forever()
