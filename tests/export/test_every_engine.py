"""Every graph of the demo bundles becomes a TensorRT-RTX engine; none can be run without a GPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tokprune.bundle import open_bundle
from tokprune.engines.building import BuildOptions, build_engines

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.torch, pytest.mark.demo]
TRIED = ("qwen2_vl", "int4")  # with scales in fp16; all others are for `make soak`
NARROW = [
    pytest.param(family, precision, marks=() if (family, precision) == TRIED else pytest.mark.soak)
    for family in ("qwen2_vl", "llava_onevision", "vila")
    for precision in ("fp16", "int4")
]


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("qwen2_vl", "fp32"),
        ("llava_onevision", "fp32"),
        pytest.param("vila", "fp32", marks=pytest.mark.soak),
        *NARROW,
    ],
)
def test_every_graph_of_a_demo_bundle_becomes_an_engine(
    demo_bundles: Callable[..., Path], tmp_path: Path, family: str, precision: str
) -> None:
    copied = shutil.copytree(demo_bundles(family, precision), tmp_path / "bundle")
    bundle = open_bundle(copied)
    built = build_engines(bundle, BuildOptions("tensorrt-rtx", sm=("sm89",)))
    assert [each.name for each in built] == ["vision_encoder", "first_layer", "scorer", "llm"]
    assert all(each.path.stat().st_size == each.bytes > 0 for each in built)
    assert not any(each.skipped for each in built)
    again = build_engines(bundle, BuildOptions("tensorrt-rtx", sm=("sm89",)))
    assert all(each.skipped for each in again)  # fresh
