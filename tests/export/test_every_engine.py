"""Every graph of the demo bundles becomes a TensorRT-RTX engine; none can be run without a GPU."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tokprune.bundle import DEVICE_FOLDER, open_bundle
from tokprune.engines.building import build_engines
from tokprune.engines.plans import BuildOptions

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.torch, pytest.mark.demo]
OPTIONS = BuildOptions("tensorrt-rtx", sm=("sm89",))
# What each has that the one before has not: scorers stay float32, and int4 is of the LLM alone.
OWN = {
    "fp32": ["vision_encoder", "first_layer", "scorer", "llm"],
    "fp16": ["vision_encoder", "first_layer", "llm"],
    "int4": ["llm"],
}


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_every_graph_of_a_demo_bundle_becomes_an_engine(
    demo_bundles: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    before: Path | None = None
    for precision, own in OWN.items():
        copied = shutil.copytree(demo_bundles(family, precision), tmp_path / precision)
        if before is not None:  # an engine stays where its graph is the same to the byte
            shutil.copytree(before / DEVICE_FOLDER, copied / DEVICE_FOLDER)
        bundle = open_bundle(copied)
        engines = build_engines(bundle, OPTIONS)
        assert [each.name for each in engines] == OWN["fp32"]
        assert all(each.path.stat().st_size == each.bytes > 0 for each in engines)
        assert [each.name for each in engines if not each.skipped] == own
        assert all(each.skipped for each in build_engines(bundle, OPTIONS))  # fresh
        before = copied
