"""`tokprune serve` as a program: how it begins, what it tells, how it ends."""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from programs import run_freely

from tokprune.commands.serve import Serve, run_serve
from tokprune.errors import BackendUnavailable, BundleInvalid, RequestInvalid
from tokprune.serving.running import address_of, bound

needs_server = pytest.mark.usefixtures("installed")
TESTS = Path(__file__).parents[1]
NOWHERE = Path("/nowhere")
SECRETS = ("sk-SECRET-KEY", "SECRET-QUERY", "SECRET-WORDS", "SECRET-PASSWORD")


@pytest.fixture
def installed() -> None:
    pytest.importorskip("starlette", reason="Starlette is not installed (extra serve)")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")


@contextmanager
def serving(*arguments: str, program: str = "guarded_serve.py") -> Generator[tuple[Any, str]]:
    """Run the command on a free port for a block; yields the process and the URL."""
    packages = Path(sys.modules["tokprune"].__file__ or "").parents[1]
    path = os.pathsep.join([*sys.path, str(packages)])
    command = [sys.executable, str(TESTS / program), "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--backend", "cpu", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        ready = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+)/v1 \(.+ on cpu\)\n", line)
        assert ready, line + process.stderr.read()
        yield process, ready[1]
    finally:
        process.kill()
        process.communicate()


def ended(process: Any, number: int) -> str:
    """End the server by a signal; return what it told."""
    process.send_signal(number)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 0, told
    return told


def post(url: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    named = {"content-type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@needs_server
@pytest.mark.demo
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_connects_to_nothing_and_ends_well(demo_bundle: Path, number: int) -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the guard knows no connect call here")
    with serving(str(demo_bundle)) as (process, url):
        asked = f"{url}/v1/chat/completions"
        status, body = post(asked, {"messages": [{"role": "user", "content": "hello"}]})
        assert (status, body["model"]) == (200, demo_bundle.resolve().name)
        for address in ("http://localhost:1/x.png", "https://example.com/x.png"):
            part = {"type": "image_url", "image_url": {"url": address}}
            status, body = post(asked, {"messages": [{"role": "user", "content": [part]}]})
            assert (status, body["error"]["code"]) == (400, "picture_invalid")
        told = ended(process, number)
    assert re.search(r"POST /v1/chat/completions 200 \d+ ms", told)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def test_whoever_connects_under_the_guard_is_found_out() -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the guard knows no connect call here")
    assert run_freely("guarded_serve.py", "planted").returncode == -signal.SIGSYS


@needs_server
@pytest.mark.demo
def test_it_opens_one_socket_and_logs_no_secret(demo_bundle: Path) -> None:
    key, query, words, password = SECRETS
    with serving(str(demo_bundle)) as (process, url):
        listening = _listening(process.pid)
        picture = {"type": "image_url", "image_url": {"url": f"http://u:{password}@h/x.png"}}
        for content in (words, [picture]):
            asked = f"{url}/v1/chat/completions?key={query}"
            body = {"messages": [{"role": "user", "content": content}], "user": words}
            post(asked, body, authorization=f"Bearer {key}")
        post(f"{url}/{query}/{query}", {}, cookie=key, host=f"{query}.example")
        told = ended(process, signal.SIGTERM)
    assert len(listening) == 1
    assert len(re.findall(r"POST .* (200|400|403) \d+ ms", told)) == 3
    assert not [secret for secret in SECRETS if secret in told]


def _listening(pid: int) -> list[str]:
    """Return the sockets of a process that wait for others, TCP and UDP."""
    inodes = set[str]()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        inodes.update(re.findall(r"socket:\[(\d+)\]", str(entry.readlink())))
    rows: list[str] = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/{pid}/net/{name}")
        if table.exists():
            rows += [row for row in table.read_text().splitlines()[1:] if row.split()[9] in inodes]
    return rows


@needs_server
@pytest.mark.demo
def test_quiet_prints_no_line_for_a_request(demo_bundle: Path) -> None:
    with serving(str(demo_bundle), "--quiet") as (process, url):
        post(f"{url}/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
        assert ended(process, signal.SIGTERM) == ""


@needs_server
def test_a_broken_bundle_is_found_before_the_port_opens(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid):
        run_serve(Serve(tmp_path, port=0))


@needs_server
def test_a_taken_port_is_found_before_the_bundle_is_loaded() -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestInvalid, match=f"port {port} .*--port 0"):
            run_serve(Serve(NOWHERE, port=port))


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokprune.commands.serve.find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[serve\]'"):
        run_serve(Serve(NOWHERE))


@needs_server
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "--allow-remote"),
        ({"host": "example.com"}, "takes an address"),
        ({"port": -1}, "--port must be 0 or more"),
        ({"port": 70000}, "--port 0"),
        ({"budget": "half"}, "Cannot read the budget"),
        ({"selector": "relevence"}, "Did you mean"),
        ({"encode": "lasy"}, "Did you mean 'lazy'"),
        ({"encode": "follow:8"}, "know nothing of each other"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"body_limit": 0}, "--body-limit"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestInvalid, match=words):
        run_serve(Serve(NOWHERE, **options))


def test_only_addresses_are_taken_and_remote_ones_when_allowed() -> None:
    assert address_of("localhost", allow_remote=False) == "127.0.0.1"
    assert address_of("::1", allow_remote=False) == "::1"
    assert address_of("0.0.0.0", allow_remote=True) == "0.0.0.0"
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(RequestInvalid, match="there is no authentication"):
            address_of(host, allow_remote=False)
