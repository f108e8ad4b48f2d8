from collections import namedtuple
from pathlib import Path

import pytest

from tokprune_export import preflight
from tokprune_export.checkpoint import Checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.layouts import Layout
from tokprune_export.preflight import BASE_MEMORY_BYTES, GRAPH_BYTES, Needs, needs

Usage = namedtuple("Usage", "total used free")
CONFIG = {"hidden_size": 10, "vocab_size": 100}
SHAPES = {"model.embed_tokens.weight": (100, 10), "model.layers.0.x.weight": (10, 20)}


def checkpoint(folder: Path, *, tied: bool) -> Checkpoint:
    head = {} if tied else {"lm_head.weight": (100, 10)}
    config = {"text_config": CONFIG}
    layout = Layout("qwen2_vl")
    return Checkpoint(folder, "model", None, config, {**SHAPES, **head}, layout, folder)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_beside_the_embedding_table(tmp_path: Path, *, tied: bool) -> None:
    (tmp_path / "config.json").write_bytes(bytes(50))
    found = needs(checkpoint(tmp_path, tied=tied), None)
    weights = 4 * (1000 + 200 + 1000)
    assert found.disk == weights + 2 * 4 * 100 + 50 + GRAPH_BYTES
    assert found.memory >= weights + BASE_MEMORY_BYTES


def test_layers_that_are_left_out_need_nothing(tmp_path: Path) -> None:
    whole, cut = (needs(checkpoint(tmp_path, tied=False), layers) for layers in (None, 0))
    assert whole.disk - cut.disk == 4 * 200


def test_too_little_disk_names_both_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10, 1, 9))
    message = r"Not enough disk at .*: this export needs 1\.00 GiB \(1073741824 bytes\), .*9 bytes"
    with pytest.raises(ExportRefused, match=message):
        preflight.check(Needs(disk=2**30, memory=0), tmp_path / "not" / "there" / "bundle")


def test_too_little_memory_names_both_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 2**29)
    message = r"Not enough memory: this export needs 1\.00 GiB .* available are 0\.50 GiB"
    with pytest.raises(ExportRefused, match=message):
        preflight.check(Needs(disk=0, memory=2**30), tmp_path / "bundle")


def test_memory_is_read_from_the_system() -> None:
    assert 0 < preflight.available_memory() < 2**50
