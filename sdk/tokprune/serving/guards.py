"""Who may ask: no web page of a stranger, through whatever browser it got here.

There is no authentication. A browser, though, lets any page send requests to this machine: to the
address itself (then it says where the page came from: `Origin`), or to a name of the page's own
that suddenly points here (DNS rebinding; then `Host` has that name).
"""

import logging
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit

from tokprune.serving.asgi import App, Message, Receive, Scope, Send, header, send_error
from tokprune.serving.refusals import HttpRefused

PATHS = ("/v1/chat/completions", "/v1/models", "/health", "/metrics")
_log = logging.getLogger("tokprune.serving")


class Guarded:
    """Checks Host and Origin, and logs a line for each request: never what it holds."""

    def __init__(
        self, app: App, *, allow_hosts: Iterable[str] = (), allow_origins: Iterable[str] = ()
    ) -> None:
        """Guard `app`.

        Args:
            app: what answers.
            allow_hosts: names beside addresses, `localhost` and this machine's own.
            allow_origins: pages of other servers that may ask; "*" for all.
        """
        own = socket.gethostname().lower()
        self._app = app
        self._hosts = {"localhost", own, f"{own}.local", *(name.lower() for name in allow_hosts)}
        self._origins = set(allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = monotonic()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check(scope)
        except HttpRefused as error:
            await send_error(noting, error)
        else:
            await self._app(scope, receive, noting)
        path = scope["path"] if scope["path"] in PATHS else "(unknown path)"
        spent_ms = 1000 * (monotonic() - began_s)
        _log.info("%s %s %d %.0f ms", scope["method"][:20], path, status, spent_ms)

    def _check(self, scope: Scope) -> None:
        host = header(scope, "host") or ""
        name = _host_name(host)
        if name not in self._hosts and not _is_address(name):
            raise HttpRefused(
                403,
                "host_forbidden",
                f"The name {name!r:.100} is not known to this server: ask for it by address or as "
                "localhost, or start it with --allow-host NAME",
            )
        origin = header(scope, "origin")
        if origin is None or origin == f"http://{host}" or self._origins & {origin, "*"}:
            return
        raise HttpRefused(
            403,
            "origin_forbidden",
            f"Pages of {origin!r:.100} may not ask this server: start it with --allow-origin "
            "ORIGIN if you trust them",
        )


def _host_name(host: str) -> str:
    """Return the name or address of a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
