"""A vision encoder in 8 bits with fixed scales: what quantize_static makes, and bundles."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from torch import nn

import tokprune
from tokprune.bundle import describe, open_bundle, verify_bundle
from tokprune.engines.states import engine_form
from tokprune.errors import BackendUnavailable
from tokprune.families.qwen_patches import patch_positions
from tokprune.manifest import Manifest
from tokprune_export import cli, export, int8, parity, static_int8, static_scales
from tokprune_export.errors import ExportRefused, ParityFailed
from tokprune_export.layers import Linear
from tokprune_export.onnx import Input, Output, Source, save, trace
from tokprune_export.options import ExportOptions
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import RULES, Row
from tokprune_export.scorers import Size
from tokprune_export.static_scales import Scales, fixed, losses
from tokprune_runtimes import load_graph

pytestmark = pytest.mark.torch
LINEARS = 2 * 4 + 2  # of two layers, and the merger
SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 32, "layers": 2}


def opened(path: Path, optimised: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx_ir.load(path).graph]


class Products(nn.Module):
    """Two products of one input, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = Linear(nn.Linear(256, 40, bias=False))
        self.two = Linear(nn.Linear(256, 40))
        self.three = Linear(nn.Linear(40, 24, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(torch.tanh(self.one(x) + self.two(x)))


class Rows(CalibrationDataReader):
    """What quantize_static finds its scales on."""

    def __init__(self, rows: list[np.ndarray[Any, Any]]) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{"x": each} for each in rows])

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        return next(self._left, None)


def rows(count: int, seed: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(9, 256)).astype(np.float32) for _ in range(count)]


def source(module: nn.Module) -> Source:
    return Source(module, (Input("x", torch.zeros(3, 256), ("t", 256)),), (Output("y", ("t", 24)),))


def found(module: nn.Module, seen: list[np.ndarray[Any, Any]], dtype: torch.dtype) -> Scales:
    linears = {f"{n}.weight": m for n, m in module.named_modules() if isinstance(m, Linear)}

    def run() -> Iterator[torch.Tensor]:
        with torch.no_grad():
            for each in seen:
                yield module(torch.from_numpy(each))

    largest = static_scales.largest_inputs(linears, run)
    return Scales(
        {n: static_scales.stored(int8.scales_of(m.weight), dtype) for n, m in linears.items()},
        {name: static_scales.stored_scale(value, dtype) for name, value in largest.items()},
    )


def stock(module: nn.Module, seen: list[np.ndarray[Any, Any]], folder: Path) -> Path:
    """What quantize_static makes of the same graph."""
    save(trace(source(module), 18), folder / "wide.onnx")
    quantize_static(
        folder / "wide.onnx",
        folder / "stock.onnx",
        Rows(seen),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    return folder / "stock.onnx"


def test_the_graph_is_what_quantize_static_writes(tmp_path: Path) -> None:
    module, seen = Products().eval(), rows(5, 0)
    theirs = stock(module, seen, tmp_path)
    scales = found(module, seen, torch.float32)
    ours = tmp_path / "ours.onnx"
    save(trace(source(module), 18, lambda m: static_int8.insert(m, scales, torch.float32)), ours)
    for kind in ("QuantizeLinear", "DequantizeLinear", "MatMul"):
        assert operators(ours).count(kind) == operators(theirs).count(kind) > 0
    for values in rows(3, 1):
        answers = [opened(path).run(None, {"x": values})[0] for path in (ours, theirs)]
        np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    mine = {v.name: v.const_value for v in onnx_ir.load(ours).graph.initializers.values()}
    held = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(theirs).graph.initializer
    }
    levels = {name.removesuffix("_quantized"): v for name, v in held.items() if "quantized" in name}
    assert levels.keys() == {"one.weight", "two.weight", "three.weight"}
    for name, expected in levels.items():
        tensor = mine[name]
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_products_of_one_input_round_it_once(tmp_path: Path) -> None:
    module, seen = Products().eval(), rows(5, 0)
    scales = found(module, seen, torch.float32)
    path = tmp_path / "ours.onnx"
    save(trace(source(module), 18, lambda m: static_int8.insert(m, scales, torch.float32)), path)
    assert operators(path).count("QuantizeLinear") == 2


def test_inputs_are_rounded_as_the_operators_round_them(tmp_path: Path) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, kinds.FLOAT, ["n"]) for name in "xy")
    held = [helper.make_tensor("s", kinds.FLOAT, [], [0.25]), helper.make_tensor("z", 3, [], [0])]
    graph = helper.make_graph(nodes, "rounding", [x], [y], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "rounding.onnx")
    given = np.asarray([-99, -32, -31.8, -0.125, 0.125, 0.375, 31.7, 31.9, 99], np.float32)
    (expected,) = opened(tmp_path / "rounding.onnx").run(None, {"x": given})
    np.testing.assert_array_equal(fixed(torch.from_numpy(given), 0.25).numpy(), expected)
    assert expected[0] == -32
    assert expected[-1] == 31.75


def test_scales_of_float16_are_neither_zero_nor_subnormal() -> None:
    tiny = float(np.finfo(np.float16).smallest_normal)
    given = torch.tensor([1e-9, 1e-5, 0.1])
    assert static_scales.stored(given, torch.float16).tolist()[:2] == [tiny, tiny]
    assert static_scales.stored_scale(0.0, torch.float16) == 1
    assert static_scales.stored_scale(12.7, torch.float16) == float(np.float16(0.1))


def test_what_a_layer_loses_is_what_the_rounded_product_is_off() -> None:
    linear = Linear(nn.Linear(256, 40, bias=False))
    x = torch.from_numpy(rows(1, 0)[0])
    columns = int8.scales_of(linear.weight)
    with torch.no_grad():
        exact, off = x @ linear.weight, fixed(x, 0.05) @ int8.quantised(linear.weight, columns)
        lost = losses({"w": linear}, {"w": 0.05}, {"w": columns}, lambda: iter([linear(x)]))
    expected = float((off - exact).norm() / exact.norm())
    assert lost["w"] == pytest.approx(expected, rel=1e-4)
    assert 0.005 < lost["w"] < 0.05


@dataclass(frozen=True)
class Exported:
    bundle: Path
    written: export.Written
    manifest: Manifest
    rows: list[Row]


def run_export(checkpoint: Path, bundle: Path, **options: Any) -> Exported:
    """Export with a vision encoder in int8-static, and keep what the gate is given."""
    written: list[export.Written] = []
    compared: list[Row] = []
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> export.Written:
        written.append(write_graphs(*arguments))
        return written[0]

    given = ExportOptions(str(checkpoint), bundle, encoder_precision="int8-static", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        manifest = export.export(given, lambda _: None, compared.extend)
    return Exported(bundle, written[0], manifest, compared)


@pytest.fixture(scope="module", params=["int8", "fp16"])  # the encoder beside int8 is float32's
def exported(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    bundle = tmp_path_factory.mktemp("static") / "bundle"
    options = {"precision": request.param, "saliency": True}
    return run_export(tiny_checkpoint(**SHAPE), bundle, **options)


def initializers(path: Path) -> Mapping[str, onnx_ir.Value]:
    return onnx_ir.load(path).graph.initializers


def test_the_graph_says_what_a_rounded_checkpoint_says(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    seen = [row for row in exported.rows if row.graph in ("vision_encoder", "saliency")]
    assert min(row.cosine for row in seen) > 0.999
    rule = RULES["fp32" if exported.manifest.precision == "int8" else "fp16"]
    for row in (row for row in exported.rows if row.graph == "first_layer"):
        assert row.tolerance == rule.atol * max(1.0, row.max_abs), "it is not in 8 bits"


def test_rows_tell_what_rounding_costs_pictures_that_were_held_back(exported: Exported) -> None:
    cost = [r for r in exported.rows if (r.graph, r.form) == ("rounding", "vision_encoder")]
    assert [row.case for row in cost] == [f"picture {n}" for n in (16, 32, 48, 64)]
    assert all(0.99 < row.cosine < 0.999999 for row in cost), "8 bits cost something"
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert report["calibrated_on"] == "64 drawn scenes"
    assert report["encoder_not_quantised"] == []
    assert "The vision encoder's scales were found on 64 drawn scenes" in cli.notes(exported.bundle)


def test_linear_weights_have_8_bits_and_nothing_else_has(
    exported: Exported, tmp_path: Path
) -> None:
    path = exported.bundle / "onnx/vision_encoder.onnx"
    wide = exported.manifest.precision == "int8"
    kind = onnx_ir.DataType.FLOAT if wide else onnx_ir.DataType.FLOAT16
    values = initializers(path)
    levels = {name for name, value in values.items() if value.dtype == onnx_ir.DataType.INT8}
    assert len(levels) == LINEARS + 1, "and the zero point"
    assert {values[f"{name}_scale"].dtype for name in levels - {"zero_point"}} == {kind}
    for node in onnx_ir.load(path).graph:
        first: Any = node.inputs[0] if node.inputs else None
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert first.dtype == onnx_ir.DataType.FLOAT
        if node.op_type == "QuantizeLinear":
            assert first.dtype == kind
    assert exported.manifest.graphs.vision_encoder.opset == (18 if wide else 19)
    found = operators(path)
    assert found.count("QuantizeLinear") == LINEARS
    assert found.count("DequantizeLinear") == 2 * LINEARS
    assert "MatMulInteger" not in found
    opened(path, tmp_path / "fused.onnx")
    fused = operators(tmp_path / "fused.onnx").count("MatMulIntegerToFloat")
    assert fused == (LINEARS if wide else 0), "ONNX Runtime's CPU has no float16 products"


def test_the_bundle_says_so_and_answers(exported: Exported) -> None:
    bundle = open_bundle(exported.bundle)
    assert describe(bundle)["encoder_precision"] == "int8-static"
    assert verify_bundle(exported.bundle).ok
    with tokprune.load(exported.bundle) as vlm:
        assert vlm.ask(np.full((56, 84, 3), 128, np.uint8), "what?", 0.5, max_new_tokens=2).kept


def test_what_one_call_shows_does_not_change_what_another_gives(exported: Exported) -> None:
    graph = load_graph(exported.bundle / "onnx/vision_encoder.onnx", "cpu")
    frames = np.random.default_rng(0).normal(size=(2, 24, 1176)).astype(np.float32)
    frames[1] *= 3  # dynamic int8 would round both by this one's range
    feeds = {"positions": patch_positions(2, 3, 2)}
    both = graph.run({**feeds, "pixel_values": frames})["vision_tokens"]
    each = [graph.run({**feeds, "pixel_values": frames[i : i + 1]}) for i in range(2)]
    np.testing.assert_array_equal(both, np.concatenate([one["vision_tokens"] for one in each]))


def test_engines_run_it_that_run_the_llm(exported: Exported) -> None:
    serves = {engine for form in exported.manifest.graphs.llm for engine in form.serves}
    if exported.manifest.precision == "int8":
        assert serves == {"onnxruntime-cpu"}
        with pytest.raises(BackendUnavailable, match="int8 is for ONNX Runtime on the CPU"):
            engine_form(open_bundle(exported.bundle), "tensorrt", "10.3.0")
    else:
        assert serves == {"onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
        assert engine_form(open_bundle(exported.bundle), "tensorrt", "10.3.0").form == "portable"


@pytest.mark.parametrize("broken", ["levels", "columns", "inputs"])
def test_wrong_numbers_in_a_saved_file_fail_the_gate(
    exported: Exported, tmp_path: Path, broken: str
) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    path = folder / "onnx/vision_encoder.onnx"
    model = onnx.load(path)
    held = {each.name: each for each in model.graph.initializer}
    (levels,) = [name for name in held if name.endswith("blocks.1.up.weight")]
    rounds = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    name = {"levels": levels, "columns": f"{levels}_scale", "inputs": rounds[3].input[1]}[broken]
    values = onnx.numpy_helper.to_array(held[name]).copy()
    if broken == "levels":
        values[:, :36] = 0
    else:
        values = values * (2 if broken == "columns" else values.dtype.type(0.1))
    held[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, path)
    bench = bench_of(exported, folder)
    network = export.load_scorer(None, Size(4, 128)).network
    checked = list(parity.check(bench, exported.written.expected, network))
    assert {row.graph for row in checked if not row.ok} >= {"vision_encoder"}


def bench_of(exported: Exported, folder: Path) -> Bench:
    return Bench(
        folder,
        exported.written.graphs,
        "qwen2_vl",
        exported.manifest.precision,
        rounded=exported.written.rounded,
        encoder_precision="int8-static",
        probes=exported.written.scales.probes,
    )


def test_scales_that_clip_fail_the_gate_though_the_rounded_checkpoint_agrees(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = export.find_scales

    def clipping(*arguments: Any) -> Scales:
        scales = find(*arguments)
        return replace(scales, inputs={name: each / 4 for name, each in scales.inputs.items()})

    monkeypatch.setattr(export, "find_scales", clipping)
    compared: list[Row] = []
    options = ExportOptions(
        str(tiny_checkpoint(**SHAPE)), tmp_path / "out", encoder_precision="int8-static"
    )
    with pytest.raises(ParityFailed, match="out of tolerance"):
        export.export(options, lambda _: None, compared.extend)
    assert {(row.graph, row.form) for row in compared if not row.ok} == {
        ("rounding", "vision_encoder")
    }


@pytest.fixture(scope="module")
def spoiled(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A checkpoint that says the same with one channel 4,000 times the others in two places."""
    folder = Path(copytree(tiny_checkpoint(**SHAPE), tmp_path_factory.mktemp("spoiled") / "model"))
    held = load_file(folder / "model.safetensors")
    for norm, linear in (("norm2", "mlp.fc1"), ("norm1", "attn.qkv")):
        block = next(name for name in held if name.endswith(f"blocks.1.{norm}.weight"))
        prefix = block.removesuffix(f"{norm}.weight")
        for part in ("weight", "bias"):
            held[f"{prefix}{norm}.{part}"][5] *= 4000
        held[f"{prefix}{linear}.weight"][:, 5] /= 4000
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    pictures = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(20):
        noise = random.integers(0, 256, (56, 56 + 28 * (number % 3), 3), np.uint8)
        Pillow.fromarray(noise).save(pictures / f"{number:02}.png")
    (pictures / "notes.txt").write_text("no picture")
    bundle = folder.parent / "bundle"
    return run_export(folder, bundle, precision="int4", calibration=pictures)


def test_a_layer_that_8_bits_would_spoil_stays_float_and_is_named(spoiled: Exported) -> None:
    report = json.loads((spoiled.bundle / "reports/parity.json").read_text())
    assert report["encoder_not_quantised"] == ["blocks.1.qkv", "blocks.1.up"]
    told = list(cli.notes(spoiled.bundle))
    assert any(line.endswith("too much of them: blocks.1.qkv, blocks.1.up") for line in told)
    kinds = {
        name.removeprefix("module."): value.dtype
        for name, value in initializers(spoiled.bundle / "onnx/vision_encoder.onnx").items()
    }
    assert kinds["blocks.1.up.weight"] == onnx_ir.DataType.FLOAT16
    assert kinds["blocks.1.down.weight"] == kinds["blocks.0.up.weight"] == onnx_ir.DataType.INT8
    assert all(row.ok for row in spoiled.rows)


def test_an_own_folder_of_pictures_beside_int4(spoiled: Exported) -> None:
    report = json.loads((spoiled.bundle / "reports/parity.json").read_text())
    assert report["calibrated_on"].startswith("20 pictures of /")
    cost = [r for r in spoiled.rows if (r.graph, r.form) == ("rounding", "vision_encoder")]
    assert [row.case for row in cost] == ["picture 16"]
    assert (spoiled.manifest.precision, spoiled.manifest.encoder_precision) == (
        "int4",
        "int8-static",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder_precision": "int8-static", "precision": "bf16"}, "bf16: expected fp32, fp16"),
        ({"encoder_precision": "int8", "precision": "fp16"}, "or take int8-static, which other"),
        ({"encoder_precision": "int8", "engine": "tensorrt-rtx"}, "int8-static, which TensorRT"),
        ({"calibration": Path("x")}, "Got --calibration x without --encoder-precision int8-static"),
        ({"encoder_precision": "int8", "calibration": Path("x")}, "nothing else looks at pictures"),
    ],
)
def test_wrong_combinations_are_refused(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    options = ExportOptions(str(tiny_checkpoint(**SHAPE)), tmp_path / "out", **given)
    with pytest.raises(ExportRefused, match=message):
        export.export(options, lambda _: None, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_folders_with_too_few_pictures_are_refused_before_any_weight_is_read(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    steps: list[str] = []
    for folder, message in (("none", "is no folder of pictures"), (".", "with 0 pictures")):
        options = ExportOptions(
            str(tiny_checkpoint(**SHAPE)),
            tmp_path / "out",
            encoder_precision="int8-static",
            calibration=tmp_path / folder,
        )
        with pytest.raises(ExportRefused, match=message):
            export.export(options, steps.append, lambda _: None)
    assert "load" not in steps
