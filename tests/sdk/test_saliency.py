"""Saliency on the host: packed as the vision tokens are, checked, carried along."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle
from grids import vision_tokens
from small_bundle import edited, refused
from stub_model import Stub, StubGraph, a_model, a_picture

from tokprune import KeepCount, Ranking
from tokprune.bundle import describe, open_bundle
from tokprune.engines.bounds import BatchedEncoder, bounds_of
from tokprune.families import anyres, qwen2_vl, vila
from tokprune.families.anyres import Hw, Tiler
from tokprune.families.llava_onevision import from_tiles
from tokprune.graphs import VisionEncoder
from tokprune.manifest import Tensor
from tokprune.memory_estimates import models, picture_bytes
from tokprune.selection import select_each
from tokprune.types import KIND, NEWLINE, PATCH, Feeds, Prepared, VisionTokens
from tokprune.vlm import VLM
from tokprune_runtimes import Array, Graph

# --- each token has its own -----------------------------------------------------------------------


def numbered(tokens: Callable[[Feeds], tuple[int, ...]], newline: int | None = None) -> Graph:
    """A vision encoder that gives every patch a number of its own: as embedding and as saliency."""
    given = [0]

    def encode(feeds: Feeds) -> dict[str, Array]:
        shape = tokens(feeds)
        numbers = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape) + given[0]
        given[0] += numbers.size
        if newline is not None:
            numbers[:, newline] = 0
        return {"vision_tokens": np.stack([numbers, -numbers], axis=-1), "saliency": numbers}

    return StubGraph("vision", Stub(), encode)


def fixed(*shape: int) -> Callable[[Feeds], tuple[int, ...]]:
    return lambda _: shape


TILER = Tiler(tile_px=8, side=4, pinpoints=(Hw(8, 16), Hw(16, 16), Hw(24, 24)), most_tiles=2)


def tiles(count: int) -> Array:
    return np.random.default_rng(count).normal(size=(count, 3, 8, 8)).astype(np.float32)


def llava(*sizes: tuple[int, int], frames: Sequence[int] = ()) -> list[Prepared]:
    """Pictures of these sizes, and videos of these frames."""
    shown: list[Prepared] = []
    for index, (height, width) in enumerate(sizes):
        size = Hw(height, width)
        if len(sizes) > 1:
            layout, count = anyres.among_others(TILER, index), 1
        else:
            crops = TILER.crops(size)
            layout, count = anyres.alone(TILER, index, size), 1 + crops.height * crops.width
        shown.append(from_tiles("picture", tiles(count), layout, size))
    for number, count in enumerate(frames, start=len(sizes)):
        shown.append(from_tiles("video", tiles(count), anyres.film(TILER, number, count), Hw(8, 8)))
    return shown


def qwen(*grids: tuple[int, int, int]) -> list[Prepared]:
    shown = []
    for index, (frames, rows, columns) in enumerate(grids):
        patches = np.zeros((frames, 4 * rows * columns, 6), np.float32)
        kind = "video" if frames > 1 else "picture"
        shown.append(qwen2_vl.from_patches(kind, index, patches, (rows, columns), 2, (1, 1)))
    return shown


def squares(projector: str, frames: int) -> list[Prepared]:
    grid = vila.grid_of(5, projector)
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    return [vila.from_pixels(grid, 0, frame, pixels, (1, 1)) for frame in range(frames)]


SHOWN: dict[str, tuple[list[Prepared], Graph]] = {
    "qwen2_vl": (
        qwen((1, 2, 3), (4, 3, 2), (1, 1, 1)),
        numbered(lambda fed: (len(fed["pixel_values"]), fed["pixel_values"].shape[1] // 4)),
    ),
    **{
        f"llava_onevision {what}": (
            shown,
            numbered(lambda fed: (len(fed["pixel_values"]), TILER.newline + 1), TILER.newline),
        )
        for what, shown in {
            "one wide picture": llava((7, 15)),
            "one tall picture, padding cut off": llava((16, 5)),
            "one picture, crops scaled down": llava((24, 23)),
            "three pictures": llava((8, 8), (4, 9), (24, 23)),
            "videos": llava(frames=(1, 5)),
            "a picture and a video": llava((15, 15), frames=(3,)),
        }.items()
    },
    **{
        f"vila {projector}": (
            squares(projector, 3),
            numbered(fixed(1, vila.grid_of(5, projector).side ** 2)),
        )
        for projector in vila.ARRANGEMENTS
    },
}


@pytest.mark.parametrize("name", SHOWN)
def test_saliency_stands_where_its_token_stands(name: str) -> None:
    shown, graph = SHOWN[name]
    vision = VisionEncoder(graph)(shown)
    assert vision.saliency is not None
    assert vision.saliency.dtype == np.float32
    assert (
        vision.saliency.tolist() == vision.embeds[:, 0].tolist() == (-vision.embeds[:, 1]).tolist()
    )
    patches = vision.where[:, KIND] == PATCH
    assert not vision.saliency[~patches].any()
    assert len(set(vision.saliency[patches].tolist())) == patches.sum()  # they were told apart
    if name.startswith("llava") and "videos" not in name:
        assert (vision.where[:, KIND] == NEWLINE).any()


def test_the_square_of_vila_that_is_lit_is_the_one_that_its_row_and_column_tell() -> None:
    (shown,) = squares("mlp_downsample", 1)
    lit = np.zeros((3, 3), np.float32)
    lit[0, 2] = 1  # upper right: the last column comes last
    graph = StubGraph(
        "vision",
        Stub(),
        lambda _: {
            "vision_tokens": np.zeros((1, 9, 2), np.float32),
            "saliency": lit.T.reshape(1, 9),
        },
    )
    saliency = VisionEncoder(graph)([shown]).saliency
    assert saliency is not None
    brightest = int(saliency.argmax())
    assert (brightest, shown.where[brightest, 3:5].tolist()) == (6, [0, 2])


def test_a_video_of_llava_has_its_saliency_pooled_as_its_tokens_are() -> None:
    (shown,) = llava(frames=(1,))
    saliency = np.zeros((1, TILER.newline + 1), np.float32)
    saliency[0, :16] = np.arange(16)
    graph = StubGraph(
        "vision",
        Stub(),
        lambda _: {"vision_tokens": np.zeros((1, 17, 2), np.float32), "saliency": saliency},
    )
    # 4 x 4 to 2 x 2 without antialiasing is the mean of 2 x 2; then a newline
    assert VisionEncoder(graph)([shown]).saliency.tolist() == [2.5, 4.5, 10.5, 12.5, 0]  # type: ignore[union-attr]


def test_a_vision_encoder_without_it_gives_none() -> None:
    model = a_model(Stub())
    _, prepared = model.prepare(a_picture(), "what?")
    assert model.vision(prepared).saliency is None
    assert model.vision([]).saliency is None
    assert not model.has_saliency


def test_as_many_values_as_tokens_or_an_error() -> None:
    vision = vision_tokens((2, 3))
    # jaxtyping, which watches in tests alone, may be the first to see it
    with pytest.raises((ValueError, TypeError), match="saliency"):
        replace(vision, saliency=np.zeros(5, np.float32))


# --- carried along --------------------------------------------------------------------------------


def test_pictures_that_are_selected_one_by_one_keep_their_saliency() -> None:
    vision = replace(vision_tokens((2, 3), (3, 1)), saliency=np.arange(9, dtype=np.float32))
    seen: list[list[float]] = []

    def rank(alone: VisionTokens) -> Ranking:
        assert alone.saliency is not None
        seen.append(alone.saliency.tolist())
        order = np.argsort(-alone.saliency, kind="stable")
        return Ranking(lambda k: order[:k])

    selection = select_each(rank, vision, KeepCount(2))
    assert seen == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert selection.keep.tolist() == [4, 5, 7, 8]


def salient(stub: Stub) -> VLM:
    """A VLM whose vision encoder tells how bright each cell is."""
    model = a_model(stub)
    plain: Any = model.vision.graph

    def encode(feeds: Feeds) -> dict[str, Array]:
        return {**plain.compute(feeds), "saliency": feeds["pixel_values"].mean(-1)}

    return VLM(replace(model, vision=VisionEncoder(StubGraph("vision", stub, encode))))


def test_the_vision_cache_keeps_saliency_and_counts_its_bytes() -> None:
    stub, seen = Stub(), list[VisionTokens]()

    def brightest(prompt: Any, vision: VisionTokens, first: Any) -> Ranking:
        del prompt, first
        seen.append(vision)
        assert vision.saliency is not None
        order = np.argsort(-vision.saliency, kind="stable")
        return Ranking(lambda k: order[:k])

    with salient(stub) as vlm:
        first, second = (vlm.ask(a_picture(), "what?", 3, selector=brightest) for _ in range(2))
        held = vlm._runtime.state.vision_cache.held_bytes
    assert (stub.runs["vision"], second.encoder_hits) == (1, 1)
    assert first.selection.keep.tolist() == second.selection.keep.tolist()
    assert seen[0].saliency is not None
    assert seen[1].saliency is not None
    assert seen[0].saliency.tolist() == seen[1].saliency.tolist()
    assert held == seen[0].embeds.nbytes + seen[0].saliency.nbytes


def test_a_chat_and_pinned_pictures_select_by_saliency() -> None:
    def brightest(prompt: Any, vision: VisionTokens, first: Any) -> Ranking:
        del prompt, first
        assert vision.saliency is not None
        order = np.argsort(-vision.saliency, kind="stable")
        return Ranking(lambda k: order[:k])

    shown = [a_picture(1), a_picture(2)]
    with salient(Stub()) as vlm:
        chat = vlm.chat(selector=brightest)
        assert chat.ask("what?", shown, 4).kept == chat.ask("and now?", budget=4).kept == 4
        pinned = vlm.pin(shown, budget=4, selector=brightest)
        assert [pinned.ask(question).kept for question in ("what?", "where?")] == [8, 8]


def test_an_engine_that_takes_few_frames_gives_the_saliency_of_all() -> None:
    inputs = [Tensor("pixel_values", "float32", ["tiles", 3])]
    profile = {"pixel_values": [[1, 3], [2, 3], [2, 3]]}

    def encode(feeds: Feeds) -> dict[str, Array]:
        assert len(feeds["pixel_values"]) <= 2
        return {
            "vision_tokens": feeds["pixel_values"][..., None],
            "saliency": feeds["pixel_values"],
        }

    bounds = bounds_of("vision_encoder", inputs, [profile], "tokprune build")
    encoder = BatchedEncoder(StubGraph("vision", Stub(), encode), bounds)
    pixels = np.arange(15, dtype=np.float32).reshape(5, 3)
    assert encoder.run({"pixel_values": pixels})["saliency"].tolist() == pixels.tolist()


# --- bundles --------------------------------------------------------------------------------------

SALIENCY = {"name": "saliency", "dtype": "float32", "shape": ["F", "q"]}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    small_bundle.write(tmp_path / "bundle")
    return tmp_path / "bundle"


def declare(bundle: Path, layers: int, *outputs: Mapping[str, Any], first: bool = False) -> None:
    with edited(bundle) as raw:
        raw["saliency_layers"] = layers
        listed = raw["graphs"]["vision_encoder"]["outputs"]
        listed[:] = [*outputs, *listed] if first else [*listed, *outputs]


def test_a_bundle_may_have_saliency_and_says_so(bundle: Path) -> None:
    declare(bundle, 3, SALIENCY)
    opened = open_bundle(bundle)
    assert describe(opened)["saliency_layers"] == opened.manifest.saliency_layers == 3
    model = replace(a_model(Stub()), bundle=opened)
    assert model.has_saliency


def test_bundles_of_before_have_none(bundle: Path) -> None:
    with edited(bundle) as raw:
        del raw["saliency_layers"]
    opened = open_bundle(bundle)
    assert describe(opened)["saliency_layers"] == 0
    assert not replace(a_model(Stub()), bundle=opened).has_saliency


@pytest.mark.parametrize(
    ("layers", "outputs", "message"),
    [
        (2, [], r"vision_encoder lacks \['saliency'\]"),
        (0, [SALIENCY], r"vision_encoder lacks \[\] and has \['saliency'\]"),
        (2, [{**SALIENCY, "dtype": "float16"}], "declares saliency as 'float16'"),
        (2, [{**SALIENCY, "shape": ["F", "q", 1]}], r"declares saliency as .* expected float32"),
        (2, [{**SALIENCY, "shape": ["F", 7]}], "saliency to other tokens than it makes"),
        (2, [SALIENCY, SALIENCY], "or one name twice"),
    ],
)
def test_saliency_that_does_not_fit_is_refused(
    bundle: Path, layers: int, outputs: list[Mapping[str, Any]], message: str
) -> None:
    declare(bundle, layers, *outputs)
    refused(bundle, "graph", match=message)


@pytest.mark.parametrize("layers", [-1, 5000])
def test_a_number_of_layers_that_makes_no_sense_is_refused(bundle: Path, layers: int) -> None:
    declare(bundle, layers, SALIENCY)
    refused(bundle, "numbers", match=f"saliency_layers is {layers}, expected 0 to 1024")


def test_memory_is_estimated_by_vision_tokens_wherever_they_stand(bundle: Path) -> None:
    vision = {"patch_size": 14, "hidden_size": 8, "mlp_ratio": 2, "num_heads": 2}
    (bundle / "config.json").write_text(json.dumps({"vision_config": vision}))
    before = open_bundle_spec(bundle)
    declare(bundle, 1, SALIENCY, first=True)
    after = open_bundle_spec(bundle)
    assert after.outputs[0].name == "saliency"
    sizes = models(bundle)
    (fed, activations), (fed_before, before_it) = (
        picture_bytes(sizes, spec, 50) for spec in (after, before)
    )
    assert fed == fed_before
    patches = 4 * 8**2  # a square of 50 vision tokens or more
    assert before_it is not None
    assert activations == before_it + int(1.4 * patches**2 * 4)


def open_bundle_spec(bundle: Path) -> Any:
    small_bundle.seal(bundle)
    return open_bundle(bundle).manifest.graphs.vision_encoder
