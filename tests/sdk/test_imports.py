"""The robot's side: nothing heavy is imported, and the public names are what they say."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tokprune
import tokprune_runtimes

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx"):
            raise ImportError(f"{name} must not be imported on a robot")

sys.meta_path.insert(0, Blocked())
"""
IMPORT_ALL = """
import importlib, pkgutil, tokprune, tokprune.cli, tokprune_runtimes
for package in (tokprune, tokprune_runtimes):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
ASK = """
import json, numpy as np, tokprune
picture = np.random.default_rng(0).integers(0, 255, (224, 196, 3), np.uint8)
answer = tokprune.load(sys.argv[1]).ask(picture, "what color is the star?", budget=0.5)
print(json.dumps([answer.kept, answer.total, len(answer.token_ids), answer.finish_reason]))
"""


def run(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter that finds packages where this one does."""
    paths = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_of_the_robot_side_imports_without_torch_transformers_and_onnx() -> None:
    run(BLOCKED + IMPORT_ALL)


def test_the_block_of_these_tests_blocks() -> None:
    with pytest.raises(AssertionError, match="torch must not be imported on a robot"):
        run(BLOCKED + "import torch")


@pytest.mark.demo
def test_a_process_without_torch_transformers_and_onnx_answers_a_question(
    demo_bundle: Path,
) -> None:
    kept, total, tokens, reason = json.loads(run(BLOCKED + ASK, str(demo_bundle)))
    assert (kept, total) == (28, 56)
    assert tokens > 0
    assert reason in ("stop", "length")


@pytest.mark.parametrize("package", [tokprune, tokprune_runtimes])
def test_all_lists_exactly_what_a_package_offers(package: ModuleType) -> None:
    modules = {name for name, value in vars(package).items() if isinstance(value, ModuleType)}
    offered = {name for name in vars(package) if not name.startswith("_")} - modules
    assert set(package.__all__) - modules == offered
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(set(package.__all__)) == len(package.__all__)


def test_importing_the_sdk_reads_no_engine() -> None:
    code = "import tokprune_runtimes\nassert 'onnxruntime' not in sys.modules"
    run(f"import sys\n{code}")
