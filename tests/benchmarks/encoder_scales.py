"""How the scales of `--encoder-precision int8-static` are best found, and what may take 8 bits.

    python tests/benchmarks/encoder_scales.py

Vision encoders of the demos, computed in torch with inputs and weights of linear layers rounded as
the graph rounds them, on pictures of the development split. Percentiles and entropy are those of
onnxruntime.quantization. Writes docs/results/encoder-scales.json and encoder-scales.md.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import RESULTS, machine
from rich.console import Console
from torch import Tensor, nn

from tokprune.families import Processor
from tokprune.scenes import suite
from tokprune.scenes.suite import Split
from tokprune.types import Array, Feeds
from tokprune_export import int8, static_int8
from tokprune_export.checkpoint import open_checkpoint, open_processor
from tokprune_export.families import FAMILIES
from tokprune_export.layers import Linear
from tokprune_export.parity_report import cosine
from tokprune_export.static_scales import largest_inputs, losses

CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
PERCENTILES = (99.9, 99.99, 99.999, 99.9999)
BINS, LEVELS = 2048, 128  # of histograms; the second of the entropy's
SEEN = (4, 16, 64, 256)  # pictures that scales are found on
CHOSEN = 64
KINDS = ("query, key, value", "attention's output", "up", "down")


@dataclass(frozen=True)
class Options:
    """Compare ways to find scales."""

    families: tuple[str, ...] = ("qwen2_vl", "llava_onevision", "vila")
    """Demo VLMs."""
    pictures: int = 24
    """Pictures of the development split that encoders are compared on."""
    output: Path = RESULTS
    """Folder of the two files."""


@dataclass(frozen=True)
class Encoder:
    """A demo's vision encoder, and what it says of the pictures that are compared."""

    module: nn.Module
    processor: Processor
    linears: Mapping[str, Linear]
    shown: Sequence[Feeds]
    tokens: Array

    def feeds(self, split: Split, count: int) -> Iterator[Feeds]:
        """Yield what the encoder is fed of each picture."""
        for sample in suite(split, count):
            for prepared in self.processor.prepare([sample.pictures[0]]):
                yield from prepared.calls

    def run(self, shown: Sequence[Feeds]) -> Iterator[Array]:
        """Encode."""
        for feeds in shown:
            with torch.no_grad():
                yield self.module(**{k: torch.from_numpy(v) for k, v in feeds.items()}).numpy()


def opened(family: str, pictures: int) -> Encoder:
    """Load one."""
    checkpoint = open_checkpoint(str(CHECKPOINTS / family), None)
    model = FAMILIES[family].load(checkpoint.folder, 1)  # layers of the LLM, which is not asked
    module = FAMILIES[family].vision(model, 0).module.eval()
    linears = {n: m for n, m in module.named_modules() if isinstance(m, Linear)}
    processor = open_processor(family, checkpoint.texts)
    plain = Encoder(module, processor, linears, (), np.zeros(0))
    shown = list(plain.feeds("dev", pictures))
    return Encoder(module, processor, linears, shown, _joined(plain.run(shown)))


def closeness(encoder: Encoder, scales: Mapping[str, float]) -> dict[str, float]:
    """Round the layers that have scales, and compare what the encoder says."""
    linears = [(encoder.linears[name], scale) for name, scale in scales.items()]
    kept = [linear.weight.data for linear, _ in linears]
    try:
        for linear, _ in linears:
            weight = linear.weight
            weight.data = int8.quantised(weight, int8.scales_of(weight))
        with static_int8.fixed_inputs(linears):
            ours = _joined(encoder.run(encoder.shown))
    finally:
        for (linear, _), weight in zip(linears, kept, strict=True):
            linear.weight.data = weight
    off = np.abs(ours - encoder.tokens).max() / np.abs(encoder.tokens).max()
    return {"cosine": cosine(ours, encoder.tokens), "of_largest": float(off)}


def least_and_most(encoder: Encoder, count: int) -> dict[str, float]:
    """Return the scales of the largest magnitudes."""
    shown = list(encoder.feeds("train", count))
    found = largest_inputs(encoder.linears, lambda: encoder.run(shown))
    return {name: value / int8.LEVELS for name, value in found.items()}


def clipped(encoder: Encoder) -> dict[str, dict[str, float]]:
    """Return the scales of the library's percentiles and of its entropy."""
    make = partial(int8.quantization("calibrate").HistogramCollector, symmetric=True)
    settings = {"num_quantized_bins": LEVELS, "percentile": 0, "scenario": "same"}
    percentiles = make("percentile", num_bins=BINS, **settings)
    entropy = make("entropy", num_bins=8 * LEVELS + 1, **settings)

    def collect(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        values = {name: inputs[0].numpy()}
        percentiles.collect(values)
        entropy.collect(values)

    hooks = [m.register_forward_pre_hook(partial(collect, n)) for n, m in encoder.linears.items()]
    found: dict[str, dict[str, float]] = {}
    with redirect_stdout(io.StringIO()):  # it prints
        for _ in encoder.run(list(encoder.feeds("train", CHOSEN))):
            pass
        for hook in hooks:
            hook.remove()
        for percentile in PERCENTILES:
            percentiles.percentile = percentile
            found[f"percentile {percentile}"] = _scales(percentiles.compute_collection_result())
        found["entropy"] = _scales(entropy.compute_collection_result())
    return found


def _scales(ranges: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    return {
        name: max(abs(float(given[0])), abs(float(given[1]))) / int8.LEVELS
        for name, given in ranges.items()
    }


def kind(name: str) -> str:
    """Return what a layer is for. The projector's are counted as those of an MLP."""
    last = name.rpartition(".")[2]
    names = {"output": "attention's output", "up": "up", "down": "down", "2": "up", "4": "down"}
    return names.get(last, "query, key, value")


def measure(family: str, pictures: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one demo."""
    encoder = opened(family, pictures)

    def row(what: str, how: str, scales: Mapping[str, float]) -> dict[str, Any]:
        told = {"family": family, "what": what, "how": how, "layers": len(scales)}
        return told | closeness(encoder, scales)

    by_count = {count: least_and_most(encoder, count) for count in SEEN}
    chosen = by_count[CHOSEN]
    yield row("method", "largest magnitude", chosen)
    for how, scales in clipped(encoder).items():
        yield row("method", how, scales)
    for count, scales in by_count.items():
        yield row("pictures", str(count), scales)
    for each in KINDS:
        alone = {name: scale for name, scale in chosen.items() if kind(name) == each}
        yield row("alone", each, alone)
    columns = {name: int8.scales_of(linear.weight) for name, linear in encoder.linears.items()}
    lost = losses(encoder.linears, chosen, columns, lambda: encoder.run(encoder.shown))
    yield {
        "family": family,
        "what": "lost by a layer",
        "layers": len(lost),
        "least": min(lost.values()),
        "most": max(lost.values()),
        "by_layer": lost,
    }


def _joined(arrays: Iterator[Array]) -> Array:
    return np.concatenate([each.ravel() for each in arrays])


def markdown(result: dict[str, Any]) -> str:
    """Return the tables that docs show."""
    families = list(dict.fromkeys(row["family"] for row in result["rows"]))
    lines = [
        "# Scales of int8-static",
        "",
        "Vision tokens of the demos' encoders with linear layers in 8 bits, against float32: "
        "cosine, and in brackets the largest difference as a share of the largest value. "
        f"{result['pictures']} pictures of the development split; scales were found on pictures of "
        f"the training split, {CHOSEN} of them where nothing else is said. Computed in torch as "
        f"the graph rounds. {result['processor']}, {result['date']}.",
        "",
    ]
    titles: dict[str, str] = {
        "method": "an input's scale is the",
        "pictures": "pictures that the largest magnitude was found on",
        "alone": "only these layers in 8 bits",
    }
    for what, title in titles.items():
        lines += [f"| {title} | {' | '.join(families)} |", "|---|" + "---|" * len(families)]
        rows = [row for row in result["rows"] if row["what"] == what]
        for how in dict.fromkeys(row["how"] for row in rows):
            mine = {row["family"]: row for row in rows if row["how"] == how}
            cells = [f"{mine[f]['cosine']:.5f} ({mine[f]['of_largest']:.1%})" for f in families]
            lines.append(f"| {how} | {' | '.join(cells)} |")
        lines.append("")
    told = [
        f"{row['family']} {row['least']:.1%} to {row['most']:.1%} ({row['layers']} layers)"
        for row in result["rows"]
        if row["what"] == "lost by a layer"
    ]
    lines.append(
        "What a layer loses by itself, of what it gives (root mean square, largest magnitude): "
        f"{'; '.join(told)}. One that loses more than 10 % would stay float."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write."""
    options = tyro.cli(Options)
    rows = [row for family in options.families for row in measure(family, options.pictures)]
    result = {**machine("torch", "onnxruntime"), "pictures": options.pictures, "rows": rows}
    (options.output / "encoder-scales.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "encoder-scales.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
