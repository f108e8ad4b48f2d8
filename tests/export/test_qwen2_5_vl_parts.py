"""Parts of pictures through Qwen2.5-VL's graph, against HF's own encoder that sees no more."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen2_5_checkpoint import write_qwen2_5_checkpoint

import tokprune
from tokprune import Following
from tokprune.types import (
    Array,
    Clip,
    Feeds,
    First,
    Medium,
    Prepared,
    Prompt,
    Ranking,
    VisionTokens,
)
from tokprune.vlm import VLM
from tokprune_export import export
from tokprune_export.checkpoint import open_checkpoint
from tokprune_export.examples import Example
from tokprune_export.families import qwen2_5_vl as family
from tokprune_export.glances import Glances
from tokprune_export.options import ExportOptions
from tokprune_export.teacher import ask_all, open_teacher
from tokprune_runtimes import Graph, Interrupt

pytestmark = pytest.mark.torch
ATOL = 1e-4  # times max(1, max |reference|)
QUESTION = "what shape is red?"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


PICTURE = noise(
    28 * 8, 28 * 11
)  # windows of 3 x 3 vision tokens: 3 x 4, those at the edges smaller
FILM = Clip(noise(5, 28 * 4, 28 * 7), 2.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2_5") / "model"
    write_qwen2_5_checkpoint(folder, demo_checkpoint)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export.export(
        ExportOptions(str(checkpoint), folder, saliency=True), lambda _: None, lambda _: None
    )
    return folder


@pytest.fixture(scope="module")
def visual(checkpoint: Path) -> Any:
    return family.load(checkpoint, None).model.visual


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> Iterator[VLM]:
    with tokprune.load(bundle, backend="cpu", threads=1) as opened:
        yield opened


# --- the encoder --------------------------------------------------------------------------------


def seen_alone(visual: Any, whole: Prepared, tokens: np.ndarray) -> np.ndarray:
    """What transformers' encoder makes of all tokens, where no patch attends to those not given.

    It is given the whole picture, so its own positions and windows are those of the whole.
    """
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as modeling
    from transformers.vision_utils import get_vision_window_index

    grid, frames = whole.regions[0], len(whole.regions)
    merge = visual.spatial_merge_size
    thw = torch.tensor([[frames, grid.rows * merge, grid.columns * merge]])
    settings = visual.config
    order, _ = get_vision_window_index(thw, merge, settings.window_size, settings.patch_size)
    hidden = torch.from_numpy(~np.isin(order.numpy(), tokens)).repeat_interleave(merge**2)
    eager, at = modeling.eager_attention_forward, 0

    def blind(module: Any, query: Any, key: Any, value: Any, *_: Any, **options: Any) -> Any:
        nonlocal at  # windows, or frames, come one after another in every layer
        mask = torch.where(hidden[at : at + key.shape[2]], torch.finfo(key.dtype).min, 0.0)
        at = (at + key.shape[2]) % len(hidden)
        return eager(module, query, key, value, **{**options, "attention_mask": mask})

    pixels = torch.from_numpy(np.concatenate([call["pixel_values"] for call in whole.calls]))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modeling, "eager_attention_forward", blind)
        patch.setattr(settings, "_attn_implementation", "eager")
        return visual(pixels.flatten(0, 1), grid_thw=thw).pooler_output.numpy()[tokens]


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= ATOL * max(1.0, float(np.abs(theirs).max())))


def some(share: float) -> Callable[[int], np.ndarray]:
    return lambda count: np.flatnonzero(np.random.default_rng(1).random(count) < share)


PARTS: dict[str, Callable[[int], np.ndarray]] = {
    "all": np.arange,
    "few": some(0.1),
    "half": some(0.5),
    "most": some(0.95),
    "one": lambda count: np.asarray([count // 2]),
    "a corner of four windows": lambda _: np.asarray([24, 25, 35, 36]),
    "every third": lambda count: np.arange(0, count, 3),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("medium", [PICTURE, FILM], ids=["picture", "film"])
def test_a_part_is_encoded_as_by_transformers_where_it_sees_no_more(
    vlm: VLM, visual: Any, medium: Medium, part: Callable[[int], np.ndarray]
) -> None:
    (whole,) = vlm.model.processor.prepare([medium])
    tokens = part(len(whole.where))
    cut = vlm.model.processor.ways.cut
    assert cut is not None
    ours = vlm.model.vision([cut(whole, tokens)])
    assert close(ours.embeds, seen_alone(visual, whole, tokens))
    assert ours.saliency is not None
    if len(tokens) < len(whole.where):  # it does matter what is seen
        everything = seen_alone(visual, whole, np.arange(len(whole.where)))[tokens]
        assert not close(ours.embeds, everything)


# --- answers ------------------------------------------------------------------------------------


class Recording:
    """An encoder that remembers what it was fed and what it gave."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runs: list[Feeds] = []

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        self.runs.append(feeds)
        return self.graph.run(feeds, interrupt)

    def loop(self, carries: object) -> object:
        raise AssertionError("encoders have no loop")


def recording(plain: VLM) -> tuple[VLM, Recording]:
    recorder = Recording(plain.model.vision.graph)
    vision = replace(plain.model.vision, graph=recorder)  # pyright: ignore[reportArgumentType]
    return VLM(replace(plain.model, vision=vision), vision_cache_bytes=0), recorder


def test_the_family_has_every_way(vlm: VLM) -> None:
    names = vlm.model.processor.ways.names
    assert names == ("full", "lazy", "coarse", "repeats", "auto")


@pytest.mark.parametrize(("encode", "second"), [("coarse", 18), ("coarse:2", 36)])
def test_half_the_size_is_encoded_and_then_what_is_kept_or_twice_that(
    vlm: VLM, encode: str, second: int
) -> None:
    seen, recorder = recording(vlm)
    answer = seen.ask(PICTURE, QUESTION, 0.2, encode=encode, max_new_tokens=2)
    assert [run["pixel_values"].shape[1] for run in recorder.runs] == [4 * 24, 4 * second]
    assert (answer.total, answer.kept, answer.encoded) == (88, 18, 24 + second)
    assert answer.encode == "coarse"
    (whole,) = seen.model.processor.prepare([PICTURE])
    places = {tuple(place) for place in whole.calls[0]["positions"].tolist()}
    assert {tuple(place) for place in recorder.runs[1]["positions"].tolist()} <= places
    if encode == "coarse":
        assert set(answer.selection.keep.tolist()) == set(tokens_of(recorder.runs[1], 11))


def tokens_of(feeds: Feeds, columns: int) -> list[int]:
    """The vision tokens of a picture that a call shows."""
    row, column = (feeds["positions"][::4] // 2).T
    return (row * columns + column).tolist()


def test_frames_of_a_film_are_looked_at_coarsely_too(vlm: VLM) -> None:
    answer = vlm.ask(FILM, QUESTION, 0.25, encode="coarse", max_new_tokens=1)
    assert (answer.total, answer.kept, answer.encoded) == (84, 21, 3 * 8 + 21)


def test_what_repeats_is_left_out(vlm: VLM) -> None:
    screen = np.full((28 * 8, 28 * 11, 3), 240, np.uint8)
    screen[28:84, 56:112] = noise(56, 56)  # 2 x 2 vision tokens
    seen, recorder = recording(vlm)
    answer = seen.ask(screen, QUESTION, 0.5, encode="repeats", max_new_tokens=2)
    assert (answer.total, answer.kept, answer.encode) == (88, 44, "repeats")
    assert answer.encoded == sum(run["pixel_values"].shape[1] for run in recorder.runs) // 4 < 15
    still = seen.ask(PICTURE, QUESTION, 0.5, encode="repeats", max_new_tokens=2)
    assert still.encoded == still.total == 88
    assert still.text == seen.ask(PICTURE, QUESTION, 0.5, max_new_tokens=2).text


def test_a_stream_is_followed_by_blocks(vlm: VLM) -> None:
    follow, picture = Following(within=8), PICTURE.copy()
    seen, recorder = recording(vlm)
    answers = [seen.ask(picture, QUESTION, 0.5, encode=follow, max_new_tokens=2) for _ in range(3)]
    assert [answer.encode for answer in answers] == ["follow"] * 3
    assert answers[0].encoded == answers[0].total == 88
    shown = [run["pixel_values"].shape[1] // 4 for run in recorder.runs]
    assert [answer.encoded for answer in answers] == shown
    assert all(12 <= count < 60 for count in shown[1:])  # 3 of 24 blocks, and the tokens around
    picture[:56, :56] = noise(56, 56)
    moved = seen.ask(picture, QUESTION, 0.5, encode=follow, max_new_tokens=2)
    assert {0, 1, 11, 12} <= set(tokens_of(recorder.runs[-1], 11))
    assert (moved.total, moved.kept) == (88, 44)
    assert moved.encoded < 88
    other = seen.ask(noise(28 * 8, 28 * 11), QUESTION, 0.5, encode=follow, max_new_tokens=2)
    assert other.kept == 44


# --- training -----------------------------------------------------------------------------------


def test_a_glance_is_what_the_first_of_two_looks_shows(
    checkpoint: Path, vlm: VLM, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    teacher = open_teacher(open_checkpoint(str(checkpoint)), torch.device("cpu"))
    example = Example((tmp_path / "picture.png",), QUESTION, "red", 1)
    (asked,) = ask_all(teacher, [example])
    glance = Glances(teacher).of(example, asked)
    assert glance is not None
    looks: list[tuple[VisionTokens, np.ndarray]] = []

    def watching(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        looks.append((vision, first().attention))
        order = np.argsort(-looks[-1][1].mean(axis=(0, 1)), kind="stable")
        return Ranking(lambda k: order[:k], looks[-1][1].mean(axis=(0, 1)))

    answer = vlm.ask(PICTURE, QUESTION, 0.2, watching, encode="coarse", max_new_tokens=1)
    vision, attention = looks[0]
    assert answer.encode == "coarse"
    assert len(glance.under) == answer.total
    assert set(glance.under.tolist()) == set(range(len(vision.where)))
    np.testing.assert_allclose(glance.embeds, vision.embeds, atol=2e-2)
    np.testing.assert_allclose(glance.attention, attention, atol=2e-3)
