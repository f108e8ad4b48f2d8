"""A machine whose TensorRT and GPU are fakes, and two engines for it."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT, Plan

from tokprune_runtimes import Carry
from tokprune_runtimes.device_memory import Workspace
from tokprune_runtimes.side_car import SideCar, encode_side_car
from tokprune_runtimes.trt import TrtGraph

SOURCE = "5" * 64
Shape = tuple[int, ...]


def ranges(*shapes: Shape) -> tuple[Shape, Shape, Shape]:
    least, most = shapes[0], shapes[-1]
    return least, most, most


def growing() -> Plan:
    """present = concat(past, new); total = sum of present; the longest is 64."""

    def shapes(given: Mapping[str, Shape]) -> dict[str, Shape]:
        return {"total": (), "present": (2, given["past"][1] + given["new"][1], 3)}

    def compute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        present = np.concatenate([feeds["past"], feeds["new"]], 1)
        return {"present": present, "total": present.sum(dtype=np.float32)}

    return Plan(
        inputs={"past": "HALF", "new": "HALF"},
        outputs={"total": "FLOAT", "present": "HALF"},
        profiles=[
            {"past": ranges((2, 0, 3)), "new": ranges((2, 1, 3), (2, 32, 3))},
            {"past": ranges((2, 1, 3), (2, 64, 3)), "new": ranges((2, 1, 3))},
        ],
        shapes=shapes,
        compute=compute,
    )


def in_place(dtype: str = "FLOAT") -> Plan:
    """Writes `new` at `at` into the cache, and sums what the mask lets through."""

    def compute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        cache, at = feeds["cache"].copy(), int(feeds["at"][0])
        cache[:, at : at + feeds["new"].shape[1]] = feeds["new"]
        # As an attention does it: what the mask hides is multiplied by zero, and NaN stays NaN.
        total = np.asarray((cache * feeds["mask"][:, :, None]).sum(dtype=np.float32))
        return {"total": total, "updated": cache}

    def profile(rows: int) -> dict[str, tuple[Shape, Shape, Shape]]:
        return {
            "cache": ranges((1, 8, 2), (1, 64, 2)),
            "new": ranges((1, 1, 2), (1, rows, 2)),
            "mask": ranges((1, 8), (1, 64)),
            "at": ranges((1,)),
        }

    return Plan(
        inputs={"cache": dtype, "new": dtype, "mask": "BOOL", "at": "INT64"},
        outputs={"total": "FLOAT", "updated": dtype},
        profiles=[profile(48), profile(1)],
        shapes=lambda given: {"total": (), "updated": given["cache"]},
        compute=compute,
        aliases={"updated": "cache"},
    )


PLANS: dict[bytes, Callable[[], Plan]] = {b"growing": growing, b"in place": in_place}


class Machine:
    """A GPU with TensorRT, and the engines on its disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuda = FakeCuda()
        self.plans = {data: plan() for data, plan in PLANS.items()}
        self.trt = FakeTensorRT(self.cuda, self.plans)
        self.workspace = Workspace()

    def write(self, data: bytes, **changes: Any) -> Path:
        path = self.folder / f"{data.decode().replace(' ', '_')}.engine"
        path.write_bytes(data)
        facts: dict[str, Any] = {
            "engine": "tensorrt",
            "version": "10.16.1.11",
            "sm": ["sm87"],
            "cuda": "12.6",
            "driver": "12.8",
            "source_sha256": SOURCE,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "profiles": [],
            "weight_streaming": False,
            "created": "2026-11-21T00:00:00+00:00",
            "seconds": 1.0,
            "warnings": [],
            "gpu": "Orin, 8 multiprocessors",
        }
        side_car = encode_side_car(SideCar(**{**facts, **changes}))
        path.with_suffix(".json").write_bytes(side_car)
        return path

    def load(self, data: bytes, **changes: Any) -> TrtGraph:
        path = self.write(data, **changes)
        return TrtGraph(path, "tensorrt", source_sha256=SOURCE, workspace=self.workspace)


def rows(count: int, value: float) -> np.ndarray:
    return np.full((2, count, 3), value, np.float16)


GROWS = [Carry("present", "past", (2, 0, 3), 1, in_place=False)]
CACHE = [Carry("updated", "cache", (1, 16, 2), 1, in_place=True)]


def cache_feeds(at: int, values: list[float], capacity: int = 16) -> dict[str, np.ndarray]:
    new = np.repeat(np.asarray(values, np.float32), 2).reshape(1, -1, 2)
    mask = np.arange(capacity)[None] < at + len(values)
    return {"new": new, "mask": mask, "at": np.asarray([at])}
