"""Where the parts of a checkpoint are: HF's own format, and what other formats have to say."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tokprune.families.processor_files import PICTURES, TOGETHER
from tokprune_export.errors import ExportRefused

Config: TypeAlias = Mapping[str, Any]  # a parsed config.json

HF_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", (PICTURES, TOGETHER))
WHOLE = "get the whole checkpoint"


def read_json(path: Path, hint: str = WHOLE) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ExportRefused: there is none, with the hint where the file is missing.
    """
    if not path.is_file():
        raise ExportRefused(f"There is no {path}: {hint}")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExportRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ExportRefused(f"{path} holds no JSON object")
    return value


def own_config(folder: Path) -> dict[str, Any]:
    """Return config.json as it is."""
    return read_json(folder / "config.json")


@dataclass(frozen=True)
class Layout:
    """A format of checkpoints. The defaults are HF's: all files in one folder."""

    family: str
    architecture: str | None = None  # that config.json must name, where model_type is not unique
    files: tuple[str | tuple[str, ...], ...] = HF_FILES  # that must be there, or one of several
    parts: tuple[str, ...] = ("",)  # folders with weights, below the checkpoint's
    config: Callable[[Path], Config] = own_config  # as HF would nest it: text_config, vision_config
    # Writes the text files of HF's format, given the checkpoint's folder, its name and an empty
    # folder. None: they lie in the checkpoint.
    write_texts: Callable[[Path, str, Path], None] | None = None
