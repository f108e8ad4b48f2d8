"""From an address to a running server, and to its end (extra `serve`: uvicorn)."""

import asyncio
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from tokprune.errors import RequestInvalid
from tokprune.serving.asgi import App
from tokprune.serving.door import Door

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 3.0  # for answers to end by themselves; then they are cancelled
_LAST_S = 3  # after that: connections are cut
_MOST_CONNECTIONS = 256
_LOCALHOST = "127.0.0.1"


def address_of(host: str, *, allow_remote: bool) -> str:
    """Check where to listen. No name but localhost is taken: nothing is looked up.

    Raises:
        RequestInvalid: it is no address, or other machines reach it and were not allowed to.
    """
    address = _LOCALHOST if host == "localhost" else host
    try:
        loopback = ip_address(address).is_loopback
    except ValueError:
        raise RequestInvalid(
            f"--host takes an address of this machine such as 127.0.0.1 or 0.0.0.0, got {host!r}"
        ) from None
    if not loopback and not allow_remote:
        raise RequestInvalid(
            f"Other machines reach {host}, and there is no authentication: whoever connects can "
            "ask. Add --allow-remote if that is meant, or put a proxy that checks who asks in "
            "front of 127.0.0.1"
        )
    return address


def bound(address: str, port: int) -> socket.socket:
    """Return a socket at an address. It does not listen yet, so nobody connects too early."""
    version6 = isinstance(ip_address(address), IPv6Address)
    sock = socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestInvalid(
            f"Cannot listen at {address}, port {port} ({reason}): give another --port, or "
            "--port 0 for any that is free"
        ) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """Return the address to ask, up to `/v1`."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def web_server(app: App) -> "uvicorn.Server":
    """Return what speaks HTTP. It writes no access log, opens no connection and trusts no proxy."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=int(GRACE_S + _LAST_S),
    )
    return uvicorn.Server(config)


async def serve(server: "uvicorn.Server", sock: socket.socket, door: Door) -> None:
    """Serve until a signal (or `server.should_exit`) ends it; then let answers end, for a while."""
    ending = asyncio.create_task(_end(server, door))
    try:
        await server.serve(sockets=[sock])
    finally:
        ending.cancel()
        door.close()


async def _end(server: "uvicorn.Server", door: Door) -> None:
    while not server.should_exit:
        await asyncio.sleep(0.1)
    await asyncio.sleep(GRACE_S)
    door.close()


@contextmanager
def ended_by_signals(server: "uvicorn.Server") -> Generator[None]:
    """Let SIGINT and SIGTERM end the server, from its first moment on, and the program end well.

    While uvicorn serves it has handlers of its own; it raises afterwards what they caught.
    """

    def end(number: int, frame: object) -> None:
        del number, frame
        server.should_exit = True

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, end) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
