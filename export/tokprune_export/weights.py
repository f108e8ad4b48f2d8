"""Weights in safetensors files, known from headers alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokprune_export.errors import ExportRefused
from tokprune_export.layouts import WHOLE, read_json

INDEX = "model.safetensors.index.json"
HEADER_BYTES = 100_000_000  # safetensors' own bound


class Stored(NamedTuple):
    """One weight, as a header tells of it."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name: "BF16", "F16", "F32"


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of one folder.

    Raises:
        ExportRefused: there are none, or the index names what is outside of the folder.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ExportRefused(f"{folder / INDEX} names no weights: {WHOLE}")
        files = sorted(set(map(str, weight_map.values())))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        also = f" ({pickled[0]} is a pickle, which can run code: not opened)" if pickled else ""
        raise ExportRefused(
            f"{folder} has no model.safetensors{also}: get the weights in safetensors format"
        )
    for file in files:
        if Path(file).name != file:
            raise ExportRefused(f"{folder / INDEX} names {file!r}, which is outside of the folder")
    return [folder / file for file in files]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read every header; a file that was cut off is found here, before any work."""
    return {
        name: stored.shape
        for path in weight_files(folder)
        for name, stored in _header(path).items()
    }


def dtypes(folder: Path) -> set[str]:
    """Tell in which dtypes the weights of one folder are stored, by safetensors' names."""
    return {stored.dtype for path in weight_files(folder) for stored in _header(path).values()}


def _header(path: Path) -> dict[str, Stored]:
    """Return what is in one safetensors file, whose length must be what its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        found = {
            name: Stored(tuple(map(int, tensor["shape"])), str(tensor["dtype"]))
            for name, tensor in header.items()
        }
    except FileNotFoundError:
        raise ExportRefused(f"There is no {path}: {WHOLE}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportRefused(f"{path} is no safetensors file, or is damaged: {error}") from None
    size = path.stat().st_size
    if size != 8 + length + end:
        raise ExportRefused(
            f"{path} has {size} bytes and should have {8 + length + end}: download it again"
        )
    return found
