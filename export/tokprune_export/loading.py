"""Weights into modules, in float32 and never twice in memory."""

import ctypes
import mmap
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_export.checkpoint import quiet_transformers
from tokprune_export.errors import ExportRefused
from tokprune_export.weights import dtypes, weight_files

NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}  # all of whose values float32 has


def load_module(kind: Any, folder: Path, config: Any, layers: int | None = None) -> Any:
    """Load a class of transformers from safetensors in float32, all weights found or refused.

    With `layers`, only so many layers of the decoder in `config.text_config` (changed in place).

    transformers maps the files, and converts by copying all weights before it unmaps them: half as
    much again as the float32 weights. So it loads them as they are stored, where they stay mapped,
    and each is converted and its part of the file given back in turn.
    """
    if layers is not None:
        config.text_config.num_hidden_layers = layers
        config.text_config.layer_types = config.text_config.layer_types[:layers]
    with quiet_transformers():
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=_stored(folder),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    _refuse_missing(folder, [*report["missing_keys"], *report["mismatched_keys"]])
    model.eval().requires_grad_(requires_grad=False)
    _widen(model)
    return model


def load_weights(module: nn.Module, folder: Path) -> None:
    """Give a module that is not of transformers its weights in float32, all found or refused."""
    from safetensors.torch import load_file

    there = {k: v for path in weight_files(folder) for k, v in load_file(path).items()}
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    _refuse_missing(
        folder,
        [name for name in wanted if name not in there or there[name].shape != wanted[name]],
    )
    module.load_state_dict({name: there[name].float() for name in wanted}, assign=True)
    module.eval().requires_grad_(requires_grad=False)


def _stored(folder: Path) -> torch.dtype:
    """Return the dtype of all weights of a folder; float32 where they are of several."""
    found = dtypes(folder)
    return NARROW.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _widen(model: Any) -> None:
    """Convert to float32 in place, one weight after another."""
    done: dict[int, Tensor] = {}  # by address: weights may share one
    for value in chain(model.parameters(), model.buffers()):
        narrow = value.data
        if narrow.is_floating_point() and narrow.dtype != torch.float32:
            if narrow.data_ptr() not in done:
                done[narrow.data_ptr()] = narrow.float()
                _drop_pages(narrow)
            value.data = done[narrow.data_ptr()]
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None:
            config.dtype = torch.float32


def _drop_pages(tensor: Tensor) -> None:
    """Give the memory of a tensor that nobody reads any more back, its file still mapped."""
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if (
        tensor.is_contiguous() and start < end and sys.platform == "linux"
    ):  # elsewhere the system decides
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _refuse_missing(folder: Path, names: list[Any]) -> None:
    if names:
        wrong = sorted(map(str, names))
        listed = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ExportRefused(
            f"{folder} lacks weights that config.json asks for: {listed}. Get the whole checkpoint"
        )
