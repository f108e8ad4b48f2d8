"""The page as an ASGI application, and the server that runs it until it is told to end."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import tokprune
from camera_page.client import Client
from camera_page.events import Refused, Taken, WebcamReady, explained, packed
from camera_page.guards import PageGuard
from camera_page.hub import MOST_WEBCAMS, Hub
from camera_page.messages import FromPage, Seen, Watch, Webcam, read_message
from camera_page.station import Station
from tokprune.pictures import load_picture
from tokprune.serving.asgi import App
from tokprune.serving.running import ended_by_signals

STATIC = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_CLIENTS = 16
WEBCAM_BYTES, WEBCAM_PIXELS = 1 << 20, 4_000_000
ENDING_S = 1  # for browsers to say goodbye
_log = logging.getLogger("camera_page")


def application(hub: Hub, *, token: str | None, port: int) -> App:
    """Return the page: three kinds of address, and nothing that a request could name besides."""
    files: Mapping[str, Response] = {
        path.name: Response(path.read_bytes(), media_type=MEDIA_TYPES[path.suffix])
        for path in STATIC.iterdir()
        if path.suffix in MEDIA_TYPES
    }
    index = Response((STATIC / "index.html").read_bytes(), media_type="text/html")
    clients: list[WebSocket] = []

    async def page(request: Request) -> Response:
        del request
        return index

    async def file(request: Request) -> Response:
        return files.get(request.path_params["name"]) or Response("Not found\n", 404)

    async def live(socket: WebSocket) -> None:
        if len(clients) >= MOST_CLIENTS:
            await socket.close(1013)  # try again later
            return
        await socket.accept()
        clients.append(socket)
        try:
            await Visit(hub, socket).run()
        finally:
            clients.remove(socket)

    routes = [
        Route("/", page),
        Route("/static/{name}", file),
        WebSocketRoute("/live", live),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return PageGuard(app, token=token, port=port)


class Visit:
    """One browser from its coming to its going."""

    def __init__(self, hub: Hub, socket: WebSocket) -> None:
        self._hub = hub
        self._socket = socket
        self._client = Client(socket, hub.station)
        self._pushed: tokprune.PushedFrames | None = None
        self._webcam: Station | None = None

    async def run(self) -> None:
        """Talk with it until it goes."""
        sending = asyncio.create_task(self._client.send())
        self._hub.join(self._client)
        try:
            await self._hear()
        finally:
            self._hub.leave(self._client)
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            await self._stop_webcam()

    async def _hear(self) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                data = message.get("bytes")
                try:
                    if data is not None:
                        await self._show(data)
                    else:
                        await self._obey(read_message(message.get("text") or ""))
                except tokprune.TokpruneError as error:
                    refused = Refused("message", *explained(error))
                    self._client.text(("refused",), packed(refused))

    async def _obey(self, message: FromPage) -> None:
        match message:
            case Seen():
                self._client.drawn()
            case Watch():
                self._client.watch(message.source)
            case Webcam():
                await (self._start_webcam() if message.on else self._stop_webcam())
            case _:
                await self._hub.obey(self._client, message)

    async def _show(self, jpeg: bytes) -> None:
        """Take a picture of the browser's camera."""
        pushed = self._pushed
        if pushed is None:
            return
        if len(jpeg) > WEBCAM_BYTES:
            raise tokprune.PictureInvalid(
                f"A picture of the browser's camera has {WEBCAM_BYTES} bytes at most, got "
                f"{len(jpeg)}"
            )
        came_s = monotonic()
        try:
            picture = await asyncio.to_thread(load_picture, jpeg, max_pixels=WEBCAM_PIXELS)
            pushed.push(picture, captured_s=came_s)
        finally:
            self._client.text(("taken",), packed(Taken()))

    async def _start_webcam(self) -> None:
        if self._webcam is not None:
            return
        if self._hub.webcams >= MOST_WEBCAMS:
            raise tokprune.Busy(f"{MOST_WEBCAMS} browsers show their cameras already")
        self._pushed = tokprune.PushedFrames()
        camera = tokprune.open_camera(self._pushed, name="browser camera")
        self._webcam = self._hub.add(camera)
        self._hub.webcams += 1
        self._client.text(("webcam",), packed(WebcamReady(self._webcam.id)))

    async def _stop_webcam(self) -> None:
        station, self._webcam, self._pushed = self._webcam, None, None
        if station is not None:
            self._hub.webcams -= 1
            await self._hub.remove(station)


async def run(
    sock: socket.socket,
    make_hub: Callable[[], Hub],
    cameras: Sequence[tokprune.Camera],
    *,
    token: str | None,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGINT or SIGTERM; cameras and watchers end with it."""
    hub = make_hub()
    looking: asyncio.Task[None] | None = None
    try:
        for camera in cameras:
            hub.add(camera)
        looking = asyncio.create_task(hub.look_after())
        server = _server(application(hub, token=token, port=sock.getsockname()[1]))
        ending = asyncio.create_task(_close_early(server, hub))
        with ended_by_signals(server):
            ready()
            await server.serve(sockets=[sock])
        server.should_exit = True
        await ending
    finally:
        if looking is not None:
            looking.cancel()
        await hub.close()


async def _close_early(server: uvicorn.Server, hub: Hub) -> None:
    """End the watchers while browsers still say goodbye."""
    while not server.should_exit:
        await asyncio.sleep(0.05)
    await hub.close()


def _server(app: App) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http="h11",
        ws="websockets-sansio",
        ws_max_size=WEBCAM_BYTES + 1024,
        ws_per_message_deflate=False,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=8 * MOST_CLIENTS,
        timeout_graceful_shutdown=ENDING_S,
    )
    return uvicorn.Server(config)
