"""Optimisation profiles, against numbers worked out by hand."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from tokprune.engines.bounds import BatchedEncoder, bounds_of
from tokprune.engines.profiles import (
    axis_size,
    first_layer_axes,
    llm_axes,
    named_sizes,
    profile,
    scorer_axes,
    sizes,
    vision_axes,
)
from tokprune.errors import BundleInvalid, EngineTooSmall, RequestInvalid
from tokprune.llm_calls import seen_rows
from tokprune.manifest import GraphSpec, Limits, LlmForm, Tensor
from tokprune_runtimes import Carry, Feeds, Interrupt, Loop

LIMITS = Limits(max_input_len=4096, max_kv_len=4096)
SMALL = Limits(max_input_len=700, max_kv_len=1000)


def spec(**inputs: Sequence[int | str]) -> GraphSpec:
    tensors = [Tensor(name, "float32", list(shape)) for name, shape in inputs.items()]
    return GraphSpec("onnx/graph.onnx", 18, tensors, [])


QWEN2 = spec(pixel_values=["F", "4*q", 1176], positions=["4*q", 2])
QWEN2_5 = spec(
    pixel_values=["F", "4*q", 1176], positions=["4*q", 2], windows=["W", 64], places=["4*q"]
)
LLAVA = spec(pixel_values=["tiles", 3, 384, 384])
PORTABLE = LlmForm(
    "portable",
    "grows",
    ["tensorrt"],
    spec(
        inputs_embeds=[1, "T", 128],
        position_ids=[3, 1, "T"],
        attention_bias=[1, "P+T"],
        **{"past_key_values.0.key": [1, 2, "P", 32]},
    ),
)
TRT = LlmForm(
    "trt",
    "in_place",
    ["tensorrt"],
    spec(
        inputs_embeds=[1, "T", 128],
        attention_mask=[1, 1, "T", "S"],
        write_indices=[1],
        **{"past_key_values.0.key": [1, 2, 1000, 32]},
    ),
)


@pytest.mark.parametrize(
    ("axis", "size"), [(7, 7), ("q", 5), ("4*q", 20), ("P+T", 13), ("P + 2*T", 16), ("P+1", 11)]
)
def test_an_axis_is_a_number_a_name_a_multiple_or_a_sum(axis: int | str, size: int) -> None:
    assert axis_size(axis, {"q": 5, "P": 10, "T": 3}) == size


@pytest.mark.parametrize("axis", ["x", "4*x", "q*4", "q-1", "", "q+", "4**q"])
def test_an_axis_that_nobody_knows_is_refused(axis: str) -> None:
    with pytest.raises(BundleInvalid, match="newer tokprune"):
        axis_size(axis, {"q": 5})


def test_qwen2_vl_encodes_one_large_frame_or_eight_small_ones_at_a_time() -> None:
    axes = vision_axes(QWEN2, sizes(LIMITS), few=False)
    assert [profile(QWEN2.inputs, each) for each in axes] == [
        {
            "pixel_values": ((1, 4, 1176), (1, 4096, 1176), (1, 16384, 1176)),
            "positions": ((4, 2), (4096, 2), (16384, 2)),
        },
        {
            "pixel_values": ((2, 4, 1176), (8, 512, 1176), (8, 2048, 1176)),
            "positions": ((4, 2), (512, 2), (2048, 2)),
        },
    ]
    assert vision_axes(QWEN2, sizes(LIMITS), few=True) == axes[:1]
    assert len(vision_axes(QWEN2, sizes(LIMITS, vision_tokens=7), few=False)) == 1


def test_tiles_go_one_or_up_to_four_at_a_time() -> None:
    assert vision_axes(LLAVA, sizes(LIMITS), few=False) == [
        {"tiles": (1, 1, 1)},
        {"tiles": (2, 4, 4)},
    ]
    (few,) = vision_axes(LLAVA, sizes(LIMITS), few=True)
    assert profile(LLAVA.inputs, few) == {
        "pixel_values": ((1, 3, 384, 384), (4, 3, 384, 384), (4, 3, 384, 384))
    }


def test_the_first_layer_sees_all_vision_tokens_and_the_longest_text() -> None:
    assert first_layer_axes(sizes(SMALL, vision_tokens=2000)) == {
        "s": (1, 500 + 64, 2700),
        "u": (1, 32, 512),
        "n": (1, 500, 2000),
    }
    asked = sizes(SMALL, question_tokens=20)
    assert first_layer_axes(asked) == {"s": (1, 215, 1400), "u": (1, 20, 20), "n": (1, 175, 700)}


def test_the_scorer_takes_few_large_regions_or_many_small_ones() -> None:
    tokens = {"u": (1, 32, 512), "n": (1, 1024, 4096)}
    assert scorer_axes(sizes(LIMITS)) == [
        {**tokens, "r": (1, 1, 2), "H": (1, 32, 128), "W": (1, 32, 128)},
        {**tokens, "r": (3, 3, 8), "H": (1, 18, 64), "W": (1, 18, 64)},
        {**tokens, "r": (9, 9, 64), "H": (1, 10, 32), "W": (1, 10, 32)},
    ]
    assert len(scorer_axes(sizes(LIMITS, vision_tokens=512))) == 2


def test_prompts_of_the_portable_llm_come_in_buckets_and_answers_grow_by_one() -> None:
    assert llm_axes(PORTABLE, LIMITS, few=False) == [
        {"T": (1, 128, 256), "P": (0, 0, 0)},
        {"T": (257, 640, 1024), "P": (0, 0, 0)},
        {"T": (1025, 2560, 4096), "P": (0, 0, 0)},
        {"T": (1, 1, 1), "P": (1, 2048, 4095)},
        {"T": (2, 64, 4096), "P": (1, 2048, 4095)},
    ]
    *prompts, decode, onward = (
        profile(PORTABLE.graph.inputs, axes) for axes in llm_axes(PORTABLE, SMALL, few=False)
    )
    assert [each["inputs_embeds"][2] for each in prompts] == [(1, 256, 128), (1, 700, 128)]
    assert decode == {
        "inputs_embeds": ((1, 1, 128),) * 3,
        "position_ids": ((3, 1, 1),) * 3,
        "attention_bias": ((1, 2), (1, 501), (1, 1000)),
        "past_key_values.0.key": ((1, 2, 1, 32), (1, 2, 500, 32), (1, 2, 999, 32)),
    }
    assert onward["inputs_embeds"] == ((1, 2, 128), (1, 64, 128), (1, 700, 128))
    assert onward["past_key_values.0.key"] == decode["past_key_values.0.key"]
    assert llm_axes(PORTABLE, SMALL, few=True) == [{"T": (1, 350, 700), "P": (0, 0, 999)}]


def test_the_trt_form_looks_at_whole_steps_of_its_cache_within_the_limit() -> None:
    assert [seen_rows(rows, 1000) for rows in (1, 256, 257, 768, 769, 1000)] == [
        256,
        256,
        512,
        768,
        1000,
        1000,
    ]
    assert llm_axes(TRT, SMALL, few=False) == [
        {"T": (1, 128, 256), "S": (256, 256, 1000)},
        {"T": (257, 478, 700), "S": (512, 512, 1000)},
        {"T": (1, 1, 1), "S": (256, 512, 1000)},
    ]
    (few,) = llm_axes(TRT, SMALL, few=True)
    assert profile(TRT.graph.inputs, few) == {
        "inputs_embeds": ((1, 1, 128), (1, 350, 128), (1, 700, 128)),
        "attention_mask": ((1, 1, 1, 256), (1, 1, 350, 512), (1, 1, 700, 1000)),
    }


@pytest.mark.parametrize("form", [PORTABLE, TRT])
@pytest.mark.parametrize("limits", [LIMITS, SMALL, Limits(5, 9), Limits(256, 257), Limits(2, 2)])
def test_every_prompt_and_answer_within_the_limits_has_a_profile(
    form: LlmForm, limits: Limits
) -> None:
    for few in (False, True):
        profiles = [profile(form.graph.inputs, a) for a in llm_axes(form, limits, few=few)]
        bounds = bounds_of("llm", form.graph.inputs, profiles, "")
        for rows in {1, 2, *range(3, limits.max_input_len, 97), limits.max_input_len}:
            held = seen_rows(min(rows + 1, limits.max_kv_len), limits.max_kv_len)
            room = limits.max_kv_len - rows  # a later turn: so many tokens may stand before it
            for step in (
                {"T": rows, "P": 0},
                {"T": 1, "P": min(rows, limits.max_kv_len - 1)},
                *({"T": rows, "P": past} for past in {1, room // 2, room} if 1 <= past <= room),
            ):
                named = {**step, "S": held}
                bounds.check(
                    {
                        tensor.name: tuple(axis_size(axis, named) for axis in tensor.shape)
                        for tensor in form.graph.inputs
                    }
                )


def test_ranges_are_ascending_for_every_size() -> None:
    for tokens in (1, 2, 7, 8, 63, 64, 600, 5000):
        largest = sizes(LIMITS, vision_tokens=tokens, question_tokens=1)
        boxes = [first_layer_axes(largest), *scorer_axes(largest)]
        for few in (False, True):
            boxes += vision_axes(QWEN2_5, largest, few=few)
        assert all(1 <= low <= best <= high for box in boxes for low, best, high in box.values())


@pytest.mark.parametrize("name", ["vision_tokens", "question_tokens"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(RequestInvalid, match=rf"max_{name} must be 1 or more, got 0"):
        sizes(LIMITS, **{name: 0})


def test_named_sizes_reverse_a_profile() -> None:
    shapes = {"pixel_values": (3, 40, 1176), "positions": (40, 2)}
    assert named_sizes(QWEN2.inputs, shapes) == {"F": 3, "q": 10}


class Doubler:
    """A vision encoder that counts its frames and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, np.ndarray]:
        self.calls.append(len(feeds["pixel_values"]))
        return {"vision_tokens": feeds["pixel_values"][:, ::4, :1] * 2}

    def loop(self, carries: Sequence[Carry]) -> Loop:
        raise NotImplementedError


def encoder(tokens: int, *, few: bool) -> tuple[Doubler, BatchedEncoder]:
    boxes = vision_axes(QWEN2, sizes(LIMITS, vision_tokens=tokens), few=few)
    profiles = [profile(QWEN2.inputs, axes) for axes in boxes]
    rebuild = "tokprune build B --engine tensorrt"
    graph = Doubler()
    return graph, BatchedEncoder(
        graph, bounds_of("vision_encoder", QWEN2.inputs, profiles, rebuild)
    )


@pytest.mark.parametrize(
    ("frames", "tokens", "few", "calls"),
    [
        (1, 64, False, [1]),
        (9, 8, False, [8, 1]),
        (19, 8, False, [8, 8, 3]),
        (3, 9, False, [1, 1, 1]),  # 8 of 9 vision tokens are more than the 64 that were built for
        (3, 8, True, [1, 1, 1]),
    ],
)
def test_frames_are_fed_as_many_a_time_as_fit(
    frames: int, tokens: int, few: int, calls: list[int]
) -> None:
    graph, batched = encoder(64, few=bool(few))
    pixels = np.random.default_rng(0).normal(size=(frames, 4 * tokens, 5)).astype(np.float32)
    feeds = {"pixel_values": pixels, "positions": np.zeros((4 * tokens, 2), np.int64)}
    found = batched.run(feeds)["vision_tokens"]
    assert graph.calls == calls
    np.testing.assert_array_equal(found, pixels[:, ::4, :1] * 2)


def test_a_picture_that_is_too_large_is_told_with_both_numbers_and_what_to_do() -> None:
    graph, batched = encoder(64, few=False)
    feeds = {"pixel_values": np.zeros((1, 4 * 65, 5)), "positions": np.zeros((4 * 65, 2))}
    told = r"65 vision tokens in a picture or frame \(built for 64\).*--max-vision-tokens 65$"
    with pytest.raises(EngineTooSmall, match=told):
        batched.check(feeds)
    assert graph.calls == []


def test_a_long_question_and_a_fitting_number_in_no_box_are_told_apart() -> None:
    inputs = [
        Tensor("attention", "float32", [4, "u", "n"]),
        Tensor("index", "int64", ["r", "H", "W"]),
    ]
    boxes = scorer_axes(sizes(LIMITS))
    bounds = bounds_of(
        "scorer", inputs, [profile(inputs, axes) for axes in boxes], "tokprune build"
    )
    long = {"attention": (4, 600, 100), "index": (1, 10, 10)}
    with pytest.raises(EngineTooSmall, match=r"600 text tokens.*512\).*--max-question-tokens 600"):
        bounds.check(long)
    with pytest.raises(EngineTooSmall, match="20 pictures, frames and tiles, 60 rows") as caught:
        bounds.check({"attention": (4, 6, 100), "index": (20, 60, 60)})
    assert caught.value.code == "engine_too_small"
    bounds.check({"attention": (4, 6, 100), "index": (20, 30, 30)})


def test_the_manifest_structs_of_these_tests_are_the_real_ones() -> None:
    assert msgspec.convert(msgspec.to_builtins(TRT), LlmForm) == TRT
