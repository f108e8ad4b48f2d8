"""The body of a HTTP answer as a file that FFmpeg reads, so that it never sees the address.

Proxies are not used: cameras are near. The certificate of https:// is verified.
"""

import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from tokprune.camera.naming.redaction import Secret
from tokprune.camera.naming.sources import Source
from tokprune.camera.reading.av_errors import words_for
from tokprune.camera.reading.http_login import authorization
from tokprune.camera.reading.plugs import Plug
from tokprune.camera.reading.reader import SourceGone

_MOST_HOPS = 6  # redirections, and one answer to who is there
_HEAD_BYTES = 1024  # of the first part of several
_REDIRECTIONS = (301, 302, 303, 307, 308)
_STATUS = {
    401: "not authorised: check user name and password",
    403: "access is forbidden: check user name and password",
    404: "there is no such stream: check the path",
}
_NO_VIDEO = {  # beginnings of content types
    "image/": "it gives one picture, no stream: take the address of its MJPEG or RTSP stream",
    "text/": "it gives a web page, no video: take the address of its MJPEG or RTSP stream",
    "application/vnd.apple.mpegurl": "it gives a playlist (HLS): take its RTSP stream",
    "application/x-mpegurl": "it gives a playlist (HLS): take its RTSP stream",
}


class _Goal(NamedTuple):
    """Where to ask, and as whom."""

    url: Secret  # without the login
    login: Secret  # percent-encoded `user:password`; may be empty
    authorization: Secret  # the header's value; may be empty


class HttpStream:
    """What a server sends. `read` returns what is there; after the end, `failure` says why."""

    def __init__(
        self, connection: HTTPConnection, response: HTTPResponse, plug: Plug, read_timeout_s: float
    ) -> None:
        self.content_type = response.getheader("Content-Type", "").strip().lower()
        # Pictures that FFmpeg holds back: with lengths of parts it knows where they end.
        self.held = 0 if self.content_type.startswith("multipart/") else 2
        self._started = False
        self.failure = ""  # empty: the server ended the stream
        self.expires_s = monotonic() + read_timeout_s  # of what is being read
        self._connection, self._response, self._plug = connection, response, plug
        self._read_timeout_s = read_timeout_s

    def read(self, size: int) -> bytes:
        """Wait for bytes and return them, at most `size`. Empty at the end."""
        # An exception would go through FFmpeg, which may read again before it is raised.
        if not self.failure and monotonic() > self.expires_s:
            self.failure = f"no whole picture came for {self._read_timeout_s:g} s"
        if self.failure:
            return b""
        try:
            data = self._response.read1(size)
            if not self._started and b"content-length" not in data[:_HEAD_BYTES].lower():
                self.held = 2
            self._started = True
            return data
        except TimeoutError:
            self.failure = f"nothing came for {self._read_timeout_s:g} s"
        except Exception as error:
            self.failure = _words(error)
        return b""

    def cut(self) -> None:
        """End a `read` that waits, from another thread."""
        self._plug.cut()

    def close(self) -> None:
        """Close the connection."""
        self._plug.close()
        self._response.close()
        self._connection.close()


def open_http(source: Source, open_timeout_s: float, read_timeout_s: float) -> HttpStream:
    """Ask for a stream, and answer who is there, where that is asked.

    Raises:
        SourceGone: the server cannot be reached, refuses, or gives something else than video.
    """
    end_s = monotonic() + open_timeout_s
    goal = _first_goal(source)
    for _ in range(_MOST_HOPS):
        result = _ask(goal, end_s, read_timeout_s)
        if isinstance(result, HttpStream):
            return result
        if isinstance(result, str):
            raise SourceGone(f"{source.shown}: {result}")
        goal = result
    raise SourceGone(f"{source.shown}: the server redirects again and again")


def _first_goal(source: Source) -> _Goal:
    parts = urlsplit(source.address.reveal())
    login, _, place = parts.netloc.rpartition("@")
    url = parts._replace(netloc=place).geturl()
    return _Goal(Secret(url), Secret(login), Secret(""))


def _ask(goal: _Goal, end_s: float, read_timeout_s: float) -> HttpStream | _Goal | str:
    """Return the stream, or where to ask next, or why there is none."""
    parts = urlsplit(goal.url.reveal())
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    left_s = max(0.01, end_s - monotonic())
    connection = kind(parts.hostname or "", parts.port, timeout=left_s)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": b"tokprune", "Accept": b"*/*"}
    if goal.authorization.reveal():
        headers["Authorization"] = goal.authorization.reveal().encode()
    plug: Plug | None = None
    try:
        connection.connect()
        sock: socket.socket = connection.sock
        plug = Plug(sock.fileno())
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        sock.settimeout(read_timeout_s)
    except Exception as error:
        connection.close()
        if plug:
            plug.close()
        return _words(error)
    result = _next(goal, response, path)
    if result is None:
        return HttpStream(connection, response, plug, read_timeout_s)
    plug.close()
    response.close()
    connection.close()
    return result


def _next(goal: _Goal, response: HTTPResponse, path: str) -> _Goal | str | None:
    """Return where to ask next, or why there is no stream, or None if this is one."""
    status = response.status
    if status in _REDIRECTIONS:
        return _redirected(goal, response.getheader("Location", ""))
    if status == 401 and goal.login.reveal() and not goal.authorization.reveal():
        user, _, password = goal.login.reveal().partition(":")
        asked = response.headers.get_all("WWW-Authenticate") or []
        login = (unquote(user), unquote(password))
        said = authorization(asked, login, "GET", path)
        return goal._replace(authorization=Secret(said)) if said else _STATUS[401]
    if status != 200:
        return _STATUS.get(status, f"the server refused the request (status {status})")
    kind = response.getheader("Content-Type", "").strip().lower()
    return next((words for begin, words in _NO_VIDEO.items() if kind.startswith(begin)), None)


def _redirected(goal: _Goal, location: str) -> _Goal | str:
    """Return the new goal. Another server is not told who asks."""
    old = urlsplit(goal.url.reveal())
    new = old
    try:
        new = urlsplit(urljoin(goal.url.reveal(), location))
        usable = new.scheme in ("http", "https") and bool(new.hostname) and new.port != 0
    except ValueError:  # of brackets and ports that are none
        usable = False
    if not usable:
        return "the server redirects to something else than http:// or https://"
    same = (old.scheme, old.netloc) == (new.scheme, new.netloc)
    login = goal.login if same else Secret("")
    place = new.netloc.rpartition("@")[2]
    return _Goal(Secret(new._replace(netloc=place).geturl()), login, Secret(""))


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted by this machine"
    if isinstance(error, ssl.SSLError):
        return "no secure connection can be made"
    if isinstance(error, socket.gaierror):
        return "its host name is not known"
    if isinstance(error, HTTPException):
        return "it does not speak HTTP"
    return words_for(error, "network")
