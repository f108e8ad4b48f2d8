"""One random checkpoint of odd dimensions, exported in this process; then what can go wrong."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

import tokprune
from tokprune.manifest import Manifest
from tokprune_export import export, parity, parity_report, preflight
from tokprune_export.cli import run_export
from tokprune_export.errors import ParityFailed
from tokprune_export.exits import guarded
from tokprune_export.options import ExportOptions
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import Row, Rule
from tokprune_export.scorers import Size

pytestmark = pytest.mark.torch
FILMS = ("2 frames of 3x5", "8 frames of 4x2")
Written = export.Written


@dataclass(frozen=True)
class Exported:
    checkpoint: Path
    bundle: Path
    written: Written
    manifest: Manifest
    rows: list[Row]
    steps: list[str]


@pytest.fixture(scope="module")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    checkpoint = tiny_checkpoint(heads=5, kv_heads=1, head_dim=12, layers=3, tied=True)
    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    written: list[Written] = []
    rows: list[Row] = []
    steps: list[str] = []
    write_graphs = export.write_graphs

    def recorded(*arguments: Any) -> Written:
        written.append(write_graphs(*arguments))
        return written[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_graphs", recorded)
        options = ExportOptions(str(checkpoint), bundle)
        manifest = export.export(options, steps.append, rows.extend)
    return Exported(checkpoint, bundle, written[0], manifest, rows, steps)


def test_a_random_model_of_odd_dimensions_passes_every_comparison(exported: Exported) -> None:
    assert all(row.ok for row in exported.rows)
    graphs = {(row.graph, row.form) for row in exported.rows}
    assert graphs == {
        ("positions", ""),
        ("vision_encoder", ""),
        ("first_layer", ""),
        ("scorer", ""),
        *((graph, form) for graph in ("llm", "end to end", "pruned") for form in FORMS),
    }
    cases = {row.case for row in exported.rows if row.graph == "end to end"}
    assert cases == {"1x1", "8x3", "10x14", "5x7 and 4x2", *FILMS}


FORMS = ("portable", "ort")


def test_every_step_is_named(exported: Exported) -> None:
    assert exported.steps == [
        "checks",
        "chat template",
        "load",
        "vision encoder",
        "first layer",
        "scorer",
        "llm portable",
        "llm ort",
        "embeddings",
        "oracle",
        "parity",
        "manifest",
    ]


def test_the_bundle_opens_and_answers(exported: Exported) -> None:
    for form in FORMS:
        vlm = tokprune.load(exported.bundle, llm_form=form)
        picture = np.full((56, 84, 3), 128, np.uint8)
        answer = vlm.ask(picture, "what is this?", 0.5, max_new_tokens=3)
        assert answer.kept == -(-answer.total // 2) > 1


def test_the_manifest_lists_every_file_and_an_untrained_scorer(exported: Exported) -> None:
    manifest = exported.manifest
    found = {p.relative_to(exported.bundle).as_posix() for p in exported.bundle.rglob("*.*")}
    assert found - {"manifest.json"} == manifest.files.keys()
    assert (manifest.scorer.kind, manifest.scorer.trained) == ("attention", False)
    assert manifest.scorer.modalities == []
    assert manifest.default_selector == export.UNTRAINED_SELECTOR
    assert [tensor.name for tensor in manifest.graphs.scorer.inputs] == ["attention", "question"]
    assert manifest.limits.max_kv_len == 2048
    assert manifest.llm.head_dim == 16  # 12, padded to what GroupQueryAttention takes


def test_hf_files_are_kept_as_they_are(exported: Exported) -> None:
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        ours, theirs = exported.bundle / name, exported.checkpoint / name
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_report_holds_every_row(exported: Exported) -> None:
    report = json.loads((exported.bundle / "reports/parity.json").read_text())
    assert report["ok"] is True
    assert len(report["rows"]) == len(exported.rows)


def test_preflight_asks_for_what_is_written(exported: Exported) -> None:
    files = exported.manifest.files
    size = sum(file.bytes for file in files.values())
    needed = preflight.needs(export.open_checkpoint(str(exported.checkpoint)), None).disk
    assert size <= needed <= size + preflight.GRAPH_BYTES + 10_000


def bench(folder: Path, exported: Exported) -> Bench:
    return Bench(folder, exported.written.graphs, "qwen2_vl")


def failing(folder: Path, exported: Exported) -> set[str]:
    network = export.load_scorer(None, Size(5, 60)).network
    rows = parity.check(bench(folder, exported), exported.written.expected, network)
    return {row.graph for row in rows if not row.ok}


def nudge(path: Path, start: int, value: float) -> None:
    """Change one float32 of a file."""
    data = bytearray(path.read_bytes())
    data[start : start + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "caught"),
    [
        ("onnx/vision_encoder.onnx", {"vision_encoder", "end to end", "pruned"}),
        ("onnx/llm.onnx.data", {"llm", "end to end", "pruned"}),
        ("embed_tokens.npy", {"end to end", "pruned"}),
        ("onnx/first_layer.onnx", {"first_layer"}),
    ],
)
@pytest.mark.parametrize("value", [3.0, float("nan")])
def test_one_wrong_weight_in_a_saved_file_fails_the_gate(
    exported: Exported, tmp_path: Path, file: str, caught: set[str], value: float
) -> None:
    folder = Path(copytree(exported.bundle, tmp_path / "bundle"))
    nudge(folder / file, planted(exported, folder / file), value)
    assert failing(folder, exported) == caught


def planted(exported: Exported, path: Path) -> int:
    """Return where a weight that every prompt uses stands in a file."""
    if path.name == "embed_tokens.npy":
        token = int(exported.written.expected[0].trial.ids[0])
        shape = exported.written.shape
        return path.stat().st_size - 4 * (shape.vocab_size - token) * shape.hidden_size
    if path.suffix == ".data":
        return 4 * 1000
    import onnx_ir

    name = "patch" if "vision" in path.name else "key.weight"
    value = onnx_ir.load(path).graph.initializers[name].const_value
    assert value is not None
    return path.read_bytes().index(value.tobytes()) + 400


def test_a_tie_of_the_oracle_is_counted_and_no_fault() -> None:
    oracle = np.array([[1.0, 1.0 + 1e-5, 0.0], [3.0, 1.0, 0.0]])
    ours = np.array([[1.0 + 2e-5, 1.0, 0.0], [3.0, 1.0, 0.0]])
    row = parity_report.with_ties(
        parity_report.compare("end to end", "ort", "", ours, oracle, Rule(1e-4)), ours, oracle
    )
    assert (row.ok, row.ties) == (True, 1)


def test_another_shape_is_a_failure_at_once() -> None:
    with pytest.raises(ParityFailed, match=r"llm ort x: shape \(2,\), the checkpoint gives \(3,\)"):
        parity_report.compare("llm", "ort", "x", np.zeros(2), np.zeros(3), Rule(1e-4))


@pytest.fixture
def again(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ExportOptions:
    """Options of a second export, whose graphs are copied from the first."""

    def copied(plan: export.Plan, folder: Path, step: Any) -> Written:
        copytree(exported.bundle / "onnx", folder / "onnx")
        (folder / "embed_tokens.npy").write_bytes(
            (exported.bundle / "embed_tokens.npy").read_bytes()
        )
        return exported.written

    monkeypatch.setattr(export, "write_graphs", copied)
    return ExportOptions(str(exported.checkpoint), tmp_path / "out" / "bundle")


def command(options: ExportOptions) -> int:
    return guarded("tokprune-export", lambda: run_export(options))


def left(options: ExportOptions) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(path.name for path in options.output.parent.iterdir())
    return []


def test_a_good_export_ends_with_tables_and_0(
    again: ExportOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(again) == 0
    out = capsys.readouterr().out
    assert "Parity with the checkpoint" in out
    assert "attention (untrained" in out
    assert left(again) == ["bundle"]


def test_out_of_tolerance_prints_the_table_and_leaves_no_bundle(
    again: ExportOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(replace(again, atol=1e-12)) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "comparisons are out of tolerance" in captured.err.splitlines()[-1]
    assert left(again) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "is full; nothing was left there. This export needs 0.0"), (errno.EIO, "EIO")],
)
def test_a_disk_that_fills_up_or_breaks_is_one_line(
    again: ExportOptions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(export.records, "files", fail)
    assert command(again) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tokprune-export: ")
    assert message in error
    assert left(again) == []


def test_an_interrupt_leaves_nothing(
    again: ExportOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.records, "files", interrupt)
    assert command(again) == 130
    assert "interrupted" in capsys.readouterr().err
    assert left(again) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 17}, "Got --opset 17; expected 18 to 22"),
        ({"atol": 0.0}, "Got --atol 0.0; expected a number between 0 and 1"),
        ({"max_kv_len": 4096}, "max-kv-len <= 2048 (the checkpoint's own bound)"),
        ({"max_input_len": 100, "max_kv_len": 99}, "Got --max-input-len 100 and --max-kv-len 99"),
        ({"num_decoder_layers": 4}, "Got --num-decoder-layers 4; expected 1 to 3"),
        ({"scorer": Path("no.safetensors")}, "no.safetensors"),
        ({"model": "/no/such/model"}, "There is no folder /no/such/model"),
        ({"device": "cuda"}, "There is no CUDA device here that torch can use"),
    ],
)
def test_bad_options_are_one_line_and_2_before_any_work(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(export.torch.cuda, "is_available", lambda: False)
    options = ExportOptions(str(exported.checkpoint), tmp_path / "out" / "bundle")
    options = replace(options, **changes)
    assert command(options) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert captured.out == ""
    assert left(options) == []


def test_an_output_that_exists_stays_as_it_is(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").write_text("mine")
    assert command(ExportOptions(str(exported.checkpoint), tmp_path / "bundle")) == 2
    assert "exists: remove it, or choose another OUTPUT" in capsys.readouterr().err
    assert (tmp_path / "bundle").read_text() == "mine"


def test_a_library_that_is_missing_is_one_line_that_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    assert guarded("tokprune-export", missing) == 2
    assert "No module named 'torch' (pip install 'tokprune[export]'" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
