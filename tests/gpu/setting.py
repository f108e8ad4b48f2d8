"""Bundles, engines and facts of a run."""

import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from absence import TENSORRT, absence
from shipped import scorers_of

import tokprune
from tokprune.backends import has_device
from tokprune.bundle import open_bundle
from tokprune.engines.building import build_engines
from tokprune.engines.plans import BuildOptions
from tokprune.model import Model
from tokprune.vlm import VLM

CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
FAMILIES = ("qwen2_vl", "llava_onevision", "vila")
EXPORTERS = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors")
MODEL = Path("/proc/device-tree/model")  # a Jetson's name
Row: TypeAlias = dict[str, Any]


class Skipped(Exception):
    """This cannot be tried here; the text says what is absent."""


@dataclass(frozen=True)
class Setting:
    """What a part is run with."""

    engine: str
    precisions: tuple[str, ...]
    work: Path
    questions: int
    rounds: int
    size: str

    def bundle(self, family: str, precision: str) -> Path:
        """Return the bundle of a demo checkpoint, exported if it is not there.

        Raises:
            Skipped: it is not there, and there is nothing to export it with.
        """
        target = self.work / f"{family}-{precision}"
        checkpoint = CHECKPOINTS / family
        if not target.exists():
            export(checkpoint, target, precision, (*scorers_of(checkpoint),))
        return target

    def open(self, bundle: Path) -> VLM:
        """Load a bundle on this engine, building what is not there.

        Raises:
            Skipped: the engine's library or the GPU is absent, or its version has not the
                precision. Whatever else goes wrong is raised as it comes.
        """
        opened = open_bundle(bundle)
        if absent := absence(self.engine, opened):
            raise Skipped(absent)
        if self.engine in TENSORRT:
            build_engines(opened, BuildOptions(kind=self.engine))  # type: ignore[arg-type]
        return tokprune.load(bundle, backend=self.engine)  # type: ignore[arg-type]

    def on_cpu(self, family: str, precision: str) -> VLM:
        """Load a bundle on the CPU, to compare with.

        Raises:
            Skipped: the CPU does not run this precision.
        """
        bundle = self.bundle(family, precision)
        if absent := absence("cpu", open_bundle(bundle)):
            raise Skipped(absent)
        return tokprune.load(bundle, backend="cpu")

    def reference(self, family: str, precision: str) -> tuple[VLM, str]:
        """Return a bundle on the CPU and its precision: fp32, where the CPU does not run another.

        Raises:
            Skipped: it cannot be exported here.
        """
        try:
            return self.on_cpu(family, precision), precision
        except Skipped:
            return self.on_cpu(family, "fp32"), "fp32"


def prepare(
    engine: str, precisions: tuple[str, ...], work: Path, *, questions: int, rounds: int, size: str
) -> Setting:
    """Return a setting.

    Raises:
        Skipped: there is no GPU.
    """
    if engine != "cpu" and gpu_facts()["gpu"] == "none":
        raise Skipped("There is no NVIDIA GPU here")
    work.mkdir(parents=True, exist_ok=True)
    return Setting(engine, precisions, work, questions, rounds, size)


def case(about: Row, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield one case's rows. What stops it becomes a row too, so that other cases go on.

    Args:
        about: which case, put before every row.
        rows: finds out; Skipped gives a row that says why, any other error one that is not ok.
    """
    try:
        for row in rows():
            yield {**about, **row}
    except Skipped as reason:
        yield {**about, "skipped": str(reason)}
    except Exception as error:  # whatever it was, it is a finding
        yield {**about, "failed": "".join(traceback.format_exception(error)), "ok": False}


def each_bundle(
    setting: Setting, rows: Callable[[Setting, str, str], Iterable[Row]]
) -> Iterator[Row]:
    """Yield the rows of every family and precision, each a case of its own."""
    for family in FAMILIES:
        for precision in setting.precisions:
            about = {"family": family, "precision": precision}
            yield from case(about, partial(rows, setting, family, precision))


def endless(model: Model) -> VLM:
    """Return a VLM whose answers are as long as is asked for; no token ends them."""
    return VLM(replace(model, llm=replace(model.llm, eos=frozenset[int]())))


def export(checkpoint: Path, target: Path, precision: str, options: tuple[str, ...] = ()) -> None:
    """Run `tokprune-export` in a process of its own.

    Raises:
        Skipped: torch, transformers or onnx are not installed here.
        RuntimeError: the export was refused or failed.
    """
    code = "from tokprune_export.cli import export_main; export_main()"
    given = (str(checkpoint), str(target), "--precision", precision, *options)
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if any(f"ModuleNotFoundError: No module named '{name}" in last for name in EXPORTERS):
            raise Skipped(f"{target.name} is not there, and cannot be exported here: {last}")
        raise RuntimeError(f"export of {target.name} failed:\n{done.stdout}\n{done.stderr}")


@lru_cache(maxsize=1)
def gpu_facts() -> dict[str, str]:
    """Return what nvidia-smi tells of the first GPU, or a Jetson of itself."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    told = "there is no nvidia-smi"
    if shutil.which("nvidia-smi") is not None:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        values = [value.strip() for value in lines[0].split(",")] if lines else []
        if not done.returncode and len(values) == len(fields):
            names = ("gpu", "driver", "memory", "compute_capability")
            return {**dict(zip(names, values, strict=True)), "gpus": str(len(lines))}
        told = (done.stdout + done.stderr).strip()
    if not has_device():
        return {"gpu": "none", "nvidia_smi": told}
    name = MODEL.read_text(encoding="utf-8").strip("\0\n ") if MODEL.exists() else "unnamed"
    return {"gpu": name, "nvidia_smi": told}


def free_bytes() -> int:
    """Return the free memory of the GPU.

    Raises:
        Skipped: cuda-bindings is not installed.
    """
    cuda = cuda_runtime()
    error, free, _ = cuda.cudaMemGetInfo()
    if int(error):
        raise RuntimeError(f"cudaMemGetInfo says {error}")
    return int(free)


def cuda_runtime() -> Any:
    """Return cuda-bindings' module.

    Raises:
        Skipped: it is not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise Skipped(f"cuda-bindings is not installed: {error}") from None
