"""Who may open the page: no page of a stranger, and from other machines only who has the token."""

from collections.abc import Mapping
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from tokprune.serving.asgi import App, Message, Receive, Scope, Send, header, send_bytes
from tokprune.serving.guards import Guarded

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_NO_TOKEN = (
    "This page needs the token that the server printed when it was started: open the whole "
    "address of that line, with ?token=...\n"
)


class PageGuard:
    """Checks Host and Origin as `tokprune serve` does, WebSockets too, then the token.

    The token comes once in the address; a cookie has it from then on.
    """

    def __init__(self, app: App, *, token: str | None = None, port: int = 0) -> None:
        """Guard `app`.

        Args:
            app: the page.
            token: what a browser must show; None: nothing, as only this machine reaches the port.
            port: in the cookie's name, as browsers mix up the ports of a machine.
        """
        self._app = app
        self._token = token
        self._cookie = f"tokprune-camera-{port}"
        self._guarded = Guarded(self._let_in)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request or a WebSocket on, or refuse it."""
        if scope["type"] == "http":
            await self._guarded(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            # A WebSocket begins as a GET request, and is checked as one.
            asked = {**scope, "type": "http", "method": "GET"}
            checked = _Status()
            await Guarded(self._answer_ok)(asked, receive, checked)
            if checked.status == 200 and self._known(scope):
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})  # HTTP status 403

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await send_bytes(send, 405, b"Only GET is answered here.\n", "text/plain")
            return
        if self._token is None or self._known(scope):
            await self._app(scope, receive, send)
        elif self._shows_token(scope):
            await self._app(scope, receive, self._with_cookie(send))
        else:
            await send_bytes(send, 403, _NO_TOKEN.encode(), "text/plain")

    async def _answer_ok(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def _known(self, scope: Scope) -> bool:
        """Whether the browser has the token as a cookie."""
        if self._token is None:
            return True
        try:
            cookies = SimpleCookie(header(scope, "cookie") or "")
        except CookieError:
            return False
        shown = cookies.get(self._cookie)
        return shown is not None and _equal(shown.value, self._token)

    def _shows_token(self, scope: Scope) -> bool:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return self._token is not None and _equal(query.get("token", [""])[0], self._token)

    def _with_cookie(self, send: Send) -> Send:
        crumb = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", crumb.encode())]
            await send(message)

        return sending


class _Status:
    """Hears the status of an answer, and nothing else of it."""

    def __init__(self) -> None:
        self.status = 0

    async def __call__(self, message: Message) -> None:
        self.status = message.get("status", self.status)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            named = {name.encode() for name in HEADERS}
            kept = [field for field in message["headers"] if field[0] not in named]
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*kept, *ours]
        await send(message)

    return sending


def _equal(shown: str, token: str) -> bool:
    """Compare in a time that does not tell how much is right."""
    return compare_digest(shown.encode(), token.encode())
