"""Bfloat16: what is written, and the float32 graphs that the gate runs in its place."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

import tokprune
from tokprune.errors import BackendUnavailable
from tokprune.manifest import Manifest
from tokprune_export import export, parity, preflight
from tokprune_export.layers import InPrecision, Linear
from tokprune_export.narrow import narrow_weights
from tokprune_export.onnx import Input, Output, Source, save, trace
from tokprune_export.options import ExportOptions
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import Row
from tokprune_export.scorers import Size
from tokprune_export.widen import widen

pytestmark = pytest.mark.torch
FORMS = ("portable", "ort", "trt")


def test_a_widened_graph_rounds_what_is_cast_and_has_the_written_weights(tmp_path: Path) -> None:
    linear = Linear(nn.Linear(300, 200))
    ports = Input("x", torch.zeros(3, 300), ("t", 300)), Output("y", ("t", 200))
    module = InPrecision(linear, torch.bfloat16)
    source = Source(module, (ports[0],), (ports[1],), listed=1)
    save(trace(source, 18, narrow_weights), tmp_path / "narrow.onnx")
    folder = tmp_path / "wide"
    folder.mkdir()
    path = widen(tmp_path / "narrow.onnx", folder)
    values = onnx_ir.load(path).graph.initializers.values()
    assert onnx_ir.DataType.BFLOAT16 not in {value.dtype for value in values}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32)
    found = np.asarray(session.run(None, {"x": x})[0])
    assert linear.bias is not None
    weight, bias = linear.weight.bfloat16().float(), linear.bias.bfloat16().float()
    expected = torch.from_numpy(x).bfloat16().float() @ weight + bias
    rounded = expected.bfloat16().float()  # the last cast is one from bfloat16, and rounds no more
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(found - rounded.numpy()).max() > 1e-4


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
    checkpoint = tiny_checkpoint(heads=4, kv_heads=2, head_dim=32, layers=2)
    bundle = tmp_path_factory.mktemp("bf16") / "bundle"
    written: list[export.Written] = []
    rows: list[Row] = []
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> export.Written:
        written.append(write_graphs(*arguments))
        return written[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        options = ExportOptions(str(checkpoint), bundle, precision="bf16")
        manifest = export.export(options, lambda _: None, rows.extend)
    return Exported(checkpoint, bundle, written[0], manifest, rows)


def test_every_form_passes_and_no_widened_file_stays(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    assert {row.form for row in exported.rows if row.graph == "end to end"} == set(FORMS)
    narrow = [row for row in exported.rows if row.graph not in ("positions", "scorer")]
    assert max(row.max_abs_diff for row in narrow) > 1e-4  # it is another precision indeed
    folders = {path.name for path in exported.bundle.rglob("*") if path.is_dir()}
    assert folders == {"onnx", "reports"}
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert (report["atol"], report["cosine"]) == (1e-2, 0.999)


def test_the_files_are_bfloat16_and_serve_gpus_alone(exported: Exported) -> None:
    serves = {form.form: form.serves for form in exported.manifest.graphs.llm}
    assert serves == {
        "portable": ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"],
        "ort": ["onnxruntime-cuda"],
        "trt": ["tensorrt", "tensorrt-rtx"],
    }
    for form in exported.manifest.graphs.llm:
        cached = {t.dtype for t in form.graph.inputs if t.name.startswith("past_key_values")}
        assert cached == {"bfloat16"}
        values = onnx_ir.load(exported.bundle / form.graph.file).graph.initializers
        assert values["decoder.layers.1.gate.weight"].dtype == onnx_ir.DataType.BFLOAT16
    with pytest.raises(BackendUnavailable, match="bf16 is for GPUs; fp16 and int4"):
        tokprune.load(exported.bundle, backend="cpu")


def test_preflight_asks_for_what_is_written_and_for_the_widened_graph(exported: Exported) -> None:
    size = sum(file.bytes for file in exported.manifest.files.values())
    wide = 2 * (exported.bundle / "onnx/llm.onnx.data").stat().st_size
    checkpoint = export.open_checkpoint(str(exported.checkpoint))
    needed = preflight.needs(checkpoint, None, "bf16").disk
    assert size + wide <= needed <= 3 * size + preflight.GRAPH_BYTES + 10_000


def test_wrong_weights_in_a_saved_file_fail_the_gate(exported: Exported, tmp_path: Path) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    values = onnx_ir.load(folder / "onnx/llm.portable.onnx").graph.initializers
    tensor = values["decoder.layers.1.query.weight"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    path = folder / "onnx/llm.onnx.data"
    held = np.fromfile(path, np.uint8)
    part = held[tensor.offset or 0 :][: tensor.nbytes]
    part.view(np.uint16).reshape(128, 128)[:, :32] = 0  # one of four heads
    held.tofile(path)
    network = export.load_scorer(None, Size(4, 128)).network
    bench = Bench(folder, exported.written.graphs, "qwen2_vl", "bf16")
    found = list(parity.check(bench, exported.written.expected, network))
    assert {row.graph for row in found if not row.ok} == {"llm", "end to end", "pruned"}
