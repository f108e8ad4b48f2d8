"""Scales that a vision encoder is to round with, found on pictures.

An input's scale is the largest magnitude that a linear layer got, over 127, as `MinMax` of
onnxruntime.quantization has it. That clips nothing that was seen. Percentiles and entropy clip, and
were no closer on the whole (the demos: docs/results/encoder-scales.md).

A layer that 8 bits would spoil stays as it is. Some encoders have a few values that are a hundred
times all others (arXiv:2309.16588); 127 levels up to these leave nothing of the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tokprune.camera.naming.sources import PICTURES as SUFFIXES
from tokprune.families import Processor
from tokprune.pictures import load_picture
from tokprune.scenes import suite
from tokprune.types import Array, Feeds, Image
from tokprune_export import int8
from tokprune_export.errors import ExportRefused
from tokprune_export.layers import Linear

DRAWN = 64  # more widen the range by single values, and were no better (16 to 256 were tried)
FEWEST = 16
HELD_BACK = 16  # every 16th picture is not looked at, but compared
# Of what a layer gives, as a root mean square. The demos' layers lose 0.5 to 5 %, and together 3 %.
MOST_LOST = 0.1
MEASURED = 4  # pictures that the loss of each layer is measured on


@dataclass(frozen=True)
class Probe:
    """A picture that no scale was found on, in the calls that it takes."""

    name: str
    calls: Sequence[Feeds]
    tokens: Sequence[Array]  # what the encoder says to each, in float32


@dataclass(frozen=True)
class Scales:
    """How a vision encoder is rounded, by names of weights. Without `inputs`: as it runs."""

    columns: Mapping[str, Tensor] = field(default_factory=dict)  # a scale for each of a weight's
    inputs: Mapping[str, float] = field(default_factory=dict)  # of what the weight multiplies
    left: Sequence[str] = ()  # layers that stay float
    probes: Sequence[Probe] = ()
    pictures: str = ""  # what they were found on, in words


NOT_ROUNDED = Scales()


def drawn_pictures() -> list[Image]:
    """Return drawn scenes, of a split that no evaluation asks about."""
    return [sample.pictures[0] for sample in suite("train", DRAWN)]


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by name.

    Raises:
        ExportRefused: there are too few.
    """
    if not folder.is_dir():
        raise ExportRefused(f"Got --calibration {folder}, which is no folder of pictures")
    found = sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)
    if len(found) < FEWEST:
        raise ExportRefused(
            f"Got --calibration {folder} with {len(found)} pictures ({', '.join(SUFFIXES)}); "
            f"expected {FEWEST} or more, such as the robot will see, or leave it out for "
            f"{DRAWN} drawn scenes"
        )
    return found


def find_scales(
    encoder: nn.Module,
    processor: Processor,
    folder: Path | None,
    dtype: torch.dtype,
    device: str = "cpu",
) -> Scales:
    """Show the encoder pictures, and return how it is to be rounded.

    Args:
        encoder: our vision encoder, in float32 and on `device`.
        processor: cuts pictures for it.
        folder: of pictures; None draws some.
        dtype: that scales are stored in, which is the graph's.
        device: where the encoder runs.

    Raises:
        ExportRefused: there are too few pictures.
        PictureInvalid: one cannot be decoded.
    """
    shown = drawn_pictures() if folder is None else picture_files(folder)
    told = f"{len(shown)} drawn scenes" if folder is None else f"{len(shown)} pictures of {folder}"
    held = shown[HELD_BACK - 1 :: HELD_BACK]
    rest = [each for number, each in enumerate(shown, 1) if number % HELD_BACK]

    def run(pictures: Iterable[Image | Path]) -> Iterator[tuple[Feeds, Array]]:
        for picture in pictures:
            for prepared in processor.prepare([load_picture(picture)]):
                for feeds in prepared.calls:
                    yield feeds, _tokens(encoder, feeds, device)

    linears = {f"{n}.weight": m for n, m in encoder.named_modules() if isinstance(m, Linear)}
    inputs = largest_inputs(linears, lambda: run(rest))
    scales = {name: stored_scale(value, dtype) for name, value in inputs.items()}
    columns = {name: stored(int8.scales_of(linears[name].weight), dtype) for name in linears}
    lost = losses(linears, scales, columns, lambda: run(rest[:MEASURED]))
    left = [name for name, share in lost.items() if not share <= MOST_LOST]
    probes = [
        Probe(f"picture {HELD_BACK * number}", *zip(*run([picture]), strict=True))
        for number, picture in enumerate(held, 1)
    ]
    return Scales(
        columns={name: value.cpu() for name, value in columns.items() if name not in left},
        inputs={name: value for name, value in scales.items() if name not in left},
        left=[name.removesuffix(".weight") for name in left],
        probes=probes,
        pictures=told,
    )


def largest_inputs(
    linears: Mapping[str, Linear], run: Callable[[], Iterable[object]]
) -> dict[str, float]:
    """Return the largest magnitude that each layer gets while something runs."""
    largest = dict.fromkeys(linears, 0.0)

    def look(name: str, x: Tensor) -> None:
        largest[name] = max(largest[name], float(x.abs().amax()))

    with _watched(linears, look):
        for _ in run():
            pass
    return largest


def losses(
    linears: Mapping[str, Linear],
    scales: Mapping[str, float],
    columns: Mapping[str, Tensor],
    run: Callable[[], Iterable[object]],
) -> dict[str, float]:
    """Return what each layer loses by itself, as a share of what it gives."""
    sums = {name: [0.0, 0.0] for name in linears}

    def look(name: str, x: Tensor) -> None:
        weight = linears[name].weight
        exact = x @ weight
        rounded = int8.quantised(weight, columns[name]).to(x.device)
        off = fixed(x, scales[name]) @ rounded - exact
        for place, values in enumerate((off, exact)):
            sums[name][place] += float(values.double().square().sum())

    with _watched(linears, look):
        for _ in run():
            pass
    return {name: (off / all_ if all_ else 0.0) ** 0.5 for name, (off, all_) in sums.items()}


def fixed(x: Tensor, scale: float) -> Tensor:
    """Return values as `QuantizeLinear` and `DequantizeLinear` leave them."""
    return (x / scale).round().clamp(-int8.LEVELS - 1, int8.LEVELS) * scale


def stored_scale(largest: float, dtype: torch.dtype) -> float:
    """Return the scale for values up to `largest`, as it is in the file."""
    return float(stored(torch.tensor(largest / int8.LEVELS if largest else 1.0), dtype))


def stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 scales as a narrow type has them, none of them zero or subnormal."""
    return scales.float().clamp(min=torch.finfo(dtype).smallest_normal).to(dtype).float()


@contextmanager
def _watched(linears: Mapping[str, Linear], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Show what each layer gets to a function."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: look(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook(n)) for n, module in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _tokens(encoder: nn.Module, feeds: Feeds, device: str) -> Array:
    given = {name: torch.from_numpy(value).to(device) for name, value in feeds.items()}
    outputs = encoder(**given)
    tokens = outputs if isinstance(outputs, Tensor) else outputs[0]  # saliency beside them
    return tokens.cpu().numpy()
