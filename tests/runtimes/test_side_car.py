"""Engines are loaded only if their side-car says that they were built here, from this graph."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tokprune_runtimes.errors import EngineStale, EngineUnavailable
from tokprune_runtimes.side_car import (
    SideCar,
    check_side_car,
    checked_engine,
    encode_side_car,
    side_car_path,
)

ENGINE = b"native code"
SOURCE = "5" * 64
FRESH = SideCar(
    engine="tensorrt-rtx",
    version="1.7.1.116",
    sm=["sm86", "sm89"],
    cuda=None,
    driver=None,
    source_sha256=SOURCE,
    bytes=len(ENGINE),
    sha256=hashlib.sha256(ENGINE).hexdigest(),
    profiles=[{"x": [[1, 0], [1, 4], [1, 8]]}],
    weight_streaming=False,
    created="2026-11-21T00:00:00+00:00",
    seconds=1.5,
    warnings=["slow"],
)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trt = SimpleNamespace(Builder=object, __version__="1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    path = tmp_path / "llm.engine"
    path.write_bytes(ENGINE)
    side_car_path(path).write_bytes(encode_side_car(FRESH))
    return path


def test_a_fresh_engine_passes(engine: Path) -> None:
    assert side_car_path(engine) == engine.parent / "llm.json"
    for sm in ("sm86", "sm89", None):
        assert check_side_car(engine, "tensorrt-rtx", SOURCE, sm) == FRESH


def test_what_is_yielded_are_the_bytes_that_were_checked(engine: Path) -> None:
    with checked_engine(engine, "tensorrt-rtx", SOURCE, None) as (_, data):
        replacement = engine.with_name("other")
        replacement.write_bytes(b"evil code!!")
        replacement.replace(engine)
        assert bytes(data) == ENGINE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "tensorrt"}, "was built for tensorrt, not for tensorrt-rtx"),
        ({"version": "1.6.0"}, r"built by tensorrt-rtx 1\.6\.0, 1\.7\.1\.116 is installed"),
        ({"sm": ["sm80", "sm86"]}, "was built for sm80, sm86, this GPU is sm89"),
        ({"source_sha256": "6" * 64}, "was built from another graph than the bundle's"),
        ({"bytes": 12}, "has 11 bytes, its side-car says 12"),
        ({"sha256": "0" * 64}, "is damaged: its bytes are not the ones that were built"),
    ],
)
def test_each_difference_has_its_message(
    engine: Path, changes: dict[str, Any], message: str
) -> None:
    changed = msgspec.structs.replace(FRESH, **changes)
    side_car_path(engine).write_bytes(encode_side_car(changed))
    with pytest.raises(EngineStale, match=message + r".*tokprune build") as caught:
        check_side_car(engine, "tensorrt-rtx", SOURCE, "sm89")
    assert str(engine) in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff\xfe", b'{"engine": "tensorrt"}', b'{"engine": 3}']
)
def test_a_foreign_side_car_is_refused(engine: Path, text: bytes) -> None:
    side_car_path(engine).write_bytes(text)
    with pytest.raises(EngineStale, match=r"a side-car that cannot be read \(llm\.json"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)


def test_unknown_keys_are_refused(engine: Path) -> None:
    text = encode_side_car(FRESH).replace(b'"seconds"', b'"minutes": 1, "seconds"')
    side_car_path(engine).write_bytes(text)
    with pytest.raises(EngineStale, match="minutes"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)


def test_missing_files_are_told_apart(engine: Path) -> None:
    side_car_path(engine).unlink()
    with pytest.raises(EngineStale, match=r"has no side-car \(llm\.json is missing\)"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)
    engine.unlink()
    with pytest.raises(EngineStale, match="was not built yet"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)
    side_car_path(engine).write_bytes(encode_side_car(FRESH))
    with pytest.raises(EngineStale, match="is missing"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)


def test_every_damaged_byte_is_found(engine: Path) -> None:
    for place in range(len(ENGINE)):
        data = bytearray(ENGINE)
        data[place] ^= 1
        engine.write_bytes(data)
        with pytest.raises(EngineStale, match="is damaged"):
            check_side_car(engine, "tensorrt-rtx", SOURCE, None)


def test_an_empty_engine_is_refused(engine: Path) -> None:
    engine.write_bytes(b"")
    empty = msgspec.structs.replace(FRESH, bytes=0, sha256=hashlib.sha256(b"").hexdigest())
    side_car_path(engine).write_bytes(encode_side_car(empty))
    with pytest.raises(EngineStale, match="is empty"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)


def test_an_engine_that_is_not_installed_is_told_first(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'tokprune\[tensorrt-rtx\]'"):
        check_side_car(engine, "tensorrt-rtx", SOURCE, None)
