"""Bundles, engines and facts of a run."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from shipped import scorers_of

import tokprune
from tokprune.bundle import open_bundle
from tokprune.engines.building import BuildOptions, build_engines
from tokprune.errors import BackendUnavailable, BuildRefused
from tokprune.vlm import VLM

CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
FAMILIES = ("qwen2_vl", "llava_onevision", "vila")
TENSORRT = ("tensorrt", "tensorrt-rtx")


class Skipped(Exception):
    """This cannot be tried here; the text says why."""


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
            Skipped: it is not there, and cannot be exported here.
        """
        target = self.work / f"{family}-{precision}"
        checkpoint = CHECKPOINTS / family
        if not target.exists():
            export(checkpoint, target, precision, (*scorers_of(checkpoint),))
        return target

    def open(self, bundle: Path) -> VLM:
        """Load a bundle on this engine, building what is not there.

        Raises:
            Skipped: the engine is not installed, or does not take this bundle.
        """
        try:
            if self.engine in TENSORRT:
                build_engines(open_bundle(bundle), BuildOptions(kind=self.engine))  # type: ignore[arg-type]
            return tokprune.load(bundle, backend=self.engine)  # type: ignore[arg-type]
        except (BackendUnavailable, BuildRefused) as reason:
            raise Skipped(str(reason)) from None


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


def export(checkpoint: Path, target: Path, precision: str, options: tuple[str, ...] = ()) -> None:
    """Run `tokprune-export` in a process of its own.

    Raises:
        Skipped: torch or transformers are not installed here.
        RuntimeError: the export was refused or failed.
    """
    code = "from tokprune_export.cli import export_main; export_main()"
    given = (str(checkpoint), str(target), "--precision", precision, *options)
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            last = done.stderr.strip().splitlines()[-1]
            raise Skipped(f"{target.name} is not there, and cannot be exported here: {last}")
        raise RuntimeError(f"export of {target.name} failed:\n{done.stdout}\n{done.stderr}")


@lru_cache(maxsize=1)
def gpu_facts() -> dict[str, str]:
    """Return what nvidia-smi tells of the first GPU."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    if shutil.which("nvidia-smi") is None:
        return {"gpu": "none"}
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"gpu": "none", "nvidia_smi": (done.stdout + done.stderr).strip()}
    values = [value.strip() for value in lines[0].split(",")]
    found = dict(zip(("gpu", "driver", "memory", "compute_capability"), values, strict=True))
    return {**found, "gpus": str(len(lines))}


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
