"""A HTTP server on loopback that streams what it is given, and can fail in every way."""

import hashlib
import re
import socket
import struct
import threading
from base64 import b64decode
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

NONCE = "0f1e2d3c"
REALM = "camera"


class StreamServer(ThreadingHTTPServer):
    """Gives `body()` to everyone who may have it."""

    daemon_threads = True
    body: Callable[[], Iterable[bytes]]
    content_type: str
    login: tuple[str, str] | None
    scheme: str  # "Basic" or "Digest MD5" or "Digest SHA-256"
    status: int
    location: str

    def prepare(self) -> None:
        self.connections: list[socket.socket] = []
        self.requests: list[tuple[str, str, str]] = []  # path, Host, Authorization

    @property
    def port(self) -> int:
        return self.server_address[1]

    def url(self, login: str = "", path: str = "/video") -> str:
        return f"http://{login}{'@' if login else ''}127.0.0.1:{self.port}{path}"

    def kill(self) -> None:
        """Break every connection, as a camera does that loses its power and answers no more."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that left."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast(StreamServer, self.server)
        server.connections.append(self.connection)
        said = self.headers.get("Authorization", "")
        server.requests.append((self.path, self.headers.get("Host", ""), said))
        if server.login and not accepted(said, server.login, "GET", self.path):
            self.send_response(401)
            self.send_header("WWW-Authenticate", challenge(server.scheme))
            self.end_headers()
            return
        self.send_response(server.status)
        if server.location:
            self.send_header("Location", server.location)
        self.send_header("Content-Type", server.content_type)
        self.end_headers()
        if server.status == 200:
            with suppress(OSError):
                for chunk in server.body():
                    self.wfile.write(chunk)
                    self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as inherited
        """Write nothing."""


def challenge(scheme: str) -> str:
    """Return the value of WWW-Authenticate."""
    kind, _, algorithm = scheme.partition(" ")
    if kind == "Basic":
        return f'Basic realm="{REALM}"'
    return f'Digest realm="{REALM}", nonce="{NONCE}", qop="auth", algorithm={algorithm}'


def accepted(said: str, login: tuple[str, str], method: str, uri: str) -> bool:
    """Return whether a request's Authorization is of who may see."""
    user, password = login
    if said.startswith("Basic "):
        return b64decode(said[6:]).decode() == f"{user}:{password}"
    if not said.startswith("Digest "):
        return False
    given = dict(re.findall(r'(\w+)="?([^",]*)"?', said))
    name = "sha256" if given.get("algorithm") == "SHA-256" else "md5"

    def hashed(text: str) -> str:
        return hashlib.new(name, text.encode()).hexdigest()

    who, what = hashed(f"{user}:{REALM}:{password}"), hashed(f"{method}:{given['uri']}")
    middle = f"{NONCE}:{given['nc']}:{given['cnonce']}:auth" if "nc" in given else NONCE
    return given["response"] == hashed(f"{who}:{middle}:{what}")


@contextmanager
def streaming(
    body: Callable[[], Iterable[bytes]],
    content_type: str = "multipart/x-mixed-replace; boundary=frame",
    *,
    login: tuple[str, str] | None = None,
    scheme: str = "Basic",
    status: int = 200,
    location: str = "",
) -> Generator[StreamServer, None, None]:
    """Serve a stream for a block."""
    server = StreamServer(("127.0.0.1", 0), _Handler)
    server.prepare()
    server.body, server.content_type, server.login = body, content_type, login
    server.scheme, server.status, server.location = scheme, status, location
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.kill()
        thread.join()
