"""What listens to the camera page's server within a test: a browser's end, and a station's hub."""

import asyncio
import json
import threading
from typing import Any

from camera_page.client import Client
from camera_page.events import Hello
from starlette.websockets import WebSocketState


class Socket:
    """A browser's end; it takes nothing unless it is `free`."""

    def __init__(self) -> None:
        self.application_state = WebSocketState.CONNECTED
        self.texts: list[dict[str, Any]] = []
        self.pictures: list[bytes] = []
        self.free = asyncio.Event()
        self.free.set()

    async def send_text(self, text: str) -> None:
        await self.free.wait()
        self.texts.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        await self.free.wait()
        self.pictures.append(data)


def a_client(socket: Any, station: Any) -> Client:
    return Client(socket, station)


class Ears:
    """Hears what a station tells, from its thread."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._news = threading.Condition()

    def __call__(self, station: Any, told: Any) -> None:
        del station
        with self._news:
            self.told.append(told)
            self._news.notify_all()

    def wait_for(self, kind: type, count: int = 1) -> Any:
        def those() -> list[Any]:
            return [told for told in self.told if isinstance(told, kind)]

        with self._news:
            assert self._news.wait_for(lambda: len(those()) >= count, 20)
        return those()[count - 1]


def a_hello() -> Any:
    values: dict[str, Any] = {"selectors": [], "encodes": [], "presets": [], "longest": 9}
    names: Any = [name for name in Hello.__struct_fields__ if name not in values]
    return Hello(**values, **dict.fromkeys(names, ""))  # pyright: ignore[reportArgumentType]
