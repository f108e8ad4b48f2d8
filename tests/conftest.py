"""Which tests can run here, and the checkpoints and bundles that several of them use."""

import fcntl
import gc
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soaking
from random_checkpoint import write_checkpoint
from shipped import scorers_of

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors")
ON_DEVICE = bool(os.environ.get("TOKPRUNE_TEST_DEVICE"))  # make device has exported the demo
NEEDS = {"torch": "torch", "torchvision": "torchvision"}  # marker -> library
if not ON_DEVICE:
    NEEDS["demo"] = "torch"
DEVICES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu")
WRITERS = (  # what a bundle's contents depend on
    "export/**/*.py",
    "sdk/tokprune/manifest.py",
    "sdk/tokprune/prompting.py",
    "sdk/tokprune/families/*.py",
)
TORCHVISION = Path(sys.prefix) / "torchvision"  # the Makefile puts it there


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it puts in the background with Ctrl-C ignored, and so would our children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if find_spec("hypothesis"):  # lmms-eval's environment has none
        from hypothesis import HealthCheck, settings

        # How long a draw takes says how busy the machine is.
        busy = [HealthCheck.too_slow]
        settings.register_profile("busy", deadline=None, suppress_health_check=busy)
        settings.load_profile("busy")
    if soaking.ON:
        config.pluginmanager.register(soaking.Soak(ROOT))


def pytest_collection_finish() -> None:
    """Keep what the imports made out of garbage collections: each took 0.6 s here, with torch."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, library in NEEDS.items():
            if item.get_closest_marker(mark) and find_spec(library) is None:
                item.add_marker(pytest.mark.skip(reason=f"{library} is not installed"))
        if item.get_closest_marker("gpu") and not any(Path(path).exists() for path in DEVICES):
            item.add_marker(pytest.mark.skip(reason="there is no NVIDIA device"))
        if item.get_closest_marker("jetpack") and not ON_DEVICE:
            item.add_marker(pytest.mark.skip(reason="make device runs it"))
        if item.get_closest_marker("network") and not os.environ.get("TOKPRUNE_TEST_NETWORK"):
            item.add_marker(pytest.mark.skip(reason="TOKPRUNE_TEST_NETWORK is not set"))
        if item.get_closest_marker("soak") and not soaking.ON:
            item.add_marker(pytest.mark.skip(reason="make soak runs it"))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return SkippedWithoutLibraries.from_parent(parent, path=module_path)


class SkippedWithoutLibraries(pytest.Module):
    """A test file that imports a heavy library at its top is skipped where that is missing."""

    def collect(self) -> Any:
        try:
            return super().collect()
        except self.CollectError as error:
            name = str(getattr(error.__cause__, "name", "")).partition(".")[0]
            if name in LIBRARIES and find_spec(name) is None:
                pytest.skip(f"{name} is not installed", allow_module_level=True)
            raise


class TorchvisionOperators(MetaPathFinder):
    """Declares what torchvision's import looks up, where its compiled half does not fit torch.

    Its wheel cannot load that half beside a CPU build of torch. The rest, which HF's processors
    use, is Python. The operators that its import checks are declared, and cannot be called. Nobody
    does that for other programs, so `make setup` puts torchvision where only this file looks.
    """

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        spec = find_spec("torchvision")
        folders = (spec and spec.submodule_search_locations) or []
        try:
            for library in Path(folders[0]).glob("_C*.so"):
                torch.ops.load_library(library)
        except OSError:
            for operator in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", schema)


if find_spec("torch"):
    sys.meta_path.insert(0, TorchvisionOperators())
    sys.path.append(str(TORCHVISION))


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The shipped Qwen2-VL; TOKPRUNE_TEST_CHECKPOINT names another while one is being made."""
    other = os.environ.get("TOKPRUNE_TEST_CHECKPOINT")
    return Path(other) if other else ROOT / "samples/scenes/checkpoints/qwen2_vl"


@pytest.fixture(scope="session")
def demo_bundle(demo_checkpoint: Path) -> Path:
    """The demo Qwen2-VL, as `make bundles` exports it. Kept in build/ until something changes."""
    return bundle_of(demo_checkpoint)


@pytest.fixture(scope="session")
def demo_bundles(demo_checkpoint: Path) -> Callable[..., Path]:
    """The same of any family, in any precision."""

    def find(family: str, precision: str = "fp32") -> Path:
        other = ROOT / "samples" / "scenes" / "checkpoints" / family
        return bundle_of(demo_checkpoint if family == "qwen2_vl" else other, precision)

    return find


def bundle_of(checkpoint: Path, precision: str = "fp32") -> Path:
    """Export a checkpoint with saliency and its scorer, unless it was."""
    inputs = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for pattern in WRITERS:
        inputs += sorted(ROOT.glob(pattern))
    digest = hashlib.sha256(precision.encode())
    for path in (*inputs, ROOT / "constraints.txt"):
        digest.update(path.name.encode() + path.read_bytes())
    bundle = ROOT / "build" / "tests" / f"demo-{digest.hexdigest()[:16]}"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with bundle.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite's other processes want it too
        if not bundle.exists():
            options = scorers_of(checkpoint)
            export_bundle(checkpoint, bundle, "--precision", precision, "--saliency", *options)
    return bundle


def export_bundle(checkpoint: Path, bundle: Path, *options: str) -> None:
    """Run `tokprune-export` in a process of its own, whose memory goes back."""
    code = "from tokprune_export.cli import export_main; export_main()"
    command = [sys.executable, "-c", code, str(checkpoint), str(bundle), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"export failed:\n{result.stdout}\n{result.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Makes random Qwen2-VLs of odd dimensions; see random_checkpoint.write_checkpoint."""
    made: dict[tuple[tuple[str, Any], ...], Path] = {}

    def make(**options: Any) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint") / "model"
            write_checkpoint(made[key], demo_checkpoint, **options)
        return made[key]

    return make
