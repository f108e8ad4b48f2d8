"""One random checkpoint exported in float16; what stays float32, and what the gate then asks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

import tokprune
from tokprune.manifest import Manifest
from tokprune_export import export, onnx, parity, preflight
from tokprune_export.layers import LayerNorm, Linear, RmsNorm, softmax
from tokprune_export.narrow import narrow_weights
from tokprune_export.onnx import Input, Output, Source
from tokprune_export.options import ExportOptions
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import RULES, Row, compare, cosine
from tokprune_export.scorers import Size

pytestmark = pytest.mark.torch
FORMS = ("portable", "ort", "trt")


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
    checkpoint = tiny_checkpoint(heads=5, kv_heads=1, head_dim=12, layers=2, tied=True)
    bundle = tmp_path_factory.mktemp("narrow") / "bundle"
    written: list[export.Written] = []
    rows: list[Row] = []
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> export.Written:
        written.append(write_graphs(*arguments))
        return written[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        options = ExportOptions(str(checkpoint), bundle, precision="fp16")
        manifest = export.export(options, lambda _: None, rows.extend)
    return Exported(checkpoint, bundle, written[0], manifest, rows)


def test_every_graph_and_form_passes_with_a_cosine(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    found = {(row.graph, row.form) for row in exported.rows}
    llm = {(graph, form) for graph in ("llm", "end to end", "pruned") for form in FORMS}
    assert found == llm | {
        (g, "") for g in ("positions", "vision_encoder", "first_layer", "scorer")
    }
    narrow = [row for row in exported.rows if row.graph not in ("positions", "scorer")]
    assert min(row.cosine for row in narrow) >= 0.9995
    assert max(row.max_abs_diff for row in narrow) > 1e-4  # it is another precision indeed


def test_the_report_tells_the_rule_and_the_cosines(exported: Exported) -> None:
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert (report["atol"], report["cosine"]) == (1e-2, 0.999)
    assert all(row["cosine"] > 0.999 for row in report["rows"])
    assert (report["unchecked"], report["not_quantised"]) == ([], [])


def test_only_the_cache_is_float16_to_the_host(exported: Exported) -> None:
    graphs = exported.manifest.graphs
    specs = [graphs.vision_encoder, graphs.first_layer, graphs.scorer]
    for spec in (*specs, *(form.graph for form in graphs.llm)):
        for tensor in (*spec.inputs, *spec.outputs):
            cached = tensor.name.startswith(("past_key_values", "present"))
            assert (tensor.dtype == "float16") == cached


def test_weights_are_float16_in_the_files_and_norms_are_not(exported: Exported) -> None:
    for name in ("vision_encoder", "first_layer", *(f"llm.{form}" for form in FORMS)):
        model = onnx_ir.load(exported.bundle / f"onnx/{name}.onnx")
        tables = [
            value
            for value in model.graph.initializers.values()
            if value.shape and len(value.shape) == 2
        ]
        assert {table.dtype for table in tables} == {onnx_ir.DataType.FLOAT16}
        norms = [v for key, v in model.graph.initializers.items() if key.endswith("norm.weight")]
        assert {norm.dtype for norm in norms} <= {onnx_ir.DataType.FLOAT}
        for node in model.graph:
            source: Any = node.inputs[0] if node.inputs else None
            if node.op_type == "Cast":
                assert not source.is_initializer()
            if node.op_type in ("Softmax", "LayerNormalization", "ReduceMean"):
                assert source.dtype == onnx_ir.DataType.FLOAT
    scorer = onnx_ir.load(exported.bundle / "onnx/scorer.onnx")
    assert {v.dtype for v in scorer.graph.inputs} >= {onnx_ir.DataType.FLOAT}


def test_all_forms_share_one_file_of_weights(exported: Exported) -> None:
    names = {path.name for path in (exported.bundle / "onnx").iterdir()}
    assert {name for name in names if name.endswith(".data")} <= {
        "llm.onnx.data",
        "vision_encoder.onnx.data",
    }
    files = exported.manifest.files
    assert files["onnx/llm.trt.onnx"].bytes < files["onnx/llm.onnx.data"].bytes


def test_the_bundle_opens_and_answers(exported: Exported) -> None:
    picture = np.full((56, 84, 3), 128, np.uint8)
    texts = set[str]()
    for form in ("portable", "ort"):
        vlm = tokprune.load(exported.bundle, llm_form=form)
        texts.add(vlm.ask(picture, "what is this?", 0.5, max_new_tokens=3).text)
    assert len(texts) == 1
    assert vlm.model.llm.embed_tokens.dtype == np.float16


def test_forms_name_the_engines_that_run_them(exported: Exported) -> None:
    serves = {form.form: form.serves for form in exported.manifest.graphs.llm}
    assert serves["ort"] == ["onnxruntime-cpu", "onnxruntime-cuda"]
    assert serves["trt"] == ["tensorrt", "tensorrt-rtx"]


def test_preflight_asks_for_what_is_written(exported: Exported) -> None:
    size = sum(file.bytes for file in exported.manifest.files.values())
    checkpoint = export.open_checkpoint(str(exported.checkpoint))
    needed = preflight.needs(checkpoint, None, "fp16").disk
    assert size <= needed <= size + preflight.GRAPH_BYTES + 10_000


def test_a_table_of_another_precision_than_the_manifest_says_is_refused(
    exported: Exported, tmp_path: Path
) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    table = np.load(folder / "embed_tokens.npy")
    np.save(folder / "embed_tokens.npy", table[:, : table.shape[1] // 2].astype(np.float32))
    with pytest.raises(tokprune.BundleInvalid, match=r"embed_tokens\.npy"):
        tokprune.load(folder, verify="sizes")


@pytest.mark.parametrize("broken", [np.float16("nan"), None])
def test_wrong_weights_in_a_saved_file_fail_the_gate(
    exported: Exported, tmp_path: Path, broken: np.float16 | None
) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    path = folder / "onnx/llm.onnx.data"
    numbers = np.fromfile(path, np.uint8)
    value = onnx_ir.load(folder / "onnx/llm.portable.onnx").graph.initializers
    weight = value["decoder.layers.1.query.weight"].const_value
    assert isinstance(weight, onnx_ir.ExternalTensor)
    start = weight.offset or 0
    half = numbers[start : start + weight.nbytes].view(np.float16).reshape(60, 60)
    if broken is None:
        half[:, :12] = 0  # one of five heads
    else:
        half[30, 5] = broken
    numbers.tofile(path)
    network = export.load_scorer(None, Size(5, 60)).network
    bench = Bench(folder, exported.written.graphs, "qwen2_vl", "fp16")
    bad = {
        row.graph for row in parity.check(bench, exported.written.expected, network) if not row.ok
    }
    assert bad == {"llm", "end to end", "pruned"}


def test_the_cosine_sees_what_the_bound_lets_through() -> None:
    oracle = np.random.default_rng(0).normal(size=(4, 1000))
    oracle[0, 0] = 20.0  # makes the bound wide
    near = oracle + np.random.default_rng(1).normal(size=oracle.shape) * 1e-3
    wrong = oracle.copy()
    wrong[:, 1:] += 0.15
    assert compare("llm", "", "", near, oracle, RULES["fp16"]).ok
    row = compare("llm", "", "", wrong, oracle, RULES["fp16"])
    assert row.max_abs_diff <= row.tolerance
    assert not row.ok


def test_cosines_of_nothing_and_of_no_number() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    assert cosine(zeros, zeros) == 1
    assert cosine(zeros, ones) == cosine(ones, zeros) == 0
    row = compare("llm", "", "", np.full(3, np.nan), ones, RULES["fp16"])
    assert not row.ok


def test_norms_of_values_whose_squares_float16_has_not() -> None:
    x = torch.full((1, 4), 300.0)
    x[0, 0] = -300.0
    rms = SimpleNamespace(weight=torch.ones(4), variance_epsilon=1e-6)
    for norm in (LayerNorm(nn.LayerNorm(4)), RmsNorm(rms)):
        narrow = norm(x.half())
        assert narrow.dtype == torch.float16
        torch.testing.assert_close(narrow.float(), norm(x), rtol=1e-3, atol=1e-3)


def test_softmax_takes_a_mask_of_float32s_lowest() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]]).half()
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min, 0.0]])
    shares = softmax(scores, mask)
    assert shares.dtype == torch.float16
    assert shares[0, 1] == 0
    assert shares.sum() == 1


class Twice(nn.Module):
    """A weight that is read narrow by one product, and another as it is too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(nn.Linear(200, 300, bias=False))
        self.both = nn.Parameter(torch.randn(300, 200), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x.half()) @ self.both.half()
        return y.float() + (x @ self.both.t()) @ self.both


def test_a_weight_that_is_read_wide_too_stays_wide(tmp_path: Path) -> None:
    shape = ("n", 200)
    source = Source(Twice(), (Input("x", torch.zeros(4, 200), shape),), (Output("y", shape),))
    model = onnx.trace(source, 18)
    narrow_weights(model)
    onnx.save(model, tmp_path / "twice.onnx")
    found = onnx_ir.load(tmp_path / "twice.onnx").graph.initializers
    assert found["linear.weight"].dtype == onnx_ir.DataType.FLOAT16
    assert found["both"].dtype == onnx_ir.DataType.FLOAT
    assert (tmp_path / "twice.onnx").stat().st_size < 1 << 20
    expected = source.module.get_parameter("linear.weight").half().contiguous().numpy()
    weight = found["linear.weight"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), expected)
