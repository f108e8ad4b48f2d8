"""What `make gpu` calls skipped, and what it calls failed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import absence
import program
import pytest
import setting
from absence import absence as absent
from fake_machine import Machine
from program import Options, Part, ran, summary
from setting import Row, Setting, Skipped, case

from tokprune.errors import BackendUnavailable, BuildRefused
from tokprune_runtimes.errors import EngineUnavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def a_bundle(precision: str = "fp32") -> Any:
    graphs = SimpleNamespace(scorer=SimpleNamespace(file="onnx/scorer.onnx"))
    manifest = SimpleNamespace(precision=precision, graphs=graphs)
    return SimpleNamespace(manifest=manifest, file=lambda name: Path("/bundle") / name)


def a_setting(tmp_path: Path, engine: str = "tensorrt") -> Setting:
    return Setting(engine, ("fp32",), tmp_path, questions=1, rounds=1, size="tiny")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A bundle that opens, on an engine that is there, unless a test says otherwise."""
    monkeypatch.setattr(setting, "open_bundle", lambda path: a_bundle())
    monkeypatch.setattr(setting, "absence", lambda engine, bundle: None)
    monkeypatch.setattr(setting, "build_engines", lambda bundle, options: ())
    return monkeypatch


def test_an_engine_whose_library_is_absent_is_skipped_with_the_reason(
    tmp_path: Path, opened: pytest.MonkeyPatch
) -> None:
    opened.setattr(setting, "absence", lambda engine, bundle: f"{engine} is not installed")
    with pytest.raises(Skipped, match="tensorrt is not installed"):
        a_setting(tmp_path).open(tmp_path)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("build_engines", BuildRefused("The engine llm was not built. It has an unknown operator")),
        ("build_engines", BuildRefused("Not enough disk at /: this needs 4 GiB")),
        ("build_engines", BackendUnavailable("tensorrt cannot build here (nullptr)")),
        ("load", BackendUnavailable("llm.engine:\nSerialization assertion failed.")),
    ],
)
def test_what_an_engine_that_is_there_does_not_do_is_a_failure(
    tmp_path: Path, opened: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    opened.setattr(setting if function == "build_engines" else setting.tokprune, function, refuse)
    with pytest.raises(type(error)):
        a_setting(tmp_path).open(tmp_path)
    about = {"precision": "fp32"}
    (row,) = case(about, lambda: iter([{"vlm": a_setting(tmp_path).open(tmp_path)}]))
    assert row["ok"] is False
    assert str(error).splitlines()[-1] in row["failed"]


def test_cases_after_one_that_fails_or_is_skipped_are_tried() -> None:
    def rows(number: int) -> Iterator[Row]:
        yield {"first": True}
        if number == 1:
            raise Skipped("no int4")
        if number == 2:
            raise RuntimeError("a fault")

    found = [row for number in range(4) for row in case({"case": number}, lambda n=number: rows(n))]
    assert [row["case"] for row in found] == [0, 1, 1, 2, 2, 3]
    assert found[2] == {"case": 1, "skipped": "no int4"}
    assert found[4]["ok"] is False
    assert "RuntimeError: a fault" in found[4]["failed"]


def test_tensorrt_without_its_module_or_a_driver_is_absent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert absent("tensorrt", a_bundle()) is None
    machine.cuda.driver = False
    assert "no CUDA GPU" in str(absent("tensorrt", a_bundle()))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt engine is not installed" in str(absent("tensorrt", a_bundle()))


@pytest.mark.parametrize(
    ("version", "precision", "offered"),
    [
        ("10.3.0", "int4", False),
        ("10.3.0", "fp16", True),
        ("10.13.2", "int4", True),
        ("11.4.1.2", "int4", True),
    ],
)
def test_a_precision_that_a_version_has_not_is_named(
    machine: Machine, version: str, precision: str, *, offered: bool
) -> None:
    machine.trt.__version__ = version  # type: ignore[misc]
    told = absent("tensorrt", a_bundle(precision))
    assert (told is None) == offered
    if told is not None:
        assert f"tensorrt offers no {precision}" in told


def test_the_cpu_is_skipped_for_bf16_alone() -> None:
    assert absent("cpu", a_bundle("fp16")) is None
    assert str(absent("cpu", a_bundle("bf16"))).startswith("cpu offers no bf16")


@pytest.mark.parametrize(
    ("session", "told"),
    [
        ([CPU], "does not start"),
        ([CUDA, CPU], None),
        (RuntimeError("no kernel for this node"), None),  # loading the bundle says so, and fails
    ],
)
def test_onnx_runtime_is_absent_where_its_cuda_provider_does_not_start(
    monkeypatch: pytest.MonkeyPatch, session: Any, told: str | None
) -> None:
    def opened(path: str, providers: list[str]) -> Any:
        if isinstance(session, Exception):
            raise session
        return SimpleNamespace(get_providers=lambda: session)

    fake = SimpleNamespace(get_available_providers=lambda: [CUDA, CPU], InferenceSession=opened)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    found = absent("cuda", a_bundle())
    assert (found is None) == (told is None)
    assert (told or "") in (found or "")


def test_onnx_runtime_without_cuda_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = EngineUnavailable("This ONNX Runtime has no CUDA provider")
    monkeypatch.setattr(absence, "refusal", lambda providers: refused)
    assert absent("cuda", a_bundle()) == str(refused)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("ModuleNotFoundError: No module named 'torch'", Skipped),
        ("ModuleNotFoundError: No module named 'onnx.helper'", Skipped),
        ("ModuleNotFoundError: No module named 'tokprune_export.gone'", RuntimeError),
        ("ValueError: the checkpoint is of another family", RuntimeError),
    ],
)
def test_an_export_is_skipped_only_where_there_is_nothing_to_export_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception]
) -> None:
    done = SimpleNamespace(returncode=1, stdout="", stderr=f"Traceback\n{said}\n")
    monkeypatch.setattr(setting.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(error, match=said.rpartition("'")[0] or said):
        setting.export(tmp_path, tmp_path / "bundle", "fp32")


def test_a_jetson_without_nvidia_smi_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_text("NVIDIA Jetson AGX Orin\0")
    monkeypatch.setattr(setting, "MODEL", tmp_path / "model")
    monkeypatch.setattr(setting.shutil, "which", lambda name: None)
    for device, name in ((True, "NVIDIA Jetson AGX Orin"), (False, "none")):
        monkeypatch.setattr(setting, "has_device", lambda device=device: device)
        setting.gpu_facts.cache_clear()
        assert setting.gpu_facts()["gpu"] == name
    setting.gpu_facts.cache_clear()


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([{"ok": True}, {"skipped": "no int4"}], "ran"),
        ([{"ok": True}, {"ok": False, "failed": "a fault"}, {"skipped": "no int4"}], "failed"),
        ([{"skipped": "no int4"}, {"skipped": "no int4"}], "skipped"),
        ([], "skipped"),
        ([{"target": "fast", "met": False}], "ran"),  # a missed target fails nothing
    ],
)
def test_a_part_is_what_its_rows_amount_to(tmp_path: Path, rows: list[Row], state: str) -> None:
    part = Part("any", lambda given: iter(rows))
    found = ran(part, "cpu", Options(work=tmp_path))
    assert found["state"] == state
    if any("skipped" in row for row in rows):
        assert found["reason"] == "no int4"


def test_rows_before_an_error_are_kept(tmp_path: Path) -> None:
    def broken(given: Setting) -> Iterator[Row]:
        yield {"ok": True}
        raise RuntimeError("a fault")

    found = ran(Part("any", broken), "cpu", Options(work=tmp_path))
    assert (found["state"], found["rows"]) == ("failed", [{"ok": True}])
    (line,) = summary([found], [])
    assert line == "cpu: any: failed: RuntimeError: a fault"


def test_the_exit_status_and_the_file_say_what_failed_and_what_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = {"target": "fast", "size": "7B", "vision_tokens": 1521, "measured": 2, "met": False}
    outcomes: dict[str, list[Row]] = {
        "sweep": [{"ok": True}, {"skipped": "no int4"}],
        "slices": [missed],
    }
    parts = [Part(name, lambda given, name=name: iter(outcomes[name])) for name in outcomes]
    monkeypatch.setattr(program, "PARTS", parts)
    words = ["run.py", "--engines", "cpu", "--parts", *outcomes]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    for failing, status in ((False, 0), (True, 1)):
        if failing:
            outcomes["sweep"].append({"ok": False, "failed": "a fault"})
        with pytest.raises(SystemExit) as exit_:
            program.main()
        assert exit_.value.code == status
    (results,) = tmp_path.glob("*.json")
    text = results.read_text()
    assert '"MISSED: fast: 2 (cpu, 7B, 1521 vision tokens)"' in text
    assert "1 of 3 rows are not as they should be, 1 of 3 rows skipped: a fault: no int4" in text
    assert "MISSED: fast: 2" in capsys.readouterr().out


def test_unknown_names_are_refused() -> None:
    for options in (
        Options(parts=("speed",)),
        Options(precisions=("int8",)),
        Options(engines=("vulkan",)),
        Options(slice="70B"),
    ):
        with pytest.raises(SystemExit, match=r"Unknown \w+ '\w+'; known: "):
            program.check(options)
