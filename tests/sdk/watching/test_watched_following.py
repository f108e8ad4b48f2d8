"""A watcher whose questions follow the stream, with the change gate that watchers have."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scripted_camera import Script, shown
from stub_model import CELL_PX, Stub, a_model

from tokprune import Following, Watcher
from tokprune.camera.camera import Camera
from tokprune.looking import Ways
from tokprune.types import Array, Media, Prepared
from tokprune.vlm import VLM
from tokprune.watching import Observation

QUESTION = "what is it?"
SIDE = 12  # tokens of a picture
CONTRAST = 5.0  # encoders are fed pixels that are stretched about so much
BLOCK = slice(4 * CELL_PX, 8 * CELL_PX)  # px, rows and columns of what changes
UNNOTICED, NOTICED = 2, 7  # grey levels; the gate takes both for noise


def cut(picture: Prepared, places: Array) -> Prepared:
    (call,) = picture.calls
    calls = ({"pixel_values": call["pixel_values"][:, places]},)
    return replace(picture, calls=calls, where=picture.where[places], units=picture.units[places])


@pytest.fixture
def vlm(stub: Stub) -> Iterator[VLM]:
    """One whose encoder takes any part of a picture."""
    model = a_model(stub)
    before = model.processor.prepare

    def prepare(media: Media) -> tuple[Prepared, ...]:
        (picture,) = before(media)
        (call,) = picture.calls
        return (replace(picture, calls=({"pixel_values": call["pixel_values"] * CONTRAST},)),)

    processor = replace(model.processor, prepare=prepare, ways=Ways(cut=cut))
    with VLM(replace(model, processor=processor)) as made:
        yield made


def a_scene() -> Array:
    side = SIDE * CELL_PX
    return np.random.default_rng(0).integers(20, 200, (side, side, 3)).astype(np.uint8)


def brighter(scene: Array, levels: int) -> Array:
    changed = scene.copy()
    changed[BLOCK, BLOCK] += np.uint8(levels)
    return changed


def noisy(scene: Array, seed: int) -> Array:
    noise = np.random.default_rng(seed).integers(-1, 2, scene.shape)
    return (scene + noise).astype(np.uint8)


def remembered(follow: Following) -> Array:
    """The grey level of what changes, as it was last encoded."""
    assert follow.seen is not None
    cells = follow.seen.pixels.reshape(SIDE, SIDE, 3)[4:8, 4:8]
    return cells.mean(axis=-1) * 255 / CONTRAST


def test_the_bound_holds_where_the_gate_sees_noise_alone(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    follow, scene = Following(within=4), a_scene()
    seen: list[Observation] = []
    with Watcher(vlm, camera, QUESTION, encode=follow) as watcher:
        shown(script, camera, scene)
        seen.append(watcher.next(timeout_s=10.0))
        before = remembered(follow)
        for number in range(4):
            shown(script, camera, noisy(brighter(scene, UNNOTICED), number))
            seen.append(watcher.next(timeout_s=10.0))
    assert remembered(follow) - before == pytest.approx(UNNOTICED, abs=0.4)
    assert [each.answer.encode for each in seen] == ["follow"] * 5
    assert not any(each.unchanged for each in seen)
    assert all(each.answer.encoded < each.answer.total for each in seen[1:])


def test_a_movement_that_the_gate_takes_for_noise_is_seen_at_once(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    follow, scene = Following(within=100), a_scene()
    with Watcher(vlm, camera, QUESTION, encode=follow) as watcher:
        shown(script, camera, scene)
        watcher.next(timeout_s=10.0)
        before = remembered(follow)
        shown(script, camera, brighter(scene, NOTICED))
        answer = watcher.next(timeout_s=10.0).answer
    assert "4 have moved" in answer.encode_reason
    assert remembered(follow) - before == pytest.approx(NOTICED, abs=0.01)


def test_old_pixels_are_given_again_once_nothing_is_followed(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    scene = a_scene()
    unchanged: list[bool] = []
    with Watcher(vlm, camera, QUESTION) as watcher:
        for number, encode in enumerate(("full", "full", Following(4), "full")):
            watcher.update(encode=encode)
            shown(script, camera, noisy(scene, number))
            unchanged.append(watcher.next(timeout_s=10.0).unchanged)
    assert unchanged == [False, True, False, True]
