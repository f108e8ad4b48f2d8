"""Vision encoders of the demos with fixed scales, in 8 bits, become TensorRT-RTX engines."""

import hashlib
from pathlib import Path

import onnx_ir as ir
import pytest

from tokprune.engines.profiles import profile
from tokprune.manifest import GraphSpec, Precision
from tokprune_export import graphs, static_scales
from tokprune_export.checkpoint import open_checkpoint, open_processor
from tokprune_export.families import FAMILIES
from tokprune_export.graphs import Target
from tokprune_export.narrow import DTYPES
from tokprune_runtimes.trt_build import Build, build_engine

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.torch, pytest.mark.demo]
CHECKPOINTS = Path(__file__).parents[2] / "samples/scenes/checkpoints"
AXES = {"F": (1, 2, 2), "q": (4, 64, 256), "tiles": (1, 2, 4)}  # of the three families
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def engine(path: Path, spec: GraphSpec) -> bytes:
    """Build an encoder's engine and return it."""
    axes = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    ranges = {name: sizes for name, sizes in AXES.items() if any(name in axis for axis in axes)}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    built = path.with_suffix(".engine")
    build = Build(path, digest, built, (profile(spec.inputs, ranges),), ("sm89",))
    build_engine("tensorrt-rtx", build)
    return built.read_bytes()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision", "vila"])
def test_encoders_of_every_family_are_built_and_keep_their_levels(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_scales, "DRAWN", 16)
    checkpoint = open_checkpoint(str(CHECKPOINTS / family), None)
    model = FAMILIES[family].load(checkpoint.folder, 1)  # layers of the LLM, which is not asked
    processor = open_processor(family, checkpoint.texts)
    for precision in PRECISIONS:
        source = FAMILIES[family].vision(model, 0)
        scales = static_scales.find_scales(source.module, processor, None, DTYPES[precision])
        assert scales.left == []
        (tmp_path / precision / graphs.FOLDER).mkdir(parents=True)
        target = Target(tmp_path / precision, 18, 64, precision)
        spec = graphs.write(source, target, "vision_encoder", scales)
        path = target.bundle / spec.file
        held = engine(path, spec)
        values = ir.load(path).graph.initializers.values()
        tensors = [v.const_value for v in values if v.const_value is not None and v.shape]
        levels = [t.numpy() for t in tensors if t.dtype == ir.DataType.INT8 and t.size > 1]
        assert len(levels) == len(scales.columns)
        assert all(each.tobytes()[: each.shape[1]] in held for each in levels), "not widened"
