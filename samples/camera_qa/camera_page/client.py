"""One browser. It gets what is newest; nothing waits in a queue for it, so it slows nobody down."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from camera_page.photos import Photo
from camera_page.station import Station

LIVE_FPS = 12
POLL_S = 0.02
MOST_WAITING = 400  # texts: of answers that were never fetched the oldest are let go
Key = tuple[object, ...]  # texts with the same key replace each other
SOURCES: Key = ("sources",)  # comes before what is said of them


class Client:
    """Sends texts and pictures to a browser, at the speed at which it takes them."""

    def __init__(self, socket: WebSocket, station: Callable[[int], Station | None]) -> None:
        self._socket = socket
        self._station = station
        self._texts: dict[Key, str] = {}
        self._photo: Photo | None = None
        self._news = asyncio.Event()
        self._drawn = asyncio.Event()  # the browser has drawn the picture before
        self._drawn.set()
        self._watched: int | None = None
        self._asked: Photo | None = None  # those that were sent last
        self._live: Photo | None = None
        self._live_s = 0.0

    def text(self, key: Key, text: str) -> None:
        """Send a text soon; one with the same key that still waits is replaced."""
        if key != SOURCES:
            self._texts.pop(key, None)  # to the end: it came after the others
        self._texts[key] = text
        if len(self._texts) > MOST_WAITING:
            self._texts.pop(next(iter(self._texts)))
        self._news.set()

    def forget(self, key: Key) -> None:
        """Do not send what waits under a key."""
        self._texts.pop(key, None)

    def watch(self, source: int) -> None:
        """Send pictures of this source from now on."""
        if source != self._watched:
            self._watched, self._asked, self._live, self._live_s = source, None, None, 0.0

    def drawn(self) -> None:
        """Take note that the browser has drawn the last picture."""
        self._drawn.set()

    async def send(self) -> None:
        """Send until the browser is gone."""
        shooting = asyncio.create_task(self._shoot())
        try:
            with suppress(WebSocketDisconnect, RuntimeError):  # Starlette's, of a closed socket
                while self._socket.application_state == WebSocketState.CONNECTED:
                    await self._news.wait()
                    self._news.clear()
                    await self._send_waiting()
        finally:
            shooting.cancel()
            with suppress(asyncio.CancelledError):
                await shooting

    async def _send_waiting(self) -> None:
        while self._texts or self._photo:
            while self._texts:
                text = self._texts.pop(next(iter(self._texts)))
                await self._socket.send_text(text)
            if self._photo is not None:
                photo, self._photo = self._photo, None
                await self._socket.send_bytes(photo.packed())

    async def _shoot(self) -> None:
        """Take the next picture whenever the browser has drawn the one before."""
        while True:
            await self._drawn.wait()
            photo = await self._next()
            if photo is None:
                await asyncio.sleep(POLL_S)
                continue
            self._drawn.clear()
            self._photo = photo
            self._news.set()

    async def _next(self) -> Photo | None:
        """Return a picture that the browser has not got yet; those of questions come first."""
        watched = self._watched
        station = None if watched is None else self._station(watched)
        if station is None:
            return None
        if station.asked is not None and station.asked is not self._asked:
            self._asked = asked = station.asked
            await asyncio.to_thread(lambda: asked.jpeg)
            return asked
        if monotonic() < self._live_s + 1 / LIVE_FPS:
            return None
        live = await asyncio.to_thread(station.live)
        if live is None or live is self._live or watched != self._watched:
            return None
        await asyncio.to_thread(lambda: live.jpeg)
        self._live, self._live_s = live, monotonic()
        return live
