"""What was measured of a device: the cost of each stage by size, and where that is kept.

    BUNDLE/device/cpu-amd-epyc-9v74-t2/calibration.json

Where the bundle cannot be written, the same folder lies in `$TOKPRUNE_STATE` (engines/folders.py).
"""

import os
import platform
import re
from collections.abc import Sequence
from itertools import combinations
from math import log
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from tokprune.bundle import MANIFEST, Bundle
from tokprune.containment import opened_file, opened_folder, read_small
from tokprune.engines.folders import can_make, device_roots
from tokprune.errors import BundleInvalid, NotCalibrated
from tokprune.files import atomic_write, sha256_file
from tokprune.types import Array
from tokprune_runtimes import Backend

Samples: TypeAlias = Sequence[tuple[Sequence[float | int], Sequence[float]]]  # sizes, times in ms
Stage = Literal["vision", "first_layer", "scorer", "select", "prefill"]
STAGES: tuple[Stage, ...] = ("vision", "first_layer", "scorer", "select", "prefill")
FILE = "calibration.json"
SCHEMA = 2
READ = (
    1,
    2,
)  # of schema 1 no parts of pictures were measured: what whole ones cost stands for them
_LARGEST_BYTES = 1 << 20
_P95 = 95


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cell as it was measured: one run of a stage, or several that were timed together."""

    sizes: list[float]  # N of each run
    median_ms: float
    p95_ms: float
    samples: int

    @property
    def terms(self) -> tuple[float, float, float]:
        """What a, b and c are multiplied with."""
        return float(len(self.sizes)), sum(self.sizes), sum(size * size for size in self.sizes)


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cost of one stage: a + b N + c N^2 milliseconds, and how far samples lie above it."""

    a: float
    b: float
    c: float
    spread: float  # multiple of the curve that its p95 is
    points: list[Point]

    def ms(self, size: float | int) -> float:
        """Return the expected time of one run."""
        return self.a + self.b * size + self.c * size * size


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All stages on one device. Sizes are those of `latency.stage_size`."""

    schema: int
    manifest_sha256: str  # of the bundle that was measured
    backend: str
    device: str
    threads: int | None
    selector: str
    stages: dict[Stage, Curve]
    system: str
    cores: int
    versions: dict[str, str]
    date: str  # ISO 8601, UTC
    seconds: float
    parts: Curve | None = None  # `vision` where it is shown parts; None: the bundle has none


def fit(samples: Samples) -> Curve:
    """Fit a curve by weighted least squares, with nothing negative in it.

    Squared errors are divided by the time, between relative errors (which small sizes would decide)
    and absolute ones (which the largest would). A negative cost would promise more the larger a
    picture is, so each subset of the three terms that comes out non-negative is tried, and the best
    one taken.
    """
    points = [
        Point(
            list(map(float, sizes)),
            float(np.median(times)),
            float(np.percentile(times, _P95)),
            len(times),
        )
        for sizes, times in samples
    ]
    plain: Array = np.asarray([point.terms for point in points])
    scale: Array = np.maximum(plain.max(axis=0), 1e-12)
    wanted: Array = np.maximum([point.median_ms for point in points], 1e-6)
    terms: Array = plain / scale / np.sqrt(wanted)[:, None]
    best, least = np.zeros(3), np.inf
    distinct = len({tuple(point.sizes) for point in points})
    for count in range(1, min(3, distinct) + 1):
        for chosen in combinations(range(3), count):
            columns = list(chosen)
            solved = np.linalg.lstsq(terms[:, columns], np.sqrt(wanted), rcond=None)[0]
            found = np.zeros(3)
            found[columns] = solved
            error = float(((terms @ found - np.sqrt(wanted)) ** 2).sum())
            if (solved >= 0).all() and error < least * (1 - 1e-9):
                best, least = found, error
    expected = plain @ (best / scale)
    a, b, c = (float(term) for term in best / scale)
    return Curve(a, b, c, _spread(samples, expected), points)


def _spread(samples: Samples, expected: Array) -> float:
    """Return the multiple of its curve below which a stage stays for 95 % of its time.

    Long runs count by their length: a pause of the system that trebles a run of a millisecond says
    nothing of a run of a hundred.
    """
    ratios = np.concatenate(
        [np.asarray(times) / ms for (_, times), ms in zip(samples, expected, strict=True)]
    )
    weights = np.repeat(expected, [len(times) for _, times in samples])
    order = np.argsort(ratios)
    below = np.cumsum(weights[order]) / weights.sum()
    return max(1.0, float(ratios[order][np.searchsorted(below, _P95 / 100)]))


def command_line(bundle: Bundle, backend: str, threads: int | None) -> str:
    """Return the command that calibrates."""
    chosen = "" if threads is None else f" --threads {threads}"
    return f"tokprune calibrate {bundle.path} --backend {backend}{chosen}"


def folder_name(backend: str, threads: int | None) -> str:
    """Return the folder of a backend on this device."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(backend).lower()).strip("-")[:60]
    return f"{backend}-{slug or 'unknown'}-t{'auto' if threads is None else threads}"


def device_name(backend: str) -> str:
    """Return what the system calls the processor, the board (Jetson) or the NVIDIA GPU."""
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text(errors="replace").strip("\0 \n")
    if backend != "cpu":
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            found = re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE)
            if found:
                return found[1].strip()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def save_calibration(bundle: Bundle, calibration: Calibration) -> Path:
    """Write a calibration, and return where.

    Raises:
        OSError: neither the bundle nor `$TOKPRUNE_STATE` can be written.
    """
    name = folder_name(calibration.backend, calibration.threads)
    inside, outside = (root / name for root in device_roots(bundle))
    folder = inside if can_make(inside) else outside
    folder.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(calibration), indent=1)
    atomic_write(folder / FILE, data + b"\n")
    return folder / FILE


def load_calibration(bundle: Bundle, backend: Backend, threads: int | None) -> Calibration | None:
    """Return what was measured of a bundle on this device; None where nothing was.

    Raises:
        NotCalibrated: there is a file, and it is of another bundle, device or version of tokprune.
    """
    name = folder_name(backend, threads)
    again = f"Measure again: {command_line(bundle, backend, threads)}"
    for root in device_roots(bundle):
        try:
            with (
                opened_folder(root / name) as folder,
                opened_file(folder, FILE) as descriptor,
            ):
                data = read_small(descriptor, FILE, _LARGEST_BYTES)
        except BundleInvalid as error:
            if error.code in ("bundle_invalid.missing", "bundle_invalid.folder"):
                continue
            raise NotCalibrated(f"{root / name / FILE}: {error} {again}") from None
        if fault := _fault(data, bundle, backend, threads):
            raise NotCalibrated(f"{root / name / FILE} {fault}. {again}")
        return msgspec.json.decode(data, type=Calibration)
    return None


def _fault(data: bytes, bundle: Bundle, backend: Backend, threads: int | None) -> str | None:
    """Return why a calibration is not to be used."""
    try:
        found = msgspec.json.decode(data, type=Calibration)
    except msgspec.DecodeError as error:  # ValidationError is one
        return f"is no calibration of this version of tokprune ({error})"
    if found.schema not in READ:
        return f"has schema {found.schema}, this version of tokprune reads {READ[0]} to {SCHEMA}"
    if found.manifest_sha256 != sha256_file(bundle.path / MANIFEST):
        return "was measured with another bundle"
    here = (backend, device_name(backend), threads)
    there = (found.backend, found.device, found.threads)
    if there != here:
        return f"was measured with {_words(there)}, this is {_words(here)}"
    if threads is None and found.cores != cores():
        return f"was measured with {found.cores} processors, this process may use {cores()}"
    parts = [] if found.parts is None else [found.parts]
    curves = [*found.stages.values(), *parts]
    if set(found.stages) != set(STAGES) or not all(map(_sound, curves)):
        return "lacks a stage, or holds numbers that make no sense"
    return None


def _sound(curve: Curve) -> bool:
    """Tell whether a curve promises no negative time."""
    terms = (curve.a, curve.b, curve.c)
    return min(terms) >= 0 < max(terms) < float("inf") and 1 <= curve.spread < float("inf")


def _words(place: tuple[str, str, int | None]) -> str:
    backend, device, threads = place
    return f"backend {backend} on {device}, threads {'auto' if threads is None else threads}"


def margin_of(curve: Curve) -> float:
    """Return how far a stage's p95 lies above its curve, as a logarithm."""
    return log(curve.spread)
