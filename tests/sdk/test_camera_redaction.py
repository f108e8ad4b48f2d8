"""Passwords of cameras: 200 shapes of addresses, and every sink that could show them."""

import copy
import dataclasses
import gc
import inspect
import json
import logging
import os
import pprint
import subprocess
import sys
import traceback
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from secret_urls import leaks, pieces, shapes

from tokprune import RequestInvalid
from tokprune.camera.naming.redaction import Secret
from tokprune.camera.naming.sources import Source, parse_source
from tokprune.camera.reading.opening import opener_of
from tokprune.camera.reading.reader import SourceGone

SHAPES = shapes()
SINKS: dict[str, Callable[[Any], str | bytes]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "padded": lambda it: f"{it!s:>40}{it!r:<40}",
    "percent": lambda it: "%s %r" % (it, it),  # noqa: UP031
    "pprint": pprint.pformat,
    "members": lambda it: repr(inspect.getmembers(it)),
    "json": lambda it: json.dumps(it, default=str),
    "ascii": ascii,
    "copy": lambda it: repr((copy.copy(it), copy.deepcopy(it))),
    "dir": lambda it: repr([getattr(it, name, None) for name in dir(it)]),
}


def test_there_are_200_shapes_and_more() -> None:
    assert len({url for url, _ in SHAPES}) == len(SHAPES) >= 200


def test_no_sink_shows_a_secret() -> None:
    text = "rtsp://admin:hunter2@10.0.0.5/"
    secret = Secret(text)
    assert secret.reveal() == text
    for name, sink in SINKS.items():
        assert not leaks(sink(secret), ["hunter2", "admin", "10.0.0.5"]), name
    assert secret == Secret(text) != Secret(text + "x")
    assert secret != text
    assert len({secret, Secret(text)}) == 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        secret.reveal = str  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="cannot be changed"):
        del secret.reveal
    with pytest.raises(TypeError, match="vars"):
        vars(secret)


@pytest.mark.parametrize("protocol", range(6))
def test_a_secret_is_not_serialised(protocol: int) -> None:
    secret = Secret("rtsp://admin:hunter2@10.0.0.5/")
    with pytest.raises(TypeError, match="not written anywhere") as refused:
        secret.__reduce_ex__(protocol)  # what serialisers and deep copies ask for
    assert not leaks(told(refused.value), ["hunter2"])
    with pytest.raises(TypeError, match="not written anywhere"):
        parse_source("rtsp://admin:hunter2@10.0.0.5/").address.__reduce_ex__(protocol)


def test_a_source_shows_nothing_in_any_sink() -> None:
    parsed = 0
    for url, secrets in SHAPES:
        source = tried(lambda: parse_source(url))  # noqa: B023 - called at once
        if isinstance(source, RequestInvalid):
            assert_silent(source, url, secrets)
            continue
        parsed += 1
        for name, sink in {**SINKS, "vars": lambda it: repr(vars(it))}.items():
            assert not leaks(sink(source), secrets), (name, url)
        for made in (dataclasses.asdict(source), dataclasses.astuple(source)):
            assert not leaks(json.dumps(made, default=str) + repr(made), secrets), url
        again = dataclasses.replace(source, name="kitchen")
        assert not leaks(repr(again) + source.name + source.shown + source.kind, secrets), url
    assert parsed > 100


def test_a_failed_opening_shows_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av", reason="av (PyAV) is not installed")
    caplog.set_level(0)
    caplog.set_level(1, logger="libav")  # it is limited to warnings otherwise
    before = av.logging.get_level()
    av.logging.set_level(av.logging.TRACE)  # what a user may do who looks for a mistake
    try:
        opened = _open_all(caplog)
    finally:
        av.logging.set_level(before)
    every = [secret for _, secrets in SHAPES for secret in secrets]
    shown = capfd.readouterr()
    assert not leaks(shown.out + shown.err + caplog.text, every)
    assert opened > 100


def _open_all(caplog: pytest.LogCaptureFixture) -> int:
    """Open everything that can be opened in vain; return how many that were."""
    log, opened = logging.getLogger("robot"), 0
    for url, secrets in SHAPES:
        try:
            source = parse_source(url)
        except RequestInvalid:
            continue
        if source.kind != "network":
            continue
        opened += 1
        gone = tried(opener_of(source, open_timeout_s=2.0))
        assert isinstance(gone, SourceGone), url
        log.error("camera %s: %s", source, gone, exc_info=gone)
        assert_silent(gone, url, secrets)
        assert source.shown in str(gone)
    assert len(caplog.records) >= opened
    return opened


def test_ffmpeg_itself_prints_nothing(tmp_path: Path) -> None:
    """Even where its own log goes to the terminal, at the level that people set."""
    pytest.importorskip("av", reason="av (PyAV) is not installed")
    program = tmp_path / "program.py"
    program.write_text(
        "import av, sys\n"
        "av.logging.restore_default_callback()\n"
        "av.logging.set_libav_level(av.logging.DEBUG)\n"
        "from secret_urls import shapes\n"
        "from tokprune.camera.reading.opening import opener_of\n"
        "from tokprune.camera.reading.reader import SourceGone\n"
        "from tokprune.camera.naming.sources import parse_source\n"
        "from tokprune import RequestInvalid\n"
        "for url, _ in shapes():\n"
        "    try:\n"
        "        opener_of(parse_source(url), open_timeout_s=2.0)().close()\n"
        "    except (RequestInvalid, SourceGone) as error:\n"
        "        print(error, file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, program]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"connection refused" in done.stderr
    for _, secrets in SHAPES:
        assert not leaks(done.stdout + done.stderr, secrets)


def test_a_camera_that_answers_makes_nothing_known(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    av = pytest.importorskip("av", reason="av (PyAV) is not installed")
    from rtsp_server import rtsp
    from stream_pictures import Show

    secrets = ["Zq7aHunterX", b64encode(b"admin:Zq7aHunterX").decode()]
    caplog.set_level(0)
    caplog.set_level(1, logger="libav")  # it is limited to warnings otherwise
    before = av.logging.get_level()
    av.logging.set_level(av.logging.TRACE)
    try:
        for scheme in ("Basic", "Digest MD5"):
            with rtsp(Show(), login=("admin", "Zq7aHunterX"), scheme=scheme) as camera:
                reader = opener_of(parse_source(camera.url("admin:Zq7aHunterX")))()
                for _ in range(3):
                    reader.read()
                assert not leaks(repr(reader) + repr(vars(reader)), secrets)
                reader.close()
                with pytest.raises(SourceGone, match="not authorised") as gone:
                    opener_of(parse_source(camera.url("admin:Zq7aHunterX2")))()
                assert not leaks(told(gone.value), secrets)
    finally:
        av.logging.set_level(before)
    shown = capfd.readouterr()
    assert not leaks(shown.out + shown.err + caplog.text, secrets)


def test_the_environment_holds_what_no_message_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, secrets in SHAPES:
        if "\x00" in url:
            continue
        monkeypatch.setenv("KITCHEN_CAMERA", url)
        try:
            text = repr(parse_source("env:KITCHEN_CAMERA"))
        except RequestInvalid as refused:
            text = str(refused) + told(refused)
        assert not leaks(text, secrets), url


def test_the_text_itself_is_in_no_object_that_can_be_reached() -> None:
    source = parse_source("rtsp://admin:hunter2Zq7@10.0.0.5/live")
    assert isinstance(source, Source)
    seen: list[Any] = [source, *vars(source).values()]
    assert not [it for it in seen if isinstance(it, str) and "hunter2Zq7" in it]
    # Dictionaries of other libraries may look anything up when they are asked.
    assert not [it for it in gc.get_objects() if type(it) is dict and "hunter2Zq7" in it]


def test_the_test_would_find_a_leak() -> None:
    url, secrets = SHAPES[0]
    error = ValueError(f"cannot open {url}")
    assert leaks(told(error), secrets)
    with pytest.raises(AssertionError):
        assert_silent(error, url, secrets)
    assert leaks("xx Wj5b yy", pieces("Zq7a/Wj5b"))


def tried(act: Callable[[], Any]) -> Any:
    """Return what a function returns, or what it raises."""
    try:
        return act()
    except (RequestInvalid, SourceGone) as error:
        return error


def assert_silent(error: BaseException, url: str, secrets: list[str]) -> None:
    """Fail if an error shows a secret in any way, or carries one that does."""
    for name, sink in {**SINKS, "traceback": told}.items():
        assert not leaks(sink(error), secrets), (name, url)
    assert error.__context__ is None
    assert error.__cause__ is None


def told(error: BaseException) -> str:
    """Return the whole traceback of an error, with the local variables of our frames."""
    parts: list[str] = []
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    links: list[traceback.TracebackException | None] = [whole, whole.__cause__, whole.__context__]
    for link in links:
        if link is None:
            continue
        ours = [frame for frame in link.stack if "/sdk/tokprune/" in frame.filename]
        parts += [f"{frame.name} {frame.line} {frame.locals}" for frame in ours]
        parts += link.format_exception_only()
    return "\n".join(parts)
