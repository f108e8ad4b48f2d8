"""Looks at drawn scenes through the shipped VLMs' own encoders."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tokprune
from tokprune import Following, RequestInvalid
from tokprune.looking.parts import apart
from tokprune.scenes import film_suite, suite
from tokprune.types import FRAME, KIND, NEWLINE, TILE, Array, Feeds, Images
from tokprune.vlm import VLM
from tokprune_runtimes import Graph, Interrupt

pytestmark = pytest.mark.demo
Bundles = Callable[..., Path]


class Recording:
    """An encoder that remembers what it was fed and what it gave."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.runs: list[tuple[Feeds, dict[str, Array]]] = []

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        outputs = self.graph.run(feeds, interrupt)
        self.runs.append((feeds, outputs))
        return outputs

    def loop(self, carries: object) -> object:
        raise AssertionError("encoders have no loop")


def recording(bundle: Path) -> tuple[VLM, Recording]:
    plain = tokprune.load(bundle, backend="cpu", threads=1)
    recorder = Recording(plain.model.vision.graph)
    vision = replace(plain.model.vision, graph=recorder)  # pyright: ignore[reportArgumentType]
    return VLM(replace(plain.model, vision=vision), vision_cache_bytes=0), recorder


def pictures(count: int) -> list[tuple[Images, str]]:
    return [(each.pictures, each.question) for each in suite("dev", count, questions=1)]


def test_every_tile_that_is_encoded_gives_what_it_gives_in_the_full_look(
    demo_bundles: Bundles,
) -> None:
    vlm, recorder = recording(demo_bundles("llava_onevision"))
    looked_closer = 0
    for shown, question in pictures(6):
        if len(shown) > 1:
            continue
        (whole,) = vlm.model.processor.prepare(shown)
        full = {
            call["pixel_values"].tobytes(): recorder.graph.run(call)["vision_tokens"]
            for call in apart(whole).calls
        }
        recorder.runs.clear()
        answer = vlm.ask(list(shown), question, 0.25, encode="lazy", max_new_tokens=1)
        assert len(recorder.runs) == answer.encoder_runs < len(full)
        for feeds, outputs in recorder.runs:
            expected = full[np.ascontiguousarray(feeds["pixel_values"]).tobytes()]
            assert np.array_equal(outputs["vision_tokens"], expected)
        assert answer.encoded < answer.total == len(whole.where)
        looked_closer += bool((answer.where[answer.selection.keep, TILE] == 1).any())
    assert looked_closer


def test_all_crops_give_the_answer_of_the_full_look(demo_bundles: Bundles) -> None:
    with tokprune.load(demo_bundles("llava_onevision"), backend="cpu", threads=1) as vlm:
        for shown, question in pictures(4):
            total = sum(len(each.where) for each in vlm.model.processor.prepare(shown))
            if len(shown) > 1:
                continue
            full = vlm.ask(list(shown), question, total - 1)
            lazy = vlm.ask(list(shown), question, total - 1, encode="lazy")
            assert lazy.encode == "lazy"
            assert lazy.encoded == lazy.total  # each crop was chosen, in the second look
            count, _, rest = lazy.encode_reason.partition(" of ")
            assert rest.startswith(f"{count} crops")
            assert lazy.text == full.text


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_some_frames_of_a_video_are_never_encoded(demo_bundles: Bundles, family: str) -> None:
    (sample,) = film_suite("dev", 1, frames=16, questions=1)
    vlm, recorder = recording(demo_bundles(family))
    answer = vlm.ask(sample.clip, sample.question, 0.1, encode="lazy:2", max_new_tokens=1)
    frames = {region.frame for region in answer.regions}
    assert 0 < len(recorder.runs) < len(frames)
    assert answer.encoded < answer.total
    kept = answer.where[answer.selection.keep]
    assert len(set(kept[kept[:, KIND] != NEWLINE, FRAME].tolist())) <= len(recorder.runs)


def test_a_quarter_of_a_picture_is_encoded_at_half_size_and_a_quarter_in_full(
    demo_bundles: Bundles,
) -> None:
    vlm, recorder = recording(demo_bundles("qwen2_vl"))
    (sample,) = suite("dev", 1, tokens=196, questions=1)
    answer = vlm.ask(
        list(sample.pictures), sample.question, 0.25, encode="coarse", max_new_tokens=1
    )
    assert [feeds["pixel_values"].shape[1] for feeds, _ in recorder.runs] == [4 * 49, 4 * 49]
    assert (answer.total, answer.kept, answer.encoded) == (196, 49, 98)


def test_families_name_the_ways_that_they_have(demo_bundles: Bundles) -> None:
    grey = np.full((120, 120, 3), 128, np.uint8)
    for family in ("llava_onevision", "vila"):
        with (
            tokprune.load(demo_bundles(family), backend="cpu", threads=1) as vlm,
            pytest.raises(RequestInvalid, match="it has: full, lazy, repeats, auto"),
        ):
            vlm.ask(grey, "what is it?", 0.5, encode="coarse")


def test_flat_areas_of_a_screen_are_encoded_once(demo_bundles: Bundles) -> None:
    screen = np.full((392, 392, 3), 240, np.uint8)
    screen[150:200, 100:300] = np.random.default_rng(0).integers(0, 256, (50, 200, 3))
    with tokprune.load(demo_bundles("qwen2_vl"), backend="cpu", threads=1) as vlm:
        answer = vlm.ask(screen, "what is it?", 0.5, encode="repeats", max_new_tokens=1)
    assert answer.encoded < 0.3 * answer.total


def test_a_still_stream_costs_a_part_of_a_look_and_answers_the_same(
    demo_bundles: Bundles,
) -> None:
    (sample,) = suite("dev", 1, tokens=196, questions=1)
    follow = Following(within=8)
    with tokprune.load(demo_bundles("qwen2_vl"), backend="cpu", threads=1) as vlm:
        answers = [
            vlm.ask(sample.pictures[0], sample.question, 0.5, encode=follow) for _ in range(4)
        ]
    assert [answer.encode for answer in answers] == ["follow"] * 4
    assert answers[0].encoded == 196
    assert len({answer.text for answer in answers}) == 1
    # Seven of 49 blocks are due, and the tokens around them are encoded too.
    assert all(28 < answer.encoded < 80 for answer in answers[1:])


def test_crops_that_are_followed_say_what_the_full_look_says(demo_bundles: Bundles) -> None:
    """All that has changed is encoded, but for pixels beside it that resizing changes a little."""
    samples = list(suite("dev", 12, tokens=196, questions=1))
    pictures = [
        s.pictures[0] for s in samples if s.pictures[0].shape == samples[0].pictures[0].shape
    ]
    with tokprune.load(demo_bundles("llava_onevision"), backend="cpu", threads=1) as vlm:
        follow, picture = Following(within=50), pictures[0]
        crops = vlm.ask(picture, samples[0].question, 0.5, encode=follow).total
        for other in pictures[1:5]:
            picture = picture.copy()
            half = picture.shape[0] // 2
            picture[:half, :half] = other[:half, :half]  # one of four crops, and the whole
            answer = vlm.ask(picture, samples[0].question, 0.5, encode=follow)
            full = vlm.ask(picture, samples[0].question, 0.5, encode="full")
            assert answer.encoded < crops
            assert answer.text == full.text
            assert np.isin(answer.selection.keep, full.selection.keep).mean() > 0.9
