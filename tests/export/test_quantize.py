"""Weights in 4 bits: how they are rounded, and a bundle of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tokprune
from tokprune.manifest import Manifest
from tokprune_export import export, onnx, preflight, quantize
from tokprune_export.cli import run_export
from tokprune_export.onnx import Input, Output, Source
from tokprune_export.options import ExportOptions
from tokprune_export.parity_report import Row

pytestmark = pytest.mark.torch
LEFT = ["layers.0.down", "layers.1.down"]  # 260 inputs: no whole blocks of 128


def weights(*, rows: int = 256, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def error(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    squares = (quantize.quantised(weight, scales) - weight).square()
    return squares.unflatten(0, (-1, quantize.BLOCK)).sum(dim=1)


def test_every_block_has_the_scale_with_the_least_error_of_the_candidates() -> None:
    weight = weights()
    best = error(weight, quantize.scales_of(weight))
    largest = weight.unflatten(0, (-1, quantize.BLOCK)).abs().amax(dim=1)
    for divisor in quantize.DIVISORS:
        assert (best <= error(weight, (largest / divisor).half()) + 1e-6).all()
    plain = error(weight, (largest / 7).half())
    assert best.sum() < 0.97 * plain.sum()  # clipping pays


def test_levels_are_the_nearest_ones_within_16() -> None:
    weight = weights()
    scales = quantize.scales_of(weight)
    levels = quantize.levels_of(weight, scales)
    assert (int(levels.min()), int(levels.max())) == (-8, 7)
    steps = scales.float().repeat_interleave(quantize.BLOCK, dim=0)
    off = (levels * steps - weight).abs()
    inside = (weight / steps > -8.5) & (weight / steps < 7.5)
    assert (off[inside] <= steps[inside] / 2 + 1e-6).all()


def test_columns_and_blocks_do_not_touch_each_other() -> None:
    weight = weights(rows=256, columns=2100)  # more columns than are searched at once
    changed = weight.clone()
    changed[:128, 2050] *= 100
    scales, others = quantize.scales_of(weight), quantize.scales_of(changed)
    differ = (scales != others).nonzero().tolist()
    assert differ == [[0, 2050]]


def test_a_block_of_zeros_has_a_scale_above_zero_and_stays_zero() -> None:
    weight = weights()
    weight[:128, 3] = 0
    scales = quantize.scales_of(weight)
    assert (scales > 0).all()  # TensorRT refuses others
    assert (quantize.quantised(weight, scales)[:128, 3] == 0).all()


def test_values_of_16_levels_come_back_exactly() -> None:
    levels = torch.randint(-7, 8, (128, 8), generator=torch.Generator().manual_seed(0))
    levels[0] = 7
    weight = levels * 0.25
    assert torch.equal(quantize.quantised(weight, quantize.scales_of(weight)), weight)


@dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Path
    manifest: Manifest
    rows: list[Row]


@pytest.fixture(scope="module")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    checkpoint = tiny_checkpoint(heads=4, kv_heads=2, head_dim=32, layers=2)
    bundle = tmp_path_factory.mktemp("int4") / "bundle"
    rows: list[Row] = []
    options = ExportOptions(str(checkpoint), bundle, precision="int4")
    manifest = export.export(options, lambda _: None, rows.extend)
    return Exported(checkpoint, bundle, manifest, rows)


def test_graphs_say_what_the_rounded_weights_say(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    forms = {row.form for row in exported.rows if row.graph == "end to end"}
    assert forms == {"portable", "ort", "trt"}
    tight = [row for row in exported.rows if row.graph in ("llm", "end to end", "pruned")]
    assert min(row.cosine for row in tight) > 0.998


def test_rows_tell_what_rounding_costs(exported: Exported) -> None:
    rounding = [row for row in exported.rows if row.graph == "rounding"]
    assert {row.case for row in rounding} >= {"1x1", "8x3"}
    assert all(0.8 < row.cosine < 0.9999 for row in rounding)


def test_layers_without_whole_blocks_stay_float16_and_are_listed(exported: Exported) -> None:
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert report["not_quantised"] == LEFT
    values = onnx_ir.load(exported.bundle / "onnx/llm.portable.onnx").graph.initializers
    kinds = {
        name: value.dtype.name
        for name, value in values.items()
        if name.endswith(".weight") and value.dtype is not None and "norm" not in name
    }
    narrow = {name for name, kind in kinds.items() if kind == "INT4"}
    assert len(narrow) == 12
    assert set(kinds) - narrow == {
        *(f"decoder.{name}.weight" for name in LEFT),
        "decoder.head.weight",
    }
    assert {kinds[name] for name in set(kinds) - narrow} == {"FLOAT16"}


def test_the_file_holds_the_levels_and_scales_that_were_found(exported: Exported) -> None:
    values = onnx_ir.load(exported.bundle / "onnx/llm.trt.onnx").graph.initializers
    name = "decoder.layers.1.gate.weight"
    found, scale = values[name].const_value, values[f"{name}{quantize.SCALE}"].const_value
    assert found is not None
    assert scale is not None
    held = load_file(exported.checkpoint / "model.safetensors")
    (key,) = (key for key in held if key.endswith("layers.1.mlp.gate_proj.weight"))
    weight = held[key].t()
    expected = quantize.scales_of(weight)
    np.testing.assert_array_equal(scale.numpy(), expected.numpy())
    levels = quantize.levels_of(weight, expected).numpy()
    np.testing.assert_array_equal(found.numpy().astype(np.int8), levels)


def test_first_layer_and_vision_encoder_are_not_rounded(exported: Exported) -> None:
    for name in ("first_layer", "vision_encoder"):
        model = onnx_ir.load(exported.bundle / f"onnx/{name}.onnx")
        assert "DequantizeLinear" not in {node.op_type for node in model.graph}
        assert model.opset_imports[""] == 18


def test_the_bundle_answers_and_its_weights_are_small(exported: Exported) -> None:
    vlm = tokprune.load(exported.bundle)
    picture = np.full((56, 84, 3), 128, np.uint8)
    assert vlm.ask(picture, "what is this?", 0.5, max_new_tokens=3).kept > 1
    size = sum(file.bytes for file in exported.manifest.files.values())
    checkpoint = export.open_checkpoint(str(exported.checkpoint))
    needed = preflight.needs(checkpoint, None, "int4").disk
    assert size <= needed <= size + preflight.GRAPH_BYTES + 10_000
    assert needed < preflight.needs(checkpoint, None, "fp16").disk


def test_onnx_runtime_reads_the_bits_in_the_products(exported: Exported, tmp_path: Path) -> None:
    """Where it did not, every call would make float weights of all levels again."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = exported.bundle / "onnx/llm.ort.onnx"
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx_ir.load(tmp_path / "optimised.onnx").graph]
    assert nodes.count("MatMulNBits") == 12 + 1  # and the head, in 8 bits
    assert "DequantizeLinear" not in nodes


class Two(nn.Module):
    """A weight that another graph's file has, and a large one of its own."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.own = nn.Linear(700, 900, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.shared(x))


def test_a_form_with_a_large_weight_of_its_own_copies_no_shared_one(tmp_path: Path) -> None:
    shared = nn.Linear(600, 700, bias=False)
    both = Two(shared)
    x = Input("x", torch.zeros(3, 600), ("t", 600))
    first = onnx.trace(Source(nn.Sequential(shared), (x,), (Output("y", ("t", 700)),)), 18)
    first.graph.initializers["0.weight"].name = "shared.weight"
    onnx.save(first, tmp_path / "first.onnx", data="first.data")
    second = onnx.trace(Source(both, (x,), (Output("y", ("t", 900)),)), 18)
    onnx.share_weights(second, tmp_path / "first.onnx", {"shared.weight"})
    onnx.save(second, tmp_path / "second.onnx")
    assert (tmp_path / "second.onnx.data").stat().st_size < 1.1 * 4 * 700 * 900
    given = np.random.default_rng(0).normal(size=(5, 600)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "second.onnx"), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = both(torch.from_numpy(given)).numpy()
    np.testing.assert_allclose(
        np.asarray(session.run(None, {"x": given})[0]), expected, rtol=1e-4, atol=1e-4
    )


def test_only_the_form_for_onnx_runtime_has_its_head_in_8_bits(exported: Exported) -> None:
    values = {
        form: onnx_ir.load(exported.bundle / f"onnx/llm.{form}.onnx").graph.initializers
        for form in ("portable", "ort", "trt")
    }
    heads = {
        form: {name: str(value.dtype) for name, value in held.items() if "head" in name}
        for form, held in values.items()
    }
    assert heads["portable"] == heads["trt"] == {"decoder.head.weight": "FLOAT16"}
    assert heads["ort"] == {
        "decoder.head.weight_blocks": "UINT8",
        "decoder.head.weight_blocks_scale": "FLOAT16",
    }
    head = values["portable"]["decoder.head.weight"].const_value
    levels = values["ort"]["decoder.head.weight_blocks"].const_value
    scales = values["ort"]["decoder.head.weight_blocks_scale"].const_value
    assert head is not None
    assert levels is not None
    assert scales is not None
    rows = (levels.numpy().astype(np.float32) - 128) * scales.numpy()[:, :, None]
    wide = head.numpy().astype(np.float32).T
    np.testing.assert_allclose(rows.reshape(wide.shape), wide, atol=np.abs(wide).max() / 127)


def test_the_command_lists_what_was_not_rounded(
    tiny_checkpoint: Callable[..., Path],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def again(options: ExportOptions, *_: object) -> Manifest:
        options.output.symlink_to(exported.bundle)
        return exported.manifest

    monkeypatch.setattr(export, "export", again)
    options = ExportOptions(str(exported.checkpoint), tmp_path / "out", precision="int4")
    run_export(options)
    assert "float16, not 4 bits: layers.0.down, layers.1.down" in capsys.readouterr().out
