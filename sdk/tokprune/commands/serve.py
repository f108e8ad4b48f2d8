"""`tokprune serve`: a bundle behind OpenAI's HTTP interface."""

import asyncio
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from tokprune.backends import Asked
from tokprune.budgets import parse_budget
from tokprune.errors import BackendUnavailable, RequestInvalid
from tokprune.loading import load
from tokprune.selectors import method_of
from tokprune.serving.app import application
from tokprune.serving.asking import Rules, served_way
from tokprune.serving.door import Door
from tokprune.serving.running import (
    address_of,
    bound,
    ended_by_signals,
    serve,
    url_of,
    web_server,
)
from tokprune.serving.state import BODY_LIMIT, Serving

if TYPE_CHECKING:
    pass

_NEEDED = ("starlette", "uvicorn")


@dataclass(frozen=True)
class Serve:
    """Answer OpenAI's chat completions over HTTP. There is no authentication."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    host: str = "127.0.0.1"
    """The address to listen at."""
    port: int = 8000
    """0 takes one that is free, and prints it."""
    allow_remote: bool = False
    """Listen at an address that other machines reach. Whoever connects can ask."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A name that the server is asked by, beside addresses, localhost and this machine's name;
    repeat for several."""
    allow_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A web page's origin (http://robot.local:3000) whose scripts may ask; repeat for several."""
    budget: str = "0.5"
    """Of requests that name none: a share (0.5), a count (128), mass:0.9, ttft:300ms,
    auto:300ms."""
    selector: str | None = None
    """How tokens are chosen where a request does not say; the bundle's default if not given."""
    encode: str = "full"
    """What the vision encoder is shown where a request does not say, as in `tokprune ask`."""
    pictures_first: bool = False
    """Put the pictures of a message before its words, for clients that send the words first: those
    before a picture are not heard when its vision tokens are chosen."""
    max_waiting: int = 8
    """Requests that may wait; more are refused with status 503."""
    max_new_tokens: int = 1024
    """The longest answer that a request may ask for. One that does not ask gets 128 at most."""
    body_limit: int = BODY_LIMIT
    """Bytes of a request at most; larger ones are refused with status 413."""
    quiet: bool = False
    """Do not print a line for each request on stderr."""
    backend: Asked = "auto"
    """What runs the graphs; auto takes the fastest that can."""
    threads: int | None = None
    """Threads of each graph."""


def run_serve(command: Serve) -> int:
    """Run `tokprune serve` until SIGINT or SIGTERM."""
    _check(command)
    budget = parse_budget(command.budget)
    address = address_of(command.host, allow_remote=command.allow_remote)
    sock = bound(address, command.port)
    with (
        sock,
        load(
            command.bundle,
            backend=command.backend,
            threads=command.threads,
            admission="reject",
            max_waiting=command.max_waiting,
            kv_slots=1,
            warmup=[budget],
        ) as vlm,
    ):
        vlm.model.check_encode(command.encode, command.selector)
        name = vlm.health().bundle
        rules = Rules(
            model=name,
            budget=budget,
            selector=command.selector,
            max_new_tokens=command.max_new_tokens,
            pictures_first=command.pictures_first,
            encode=command.encode,
        )
        serving = Serving(vlm, rules, Door(1 + command.max_waiting), command.body_limit)
        app = application(
            serving, allow_hosts=command.allow_host, allow_origins=command.allow_origin
        )
        server = web_server(app)
        with ended_by_signals(server), _logged(quiet=command.quiet):
            sock.listen()
            print(f"ready: {url_of(sock)}/v1 ({name} on {vlm.backend})", file=sys.stderr)
            if command.allow_remote:
                print("warning: there is no authentication; anyone may ask", file=sys.stderr)
            sys.stderr.flush()
            asyncio.run(serve(server, sock, serving.door))
    return 0


def _check(command: Serve) -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f"tokprune serve needs {' and '.join(missing)}: pip install 'tokprune[serve]'"
        )
    if command.selector is not None:
        method_of(command.selector)
    served_way(command.encode)
    for name, value, least in (
        ("--max-new-tokens", command.max_new_tokens, 1),
        ("--body-limit", command.body_limit, 1024),
        ("--port", command.port, 0),
    ):
        if value < least:
            raise RequestInvalid(f"{name} must be {least} or more, got {value}")


@contextmanager
def _logged(*, quiet: bool) -> Generator[None]:
    """Print a line for each request on stderr."""
    log = logging.getLogger("tokprune.serving")
    handler, before = logging.StreamHandler(), (log.level, log.propagate)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
