"""Weights and inputs in 8 bits: what onnxruntime.quantization makes of them, and a bundle."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

import tokprune
from tokprune.bundle import describe, open_bundle
from tokprune.engines.states import engine_form
from tokprune.errors import BackendUnavailable
from tokprune.manifest import Manifest
from tokprune_export import export, int8, parity, preflight
from tokprune_export.errors import ExportRefused
from tokprune_export.layers import Linear
from tokprune_export.onnx import Input, Output, Source, save, trace
from tokprune_export.options import ExportOptions
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import RULES, Row
from tokprune_export.scorers import Size

pytestmark = pytest.mark.torch
FORMS = ("portable", "ort")
LINEARS = 2 * 7 + 1  # of two layers, and the head


def weights(*, rows: int = 256, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def opened(path: Path, optimised: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx_ir.load(path).graph]


def stock(weight: torch.Tensor, folder: Path) -> onnx.ModelProto:
    """What quantize_dynamic makes of one product."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", weight.shape[1]])
    held = [numpy_helper.from_array(weight.numpy(), "w")]
    graph = helper.make_graph([node], "one product", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "wide.onnx")
    quantize_dynamic(
        folder / "wide.onnx", folder / "stock.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    return onnx.load(folder / "stock.onnx")


def test_levels_and_scales_are_those_of_quantize_dynamic(tmp_path: Path) -> None:
    weight = weights()
    weight[:, 7] = 0
    weight[:, 8] *= 1e-3
    arrays = {
        each.name: numpy_helper.to_array(each) for each in stock(weight, tmp_path).graph.initializer
    }
    scales = int8.scales_of(weight)
    np.testing.assert_array_equal(scales.numpy(), arrays["w_scale"])
    np.testing.assert_array_equal(int8.levels_of(weight, scales), arrays["w_quantized"])
    assert int(arrays["w_quantized"].max()) == 127


def test_more_columns_than_are_rounded_at_once() -> None:
    weight = weights(rows=8, columns=9000)
    scales = int8.scales_of(weight)
    expected = (weight / scales).round().to(torch.int8).numpy()
    np.testing.assert_array_equal(int8.levels_of(weight, scales), expected)
    rounded = int8.quantised(weight, scales)
    assert ((rounded - weight).abs() <= scales / 2 + 1e-6).all()


class Products(nn.Module):
    """Two products of one input, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.one = Linear(nn.Linear(256, 40, bias=False))
        self.decoder.two = Linear(nn.Linear(256, 40))
        self.decoder.three = Linear(nn.Linear(40, 24, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two, three = (self.decoder.get_submodule(name) for name in ("one", "two", "three"))
        return three(one(x) + two(x))


def test_products_of_one_input_round_it_once_and_are_fused(tmp_path: Path) -> None:
    module = Products()
    names = ("one.weight", "two.weight", "three.weight")
    scales = {name: int8.scales_of(module.decoder.get_parameter(name)) for name in names}
    ports = Input("x", torch.zeros(3, 256), ("t", 256)), Output("y", ("t", 24))
    source = Source(module, (ports[0],), (ports[1],))
    save(trace(source, 18, lambda model: int8.insert(model, scales)), tmp_path / "ours.onnx")
    found = operators(tmp_path / "ours.onnx")
    assert (found.count("DynamicQuantizeLinear"), found.count("MatMulInteger")) == (2, 3)
    assert "MatMul" not in found
    x = np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    session = opened(tmp_path / "ours.onnx", tmp_path / "fused.onnx")
    fused = operators(tmp_path / "fused.onnx")
    assert fused.count("MatMulIntegerToFloat") == 2
    assert fused.count("DynamicQuantizeMatMul") == 1
    assert "MatMulInteger" not in fused
    with torch.no_grad():
        wide = module(torch.from_numpy(x)).numpy()
    (narrow,) = session.run(None, {"x": x})
    assert 1e-4 < np.abs(narrow - wide).max() < 0.03 * np.abs(wide).max()


def test_a_product_gives_what_the_stock_one_gives(tmp_path: Path) -> None:
    weight, x = weights(), np.random.default_rng(0).normal(size=(9, 256)).astype(np.float32)
    stock(weight, tmp_path)
    (expected,) = opened(tmp_path / "stock.onnx").run(None, {"x": x})
    rounded = int8.round_rows(torch.from_numpy(x)) @ int8.quantised(weight, int8.scales_of(weight))
    np.testing.assert_allclose(rounded.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [[-3.0, 0.5, 2.0], [1.0, 2.0, 4.0], [-1.0, -9.0], [0.0, 0.0]])
def test_inputs_are_rounded_as_the_operator_rounds_them(
    tmp_path: Path, values: Sequence[float]
) -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([node, back], "rounding", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "rounding.onnx")
    given = np.asarray(values, np.float32)
    (expected,) = opened(tmp_path / "rounding.onnx").run(None, {"x": given})
    np.testing.assert_allclose(int8.round_rows(torch.from_numpy(given)).numpy(), expected)


def test_layers_round_the_rows_of_each_call_by_themselves() -> None:
    linear = nn.Linear(4, 4, bias=False)
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    x[0, 3:] *= 100
    plain = linear(x)
    with int8.rounded_inputs([linear]) as cut:
        whole = linear(x)
        with cut((3, 2)):
            parts = linear(x)
    assert torch.equal(whole, linear(int8.round_rows(x)))
    calls = [linear(int8.round_rows(part)) for part in (x[:, :3], x[:, 3:])]
    torch.testing.assert_close(parts, torch.cat(calls, dim=1))  # sums may be split by rows
    assert not torch.allclose(parts, whole, rtol=1e-4)
    assert not torch.equal(parts[:, :3], whole[:, :3])
    assert torch.equal(linear(x), plain)  # no longer


def test_the_head_in_blocks_is_near_what_it_was() -> None:
    weight = weights(rows=256, columns=5000)  # more columns than are rounded at once
    levels, scales = int8.blocks_of(weight)
    assert (levels.shape, levels.dtype) == ((5000, 2, int8.BLOCK), np.uint8)
    assert (scales.shape, scales.dtype) == ((5000, 2), np.float16)
    values = (levels.astype(np.float32) - 128) * scales[:, :, None]
    off = np.abs(values.reshape(5000, 256).T - weight.numpy())
    assert off.max() < np.abs(weight.numpy()).max() / 127


def test_the_quantizer_leaves_logging_alone() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    int8.blocks_of(weights())
    int8.levels_of(weights(), int8.scales_of(weights()))
    assert (list(root.handlers), root.level) == before


@dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Path
    written: export.Written
    manifest: Manifest
    rows: list[Row]


@pytest.fixture(scope="module")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    checkpoint = tiny_checkpoint(heads=4, kv_heads=2, head_dim=32, layers=2, tied=True)
    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    written: list[export.Written] = []
    rows: list[Row] = []
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> export.Written:
        written.append(write_graphs(*arguments))
        return written[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        options = ExportOptions(str(checkpoint), bundle, precision="int8")
        manifest = export.export(options, lambda _: None, rows.extend)
    return Exported(checkpoint, bundle, written[0], manifest, rows)


def test_graphs_say_what_a_rounded_checkpoint_says(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    llm = [row for row in exported.rows if row.graph in ("llm", "end to end", "pruned")]
    assert {row.form for row in llm} == set(FORMS)
    assert min(row.cosine for row in llm) > 0.9985
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert (report["atol"], report["cosine"]) == (5e-2, 0.998)


def test_rows_tell_what_8_bits_cost(exported: Exported) -> None:
    rounding = [row for row in exported.rows if row.graph == "rounding"]
    assert {row.case for row in rounding} >= {"1x1", "8x3"}
    assert all(0.98 < row.cosine < 0.99999 for row in rounding)


def test_what_is_not_the_llm_is_held_to_float32(exported: Exported) -> None:
    for graph in ("vision_encoder", "first_layer", "scorer"):
        for row in (row for row in exported.rows if row.graph == graph):
            assert row.tolerance == RULES["fp32"].atol * max(1.0, row.max_abs)
        assert not {"MatMulInteger"} & set(operators(exported.bundle / f"onnx/{graph}.onnx"))


def test_onnx_runtime_fuses_every_product(exported: Exported, tmp_path: Path) -> None:
    for form in FORMS:
        opened(exported.bundle / f"onnx/llm.{form}.onnx", tmp_path / f"{form}.onnx")
        found = operators(tmp_path / f"{form}.onnx")
        fused = found.count("MatMulIntegerToFloat") + found.count("DynamicQuantizeMatMul")
        assert fused == LINEARS
        assert "MatMulInteger" not in found


def test_forms_share_the_levels_and_the_host_feeds_float32(exported: Exported) -> None:
    files = exported.manifest.files
    assert files["onnx/llm.ort.onnx"].bytes < 150_000
    assert "onnx/llm.ort.onnx.data" not in files
    values = onnx_ir.load(exported.bundle / "onnx/llm.ort.onnx").graph.initializers
    levels = [v for v in values.values() if v.dtype == onnx_ir.DataType.INT8]
    assert len(levels) == LINEARS
    for form in exported.manifest.graphs.llm:
        assert form.serves == ["onnxruntime-cpu"]
        kinds = {tensor.dtype for tensor in (*form.graph.inputs, *form.graph.outputs)}
        assert "float16" not in kinds
        assert "attention_bias" in {tensor.name for tensor in form.graph.inputs}


def test_the_bundle_answers_and_is_as_large_as_was_said(exported: Exported) -> None:
    picture = np.full((56, 84, 3), 128, np.uint8)
    for form in FORMS:
        vlm = tokprune.load(exported.bundle, llm_form=form)
        assert vlm.ask(picture, "what is this?", 0.5, max_new_tokens=3).kept > 1
    size = sum(file.bytes for file in exported.manifest.files.values())
    checkpoint = export.open_checkpoint(str(exported.checkpoint))
    needed = preflight.needs(checkpoint, None, "int8").disk
    assert size <= needed <= size + preflight.GRAPH_BYTES + 10_000


def test_gpus_are_refused_with_what_int8_is_for(exported: Exported, tmp_path: Path) -> None:
    bundle = open_bundle(exported.bundle)
    for kind in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(BackendUnavailable, match="int8 is for ONNX Runtime on the CPU; fp16"):
            engine_form(bundle, kind, "10.13.0")
    options = ExportOptions(
        str(exported.checkpoint), tmp_path / "out", precision="int8", engine="tensorrt-rtx"
    )
    with pytest.raises(ExportRefused, match=r"int8 and --engine tensorrt-rtx: .* CPU"):
        export.export(options, lambda _: None, lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["levels", "scale"])
def test_wrong_weights_in_a_saved_file_fail_the_gate(
    exported: Exported, tmp_path: Path, broken: str
) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    values = onnx_ir.load(folder / "onnx/llm.portable.onnx").graph.initializers
    name = "decoder.layers.1.query.weight"
    tensor = values[name if broken == "levels" else f"{name}_scale"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    path = folder / "onnx/llm.onnx.data"
    held = np.fromfile(path, np.uint8)
    part = held[tensor.offset or 0 :][: tensor.nbytes]
    if broken == "levels":
        part.view(np.int8).reshape(128, 128)[:, :32] = 0  # one of four heads
    else:
        part.view(np.float32)[:32] *= 2
    held.tofile(path)
    network = export.load_scorer(None, Size(4, 128)).network
    bench = Bench(
        folder, exported.written.graphs, "qwen2_vl", "int8", rounded=exported.written.rounded
    )
    found = list(parity.check(bench, exported.written.expected, network))
    assert {row.graph for row in found if not row.ok} >= {"end to end", "pruned"}


@pytest.fixture(scope="module")
def narrow_encoder(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest, list[Row]]:
    """A bundle whose vision encoder alone has 8 bits."""
    checkpoint = tiny_checkpoint(heads=4, kv_heads=2, head_dim=32, layers=2)
    bundle = tmp_path_factory.mktemp("encoder") / "bundle"
    rows: list[Row] = []
    options = ExportOptions(str(checkpoint), bundle, encoder_precision="int8", saliency=True)
    manifest = export.export(options, lambda _: None, rows.extend)
    return bundle, manifest, rows


def test_an_encoder_in_8_bits_says_what_a_rounded_one_says(
    narrow_encoder: tuple[Path, Manifest, list[Row]],
) -> None:
    bundle, manifest, rows = narrow_encoder
    assert all(row.ok for row in rows)
    assert (manifest.precision, manifest.encoder_precision) == ("fp32", "int8")
    seen = [row for row in rows if row.graph in ("vision_encoder", "saliency")]
    assert min(row.cosine for row in seen) > 0.999
    cost = [r for r in rows if (r.graph, r.form) == ("rounding", "vision_encoder")]
    assert {row.case for row in cost} >= {"1x1", "8x3"}
    assert all(0.98 < row.cosine < 0.999999 for row in cost), "8 bits cost something"
    for row in (row for row in rows if row.graph in ("llm", "first_layer")):
        assert row.tolerance <= RULES["fp32"].atol * max(1.0, row.max_abs), "the rest is float32"
    found = operators(bundle / "onnx/vision_encoder.onnx")
    assert found.count("MatMulInteger") == 2 * 4 + 2, "of two layers, and the merger"
    assert "MatMulInteger" not in operators(bundle / "onnx/llm.ort.onnx")


def test_a_bundle_with_a_narrow_encoder_answers_on_the_cpu_alone(
    narrow_encoder: tuple[Path, Manifest, list[Row]],
) -> None:
    bundle, manifest, _ = narrow_encoder
    assert {engine for form in manifest.graphs.llm for engine in form.serves} == {"onnxruntime-cpu"}
    with tokprune.load(bundle) as vlm:
        assert vlm.ask(np.full((56, 84, 3), 128, np.uint8), "what?", 0.5, max_new_tokens=2).kept
    with pytest.raises(BackendUnavailable, match="its vision encoder has 8 bits"):
        engine_form(open_bundle(bundle), "tensorrt", "10.13.0")
    assert describe(open_bundle(bundle))["encoder_precision"] == "int8"


@pytest.mark.parametrize(
    ("given", "message"),
    [({"precision": "fp16"}, "--precision fp16"), ({"engine": "tensorrt-rtx"}, "--engine tensor")],
)
def test_a_narrow_encoder_where_nothing_runs_it_is_refused(
    exported: Exported, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    options = ExportOptions(
        str(exported.checkpoint), tmp_path / "out", encoder_precision="int8", **given
    )
    with pytest.raises(ExportRefused, match=f"Got --encoder-precision int8 and {message}"):
        export.export(options, lambda _: None, lambda _: None)
