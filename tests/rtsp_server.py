"""A small RTSP camera on loopback: H.264 over TCP, interleaved (RFC 2326, 10.12; RFC 6184)."""

import re
import socket
import struct
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from mjpeg_server import accepted, challenge
from stream_pictures import Show, encoded_live

SDP = """v=0\r
o=- 1 1 IN IP4 127.0.0.1\r
s=camera\r
c=IN IP4 0.0.0.0\r
t=0 0\r
m=video 0 RTP/AVP 96\r
a=rtpmap:96 H264/90000\r
a=fmtp:96 packetization-mode=1\r
a=control:track1\r
"""
PACKET_BYTES = 1400


class RtspServer:
    """Shows one `Show` to everyone who may see it. `kill` is a lost camera, `start` its return."""

    def __init__(self, show: Show, login: tuple[str, str] | None, scheme: str) -> None:
        self.show, self.login, self.scheme = show, login, scheme
        self.requests: list[str] = []  # methods
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listen, at the same port as before."""
        self.show.stopped.clear()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", self._port), reuse_port=False)
        self._port = self._listener.getsockname()[1]
        self._run(self._listen)

    def url(self, login: str = "", path: str = "/stream") -> str:
        return f"rtsp://{login}{'@' if login else ''}127.0.0.1:{self._port}{path}"

    def kill(self) -> None:
        """Break every connection and answer no more."""
        self.show.stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # pyright: ignore
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = connection.recv(4096)
                    if not more:
                        return
                    data = _without_rtcp(data + more)
                head, _, data = data.partition(b"\r\n\r\n")
                self._answer(connection, head.decode())

    def _answer(self, connection: socket.socket, head: str) -> None:
        method, uri, _ = head.split("\r\n")[0].split(" ")
        self.requests.append(method)
        fields = dict(re.findall(r"^([\w-]+): *(.*?)\r?$", head, re.MULTILINE))
        status, extra, body = "200 OK", "", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif self.login and not accepted(fields.get("Authorization", ""), self.login, method, uri):
            status, extra = "401 Unauthorized", f"WWW-Authenticate: {challenge(self.scheme)}\r\n"
        elif method == "DESCRIBE":
            if "/stream" not in uri:
                status = "404 Not Found"
            else:
                extra, body = f"Content-Base: {uri}/\r\nContent-Type: application/sdp\r\n", SDP
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 12345678\r\n"
        else:
            extra = "Session: 12345678\r\n"
        text = f"RTSP/1.0 {status}\r\nCSeq: {fields['CSeq']}\r\n{extra}"
        text += f"Content-Length: {len(body)}\r\n\r\n{body}"
        connection.sendall(text.encode())
        if method == "PLAY" and status == "200 OK":
            self._run(self._play, connection)

    def _play(self, connection: socket.socket) -> None:
        with suppress(OSError):
            for packets in encoded_live(self.show, "rtp", buffer_size=PACKET_BYTES):
                for packet in packets:
                    rtcp = 200 <= packet[1] <= 204
                    connection.sendall(struct.pack(">cBH", b"$", rtcp, len(packet)) + packet)


def _without_rtcp(data: bytes) -> bytes:
    while data[:1] == b"$" and len(data) >= 4:
        (size,) = struct.unpack(">H", data[2:4])
        if len(data) < 4 + size:
            break
        data = data[4 + size :]
    return data


@contextmanager
def rtsp(
    show: Show, *, login: tuple[str, str] | None = None, scheme: str = "Basic"
) -> Generator[RtspServer, None, None]:
    """Serve RTSP for a block."""
    server = RtspServer(show, login, scheme)
    try:
        yield server
    finally:
        server.kill()
