"""What `tokprune-export` can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tokprune.engines.folders import Kind
from tokprune.manifest import EncoderPrecision, Precision


@dataclass(frozen=True)
class ExportOptions:
    """Export a vision-language model as a bundle of four graphs, and check it against itself."""

    model: tyro.conf.Positional[str]
    """A folder with a checkpoint in HF format, or a hub id with --revision."""
    output: tyro.conf.Positional[Path]
    """The bundle to make. It must not exist."""
    precision: Precision = "fp32"
    """Precision of the graphs: float32; float16; bfloat16 (for GPUs alone; checked here with its
    sums in float32); int8: float32 with the LLM's linear weights in 8 bits, and their inputs
    rounded to 8 bits at run time (ONNX Runtime on the CPU alone); int4: float16 with the LLM's
    linear weights in 4 bits. The scorer stays float32."""
    encoder_precision: EncoderPrecision | None = None
    """Precision of the vision encoder, where it is another. int8: its linear weights in 8 bits, and
    their inputs rounded to 8 bits at run time (ONNX Runtime on the CPU alone; beside --precision
    fp32 or int8). On a CPU most of the time to the first token is the encoder's. int8-static: both
    rounded with scales that are found on pictures before (QuantizeLinear and DequantizeLinear:
    TensorRT, TensorRT-RTX, ONNX Runtime; beside fp32, fp16, int4 or int8)."""
    calibration: Path | None = None
    """A folder of pictures such as the robot will see (16 or more .jpg, .png or .webp) that the
    scales of --encoder-precision int8-static are found on (default: 64 drawn scenes)."""
    scorer: Path | None = None
    """Scorer file of `tokprune-train`; without it the scorer graph is the mean attention."""
    glance_scorer: Path | None = None
    """Scorer file of `tokprune-train` that has learnt from glances: scores the first of two looks
    (encode="coarse", encode="lazy") in the place of --scorer."""
    saliency: bool = False
    """Let the vision encoder tell how much attention each vision token gets inside it, which some
    selectors read. It costs encoder time: its attention is computed once more in those layers."""
    saliency_layers: int | None = None
    """Layers that saliency is summed over, the last ones (default: the last third)."""
    opset: Annotated[int, tyro.conf.arg(metavar="18..22")] = 18
    """ONNX opset of the graphs; 18 is what every engine reads."""
    max_input_len: int | None = None
    """Most prompt rows that enter the LLM, kept vision tokens included (default: max-kv-len)."""
    max_kv_len: int | None = None
    """Most rows of prompt and answer (default: the checkpoint's own, at most 4096)."""
    atol: float | None = None
    """Tolerance of the parity gate: |a - b| <= atol x max(1, max|b|) (default: 1e-4 in fp32, 1e-2
    and a cosine of 0.999 in fp16 and bf16, 5e-2 and 0.998 in int8 and int4, 1e-1 and 0.995 of a
    vision encoder in int8-static)."""
    num_decoder_layers: int | None = None
    """Export the first N decoder layers only: a smoke test, whose answers mean nothing."""
    revision: str | None = None
    """Commit hash (40 hex digits) of a hub id."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the checkpoint's own forward runs when the graphs are compared with it."""
    engine: Kind | None = None
    """Build the engines of the bundle too; `tokprune build` does it later, with more options."""
    sm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A GPU to build for, such as sm89; repeat for several (tensorrt-rtx only)."""
