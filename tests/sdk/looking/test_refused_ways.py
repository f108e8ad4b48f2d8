"""Ways to look that can never be are refused before anything runs, by whatever asks for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stub_model import Stub, a_model, a_picture, a_vlm

import tokprune
from tokprune import Clip, Following, RequestInvalid, Watcher
from tokprune.commands import chat, serve
from tokprune.looking import Ways
from tokprune.model import Model
from tokprune.vlm import VLM

CLIP = Clip(np.zeros((8, 32, 48, 3), np.uint8), 4.0)
HAS = "full, lazy, repeats, auto"


def in_parts() -> Model:
    """One whose pictures have parts that may be left out."""
    model = a_model(Stub())
    return replace(model, processor=replace(model.processor, ways=Ways(crops=True)))


@pytest.fixture
def camera() -> Iterator[tokprune.Camera]:
    with tokprune.open_camera(tokprune.PushedFrames()) as made:
        yield made


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"encode": "coarse"}, f"no encode='coarse'; it has: {HAS}"),
        ({"encode": Following(8)}, f"nothing can be left out. It has: {HAS}"),
        ({"encode": "lazy", "selector": "uniform"}, "'relevance-spread'"),
    ],
)
def test_watchers_and_questions_refuse_what_the_bundle_cannot(
    camera: tokprune.Camera, given: dict[str, Any], why: str
) -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        with pytest.raises(RequestInvalid, match=why):
            Watcher(vlm, camera, "what?", **given)
        with Watcher(vlm, camera, "what?") as watcher:
            before = watcher.settings
            with pytest.raises(RequestInvalid, match=why):
                watcher.update(**given)
            assert watcher.settings is before
        for shown in (a_picture(), CLIP):
            with pytest.raises(RequestInvalid, match=why):
                vlm.ask(shown, "what?", 4, **given)
    assert not stub.runs["vision"]


def test_a_window_of_frames_is_not_followed(camera: tokprune.Camera) -> None:
    unknown: Any = {"window": 1}
    with VLM(in_parts()) as vlm:
        with pytest.raises(RequestInvalid, match="got window=4"):
            Watcher(vlm, camera, "what?", window=4, encode=Following(8))
        with Watcher(vlm, camera, "what?", window=4) as watcher:
            with pytest.raises(RequestInvalid, match="got window=4"):
                watcher.update(encode=Following(8))
            with pytest.raises(TypeError, match="window"):
                watcher.update(**unknown)
        with Watcher(vlm, camera, "what?") as watcher:
            watcher.update(encode=Following(8))


def test_a_function_may_score() -> None:
    model = in_parts()
    model.check_encode("lazy", lambda *_: None)  # pyright: ignore[reportArgumentType]
    model.check_encode("lazy")
    with pytest.raises(RequestInvalid, match="'relevance-spread'"):
        model.check_encode("lazy", "divprune")


@contextmanager
def _no_load(monkeypatch: pytest.MonkeyPatch, command: Any) -> Iterator[Stub]:
    stub = Stub()
    with a_vlm(stub) as vlm, monkeypatch.context() as patch:
        patch.setattr(command, "load", lambda *_, **__: vlm)
        yield stub


def test_commands_refuse_at_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Path("/bundles/stub")
    with (
        _no_load(monkeypatch, chat) as stub,
        pytest.raises(RequestInvalid, match="it has: full"),
    ):
        chat.run_chat(chat.ChatCommand(bundle, encode="coarse"))
    assert not stub.runs
    pytest.importorskip("starlette", reason="Starlette is not installed (extra serve)")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")
    commands = (
        serve.Serve(bundle, port=0, encode="coarse"),
        serve.Serve(bundle, port=0, encode="lazy", selector="uniform"),
    )
    for command in commands:
        with _no_load(monkeypatch, serve) as stub, pytest.raises(RequestInvalid, match="full"):
            serve.run_serve(command)
        assert not stub.runs
