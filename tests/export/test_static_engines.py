"""Vision encoders of the demos with fixed scales, in 8 bits, become TensorRT-RTX engines."""

import hashlib
from pathlib import Path

import pytest

from tokprune.engines.profiles import profile
from tokprune.manifest import GraphSpec, Precision
from tokprune_export import graphs, static_scales
from tokprune_export.checkpoint import open_checkpoint, open_processor
from tokprune_export.families import FAMILIES
from tokprune_export.graphs import Target
from tokprune_export.narrow import DTYPES
from tokprune_export.static_scales import NOT_ROUNDED
from tokprune_runtimes.trt_build import Build, build_engine

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.torch, pytest.mark.demo]
CHECKPOINTS = Path(__file__).parents[2] / "samples/scenes/checkpoints"
AXES = {"F": (1, 2, 2), "q": (4, 64, 256), "tiles": (1, 2, 4)}  # of the three families


def engine(folder: Path, spec: GraphSpec) -> int:
    """Build an encoder, and return what its engine takes."""
    path = folder / spec.file
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    axes = {name: sizes for name, sizes in AXES.items() if any(name in axis for axis in named)}
    build = Build(
        path, digest, path.with_suffix(".engine"), (profile(spec.inputs, axes),), ("sm89",)
    )
    return build_engine("tensorrt-rtx", build).bytes


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_encoders_of_every_family_are_built_and_keep_their_levels(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_scales, "DRAWN", 16)
    checkpoint = open_checkpoint(str(CHECKPOINTS / family), None)
    model = FAMILIES[family].load(checkpoint.folder, 1)  # layers of the LLM, which is not asked
    processor = open_processor(family, checkpoint.texts)
    kinds: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in kinds:
        source = FAMILIES[family].vision(model, 0)
        found = static_scales.find_scales(source.module, processor, None, DTYPES[precision])
        assert found.left == []
        sizes: list[int] = []
        for scales in (NOT_ROUNDED, found):
            folder = tmp_path / precision / str(len(sizes))
            (folder / graphs.FOLDER).mkdir(parents=True)
            spec = graphs.write(source, Target(folder, 18, 64, precision), "vision_encoder", scales)
            sizes.append(engine(folder, spec))
        numbers = sum(source.module.get_parameter(name).numel() for name in found.columns)
        saved = numbers * (DTYPES[precision].itemsize - 1)
        assert sizes[0] - sizes[1] > 0.8 * saved, "the engine keeps its weights in 8 bits"
