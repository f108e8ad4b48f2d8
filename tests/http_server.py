"""`tokprune serve` within the test's process: a real server on a free port, its VLM at hand."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokprune
from tokprune.budgets import KeepRatio
from tokprune.control import Control
from tokprune.serving.app import application
from tokprune.serving.asking import Rules
from tokprune.serving.door import Door
from tokprune.serving.running import bound, serve, url_of, web_server
from tokprune.serving.state import Serving
from tokprune.vlm import VLM

MODEL = "demo"
MOST_TOKENS = 4000
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Served:
    """A running server."""

    vlm: VLM
    serving: Serving
    url: str
    port: int
    server: Any  # uvicorn's

    def post(self, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send bytes as they are to the completions; return the status and the JSON."""
        with self.connected() as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            named = {"content-type": "application/json", **named}
            connection.request("POST", "/v1/chat/completions", body, named)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        with self.connected() as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    @contextmanager
    def connected(self) -> Generator[http.client.HTTPConnection]:
        """Connect, for a block."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep the worker from answering for a block."""
        worker = self.vlm._runtime.worker
        job = _Holding()
        ticket = worker.admit(Control())
        worker.start(ticket, job)
        assert job.began.wait(PATIENCE_S)
        try:
            yield
        finally:
            job.release.set()
        eventually(lambda: not worker.running)


class _Holding:
    """A job that lasts until it is released."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.release = threading.Event()

    def run(self) -> None:
        self.began.set()
        assert self.release.wait(PATIENCE_S)

    def fail(self, error: Exception) -> None:
        self.began.set()


@contextmanager
def served(
    bundle: Path,
    *,
    max_waiting: int = 8,
    body_limit: int = 4 * 2**20,
    endless: bool = False,
    allow_hosts: tuple[str, ...] = (),
    allow_origins: tuple[str, ...] = (),
) -> Generator[Served]:
    """Serve a bundle for a block; `endless`: its answers do not end before their bound."""
    with tokprune.load(
        bundle, backend="cpu", threads=1, admission="reject", max_waiting=max_waiting, kv_slots=1
    ) as vlm:
        if endless:
            object.__setattr__(vlm.model.llm, "eos", frozenset[int]())
        rules = Rules(MODEL, KeepRatio(0.5), None, MOST_TOKENS)
        serving = Serving(vlm, rules, Door(1 + max_waiting), body_limit)
        app = application(serving, allow_hosts=allow_hosts, allow_origins=allow_origins)
        sock = bound("127.0.0.1", 0)
        sock.listen()
        port = sock.getsockname()[1]
        server, url = web_server(app), url_of(sock)
        thread = threading.Thread(target=lambda: asyncio.run(serve(server, sock, serving.door)))
        thread.start()
        try:
            yield Served(vlm, serving, url, port, server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something is so; fail if it never is."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "this never came to be"
        time.sleep(0.005)
