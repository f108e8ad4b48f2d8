"""Where TensorRT engines of a bundle lie.

    BUNDLE/device/sm87-trt10.3.0/llm.engine, llm.json      of one GPU and version, with side-cars
    BUNDLE/device/sm86+sm89-rtx1.7.1.116/...               built for several GPUs
    BUNDLE/device/all-rtx1.7.1.116/...                     built without a GPU, for all on offer
    BUNDLE/device/sm87-trt10.16.1-portable/...             with that form of the LLM, on request

Where the bundle cannot be written, the same folders lie in `$TOKPRUNE_STATE/<sha256 of
manifest.json>/` (by default below `~/.cache/tokprune`). Engines are native code of the device: the
manifest does not list them, `tokprune verify` shows them apart, and whoever can write this folder
decides what runs. Remove `device/` from a bundle that comes from somebody else.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tokprune.bundle import DEVICE_FOLDER, MANIFEST, Bundle
from tokprune.files import sha256_file

Kind = Literal["tensorrt", "tensorrt-rtx"]

ALL_GPUS = "all"
_SHORT: dict[Kind, str] = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
_FOLDER = re.compile(r"(all|sm\d+[a-z]?(?:\+sm\d+[a-z]?)*)-(trt|rtx)(\d+(?:\.\d+)*)(?:-([a-z]+))?")


class EngineFolder(NamedTuple):
    """Four engines of one build."""

    path: Path
    kind: Kind
    version: str
    sm: tuple[str, ...]  # of the GPUs; empty: all that the builder offered
    form: str | None = None  # of the LLM, where it is not the one that the version takes by itself

    @property
    def target(self) -> str:
        """GPUs as the folder's name has them."""
        return "+".join(self.sm) or ALL_GPUS

    def engine(self, name: str) -> Path:
        """Return where an engine lies. Its side-car has the suffix `.json`."""
        return self.path / f"{name}.engine"


def device_roots(bundle: Bundle) -> tuple[Path, Path]:
    """Return the folders that may hold engines: the bundle's, and the one of read-only bundles."""
    place = state_folder(os.environ, None)
    return bundle.path / DEVICE_FOLDER, place / sha256_file(bundle.path / MANIFEST)


def state_folder(environment: Mapping[str, str], home: Path | None) -> Path:
    """Return where things lie that a device makes of bundles that it cannot write into."""
    if state := environment.get("TOKPRUNE_STATE"):
        return Path(state)
    cache = environment.get("XDG_CACHE_HOME") or (home or Path.home()) / ".cache"
    return Path(cache) / "tokprune"


def new_folder(
    bundle: Bundle, kind: Kind, version: str, sm: tuple[str, ...], form: str | None = None
) -> EngineFolder:
    """Return where engines are to be built, and make sure that it can be written.

    Args:
        bundle: what they are built from.
        kind: the engine.
        version: of it.
        sm: GPUs, empty for all.
        form: of the LLM, where it is not the one that the version takes by itself.

    Raises:
        OSError: neither the bundle nor `$TOKPRUNE_STATE` can be written.
    """
    name = f"{'+'.join(sm) or ALL_GPUS}-{_SHORT[kind]}{version}" + (f"-{form}" if form else "")
    inside, outside = (root / name for root in device_roots(bundle))
    place = inside if can_make(inside) else outside
    place.mkdir(parents=True, exist_ok=True)
    return EngineFolder(place, kind, version, sm, form)


def engine_folders(bundle: Bundle) -> list[EngineFolder]:
    """Return all folders of engines, the bundle's own first. Nothing in them is opened."""
    found: list[EngineFolder] = []
    for root in device_roots(bundle):
        with suppress(OSError):
            for path in sorted(path for path in root.iterdir() if not path.is_symlink()):
                parts = _FOLDER.fullmatch(path.name)
                if parts and path.is_dir():
                    kind: Kind = "tensorrt" if parts[2] == "trt" else "tensorrt-rtx"
                    sm = () if parts[1] == ALL_GPUS else tuple(parts[1].split("+"))
                    found.append(EngineFolder(path, kind, parts[3], sm, parts[4]))
    return found


def can_make(folder: Path) -> bool:
    """Tell whether a folder is there or can be made, and takes files."""
    place = folder
    while not place.exists():
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
