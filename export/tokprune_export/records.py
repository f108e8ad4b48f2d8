"""What the manifest says beyond graphs: limits, tokens, source, files; and the embedding table."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tokprune.files import sha256_file
from tokprune.loading import open_tokenizer
from tokprune.manifest import Chat, File, Limits, Source, Tokens
from tokprune_export.chat_template import special_ids
from tokprune_export.checkpoint import Checkpoint
from tokprune_export.errors import ExportRefused
from tokprune_export.options import ExportOptions
from tokprune_export.static_scales import picture_files

DEFAULT_KV_LEN = 4096
OPSETS = range(18, 23)
TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
ROWS = 4096  # of the embedding table, written at once


def limits(options: ExportOptions, checkpoint: Checkpoint) -> Limits:
    """Check the numbers that were asked for."""
    if options.precision == "int8" and options.engine is not None:
        raise ExportRefused(
            f"Got --precision int8 and --engine {options.engine}: int8 is for ONNX Runtime on the "
            "CPU. Choose fp16 or int4, or leave out --engine"
        )
    _check_encoder(options)
    if options.opset not in OPSETS:
        raise ExportRefused(f"Got --opset {options.opset}; expected {OPSETS[0]} to {OPSETS[-1]}")
    if options.atol is not None and not 0 < options.atol < 1:
        raise ExportRefused(f"Got --atol {options.atol}; expected a number between 0 and 1")
    layers = checkpoint.text_config["num_hidden_layers"]
    if options.num_decoder_layers is not None and not 1 <= options.num_decoder_layers <= layers:
        raise ExportRefused(
            f"Got --num-decoder-layers {options.num_decoder_layers}; expected 1 to {layers}"
        )
    longest = checkpoint.text_config["max_position_embeddings"]
    kv_len = min(longest, DEFAULT_KV_LEN) if options.max_kv_len is None else options.max_kv_len
    input_len = kv_len if options.max_input_len is None else options.max_input_len
    if not 1 <= input_len <= kv_len <= longest:
        raise ExportRefused(
            f"Got --max-input-len {input_len} and --max-kv-len {kv_len}; expected "
            f"1 <= max-input-len <= max-kv-len <= {longest} (the checkpoint's own bound)"
        )
    return Limits(max_input_len=input_len, max_kv_len=kv_len)


def _check_encoder(options: ExportOptions) -> None:
    """Refuse an encoder in 8 bits where nothing runs it, and pictures that nothing looks at."""
    if options.calibration is not None and options.encoder_precision != "int8-static":
        raise ExportRefused(
            f"Got --calibration {options.calibration} without --encoder-precision int8-static: "
            "nothing else looks at pictures. Give it too, or leave out --calibration"
        )
    if options.calibration is not None:
        picture_files(options.calibration)
    given = f"Got --encoder-precision {options.encoder_precision}"
    if options.encoder_precision == "int8-static" and options.precision == "bf16":
        raise ExportRefused(
            f"{given} and --precision bf16: expected fp32, fp16, int8 or int4. For GPUs take fp16"
        )
    if options.encoder_precision != "int8":
        return
    if options.precision not in ("fp32", "int8"):
        raise ExportRefused(
            f"{given} and --precision {options.precision}: it is for ONNX Runtime on the CPU, "
            "beside --precision fp32 or int8. Leave it out, choose one of these, or take "
            "int8-static, which other engines run too"
        )
    if options.engine is not None:
        raise ExportRefused(
            f"{given} and --engine {options.engine}: it is for ONNX Runtime on the CPU. Leave out "
            "one of them, or take int8-static, which TensorRT runs"
        )


def tokens(checkpoint: Checkpoint, chat: Chat) -> Tokens:
    """Return the ids that the host must know."""
    special = special_ids(open_tokenizer(checkpoint.texts))
    eos = _eos(checkpoint, special)
    if not eos:
        raise ExportRefused(
            f"{checkpoint.folder} names no eos_token_id (generation_config.json, config.json) and "
            "no eos_token (tokenizer_config.json): add the token that ends an answer"
        )
    video = _placeholder(checkpoint, "video") if chat.video else None
    return Tokens(
        image=int(_placeholder(checkpoint, "image")),
        video=None if video is None else int(video),
        eos=eos,
        control=sorted(special.values()),
    )


def _placeholder(checkpoint: Checkpoint, kind: Literal["image", "video"]) -> Any:
    """Return the id that stands for vision tokens; older configurations call it an index."""
    config = checkpoint.config
    return config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))


def _eos(checkpoint: Checkpoint, special: Mapping[str, int]) -> list[int]:
    """Return the ids that end an answer, from where transformers looks for them, in its order."""
    path = checkpoint.texts / "generation_config.json"
    generation: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    for config in (generation, checkpoint.config, checkpoint.text_config):
        given = config.get("eos_token_id")
        if given is not None:
            return sorted({int(each) for each in (given if isinstance(given, list) else [given])})
    word = json.loads((checkpoint.texts / "tokenizer_config.json").read_bytes()).get("eos_token")
    word = str(word.get("content") if isinstance(word, dict) else word)
    return [special[word]] if word in special else []


def source(checkpoint: Checkpoint) -> Source:
    """Return where the weights came from and what exports them."""
    return Source(
        model=checkpoint.name,
        revision=checkpoint.revision,
        tools={name: version(name) for name in TOOLS},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def tokprune_version() -> str:
    """Return the version of the installed wheel, or say that there is none."""
    try:
        return version("tokprune")
    except PackageNotFoundError:
        return "not installed"


def files(folder: Path) -> dict[str, File]:
    """Return length and hash of every file below a folder, by its relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): File(path.stat().st_size, sha256_file(path))
        for path in paths
    }


def write_embeddings(
    table: Float[Tensor, "vocabulary d"], path: Path, dtype: str = "float32"
) -> None:
    """Write the table in numpy's format, a part at a time.

    numpy.save would do, but hides why a write failed (`OSError` without errno on a full disk).
    """
    number = np.dtype(dtype)
    header = {"descr": number.str, "fortran_order": False, "shape": tuple(table.shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in table.split(ROWS):
            file.write(part.float().cpu().contiguous().numpy().astype(number).data)
