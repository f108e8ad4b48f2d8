"""`tokprune-export --engine`: engines are checked for before the export, and built after it."""

from pathlib import Path
from typing import Any

import pytest
import small_bundle
from fake_trt_build import FakeBuilder, install

from tokprune.errors import BackendUnavailable, RequestInvalid
from tokprune.manifest import Manifest
from tokprune_export import cli
from tokprune_export import export as exporter
from tokprune_export.options import ExportOptions

pytestmark = pytest.mark.torch


def write(options: ExportOptions, *_: Any) -> Manifest:
    """Stand for an export of minutes."""
    manifest = small_bundle.write(options.output)
    with small_bundle.edited(options.output) as raw:
        raw["graphs"]["llm"][0]["serves"] = ["onnxruntime-cpu", "tensorrt-rtx"]
    return manifest


def test_engines_are_built_of_what_was_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = install(monkeypatch, FakeBuilder({"tensorrt-rtx": "1.7.1"}, gpu=None))
    monkeypatch.setattr(exporter, "export", write)
    output = tmp_path / "bundle"
    cli.run_export(ExportOptions("model", output, engine="tensorrt-rtx", sm=("sm89",)))
    assert [build.engine.parent for build in builder.built] == [
        output / "device" / "sm89-rtx1.7.1"
    ] * 4
    assert "tensorrt-rtx engines" in capsys.readouterr().out


def test_a_builder_that_is_absent_stops_the_export_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeBuilder({}))
    monkeypatch.setattr(exporter, "export", lambda *_: pytest.fail("the export began"))
    options = ExportOptions("model", tmp_path / "bundle", engine="tensorrt")
    with pytest.raises(BackendUnavailable, match=r"pip install 'tokprune\[tensorrt\]'"):
        cli.run_export(options)
    with pytest.raises(RequestInvalid, match="give --engine too"):
        cli.run_export(ExportOptions("model", tmp_path / "bundle", sm=("sm87",)))
