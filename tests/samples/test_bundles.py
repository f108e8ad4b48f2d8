"""`make bundles` and `make demo`: what is exported, and when again."""

import os
import subprocess
from pathlib import Path
from shutil import copyfile

import pytest

ROOT = Path(__file__).parents[2]
CHECKPOINTS = "samples/scenes/checkpoints"
PROGRAM = """\
#!/bin/sh
echo "$(basename $0) $*"
case $0 in *tokprune-export) mkdir -p "$2"; touch "$2/manifest.json" ;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two checkpoints whose exporter only says what it was told."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        copyfile(ROOT / name, tmp_path / name)
    for name in ("qwen2_vl/config.json", "qwen2_vl/scorer.safetensors", "vila/config.json",
                 "vila/llm/model.safetensors"):  # fmt: skip
        path = tmp_path / CHECKPOINTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for folder in ("sdk", "runtimes", "export", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("tokprune-export", "python"):
        program = tmp_path / ".venv/bin" / name
        program.write_text(PROGRAM)
        program.chmod(0o755)
    for name in (".pip", ".installed"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def make(checkout: Path, target: str) -> list[str]:
    """Return what was run."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--silent", target]  # `make test` may run this: its flags are not for here
    done = subprocess.run(
        command, cwd=checkout, env=plain, capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith(("tokprune", "python"))]


def newer(path: Path, than: Path) -> None:
    os.utime(path, ns=(0, than.stat().st_mtime_ns + 1_000_000_000))


def test_every_checkpoint_is_exported_with_its_scorer_and_only_where_it_changed(
    checkout: Path,
) -> None:
    scorer = f"--scorer {CHECKPOINTS}/qwen2_vl/scorer.safetensors"
    export = f"tokprune-export {CHECKPOINTS}"
    qwen = f"{export}/qwen2_vl build/bundles/qwen2_vl --saliency {scorer}"
    vila = f"{export}/vila build/bundles/vila --saliency"
    assert sorted(make(checkout, "bundles")) == [qwen, vila]
    assert make(checkout, "bundles") == []
    made = checkout / "build/bundles/vila/manifest.json"
    newer(checkout / CHECKPOINTS / "vila/llm/model.safetensors", made)
    assert make(checkout, "bundles") == [vila]


def test_the_demo_is_the_first_bundle_under_another_name(checkout: Path) -> None:
    (checkout / "build/demo").mkdir(parents=True)  # as earlier versions made it
    (checkout / "build/demo/manifest.json").touch()
    os.utime(checkout / "build/demo/manifest.json", ns=(0, 0))
    export, ask = make(checkout, "demo")
    assert export.startswith(f"tokprune-export {CHECKPOINTS}/qwen2_vl build/bundles/qwen2_vl")
    assert ask == "python samples/demo.py build/demo build/demo-overlay.png"
    made = checkout / "build/bundles/qwen2_vl/manifest.json"
    assert (checkout / "build/demo/manifest.json").samefile(made)
    assert make(checkout, "demo") == [ask]
