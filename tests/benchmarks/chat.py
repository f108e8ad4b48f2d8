"""What conversations cost and what they answer: tokens chosen again each turn, or pinned once.

    make bundles
    python tests/benchmarks/chat.py

writes docs/results/chat.json and chat.md. Accuracy takes about two minutes of one core for 300
scenes of a family; time to the first token needs a bundle of 3.9 GiB, which is exported once (ten
minutes, 5 GiB of memory), and about four minutes of one core a round. Parts and families that are
not asked for keep their figures.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import chat_accuracy
import chat_ttft
import tyro
from machine import RESULTS, machine
from rich.console import Console

BUILD = Path(__file__).parents[2] / "build"


@dataclass(frozen=True)
class Options:
    """Hold conversations about one picture at 50 %."""

    parts: tuple[Literal["accuracy", "ttft"], ...] = ("accuracy", "ttft")
    """Which figures."""
    families: tuple[str, ...] = ("qwen2_vl", "llava_onevision", "vila")
    """Demo VLMs whose accuracy is measured."""
    scenes: int = 300
    """Conversations of five questions a family."""
    bundles: Path = BUILD / "bundles"
    """Where the demo bundles are."""
    real: Path = BUILD / "benchmarks" / "llava_onevision-0.5b"
    """A bundle of LLaVA-OneVision-0.5B's size; exported where it is missing."""
    rounds: int = 3
    """Conversations of each way for the time to the first token; they are interleaved."""
    turns: int = 5
    """Turns of these, 2 to 5."""
    ways: tuple[str, ...] = tuple(chat_ttft.WAYS)
    """Which ways of asking are timed."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


def main() -> None:
    """Measure what is asked for, and write after each part."""
    options = tyro.cli(Options)
    path = options.output / "chat.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, found in _measured(options):
        facts = machine("onnxruntime", "numpy")
        result.setdefault(key[0], {})[key[1]] = {**facts, "note": options.note, **found}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (options.output / "chat.md").write_text(markdown(result), encoding="utf-8")
        Console().print(markdown(result), markup=False, soft_wrap=True)


def _measured(options: Options) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield where figures belong, and the figures."""
    if "accuracy" in options.parts:
        for family in options.families:
            held = chat_accuracy.talks(options.bundles / family, options.scenes)
            yield ("accuracy", family), chat_accuracy.summarise(held)
    if "ttft" in options.parts:
        if not options.real.exists():
            chat_ttft.make_bundle(options.real)
        samples: list[chat_ttft.Sample] = []
        rounds = chat_ttft.measure(options.real, options.rounds, options.turns, options.ways)
        for sample in rounds:
            Console().print(f"{sample.way}, turn {sample.turn}: {sample.cpu_ms / 1e3:.1f} s")
            samples.append(sample)
            if sample.turn == options.turns:  # what took long is kept if the next one fails
                yield ("ttft", "LLaVA-OneVision-0.5B"), chat_ttft.summarise(samples)


def markdown(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables that docs show."""
    lines = [
        "# Conversations about one picture",
        "",
        "Half of the vision tokens are kept. *Chosen again for every question*: the bundle's "
        "default selector reads each question, from the vision tokens that were encoded once. "
        "*Pinned*: chosen once, whatever will be asked, so that later questions run their own "
        "words alone. Written by `tests/benchmarks/chat.py`; every figure is in `chat.json`.",
    ]
    for family, found in result.get("accuracy", {}).items():
        lines += ["", *_accuracy(family, found)]
    for model, found in result.get("ttft", {}).items():
        lines += ["", *_ttft(model, found)]
    return "\n".join(lines) + "\n"


def _accuracy(family: str, found: Mapping[str, Any]) -> Iterator[str]:
    history, ways = found["points_by_history"], found["ways"]
    met = "reached" if found["reached"] else "missed"
    choosing = ways[chat_accuracy.RESELECTED]["by_group"]
    full = ways[chat_accuracy.UNPRUNED]["by_group"]
    worst = found["worst_group"]
    yield f"## Accuracy: {family}"
    yield ""
    yield (
        f"{found['scenes']} scenes of the test split, five questions of different types about "
        f"each. {_where(found)} A history of its own answers changes the unpruned accuracy by "
        f"{_points(history)} points: the demo VLM, which saw dialogues in its training, gets worse "
        "with every turn all the same, and no way of choosing tokens mends that. Points: against "
        "the unpruned chat, with 95 % paired bootstrap "
        f"intervals over scenes. Goal: no more than 1 point lost by choosing again: {met}. What "
        f"loses most by it are questions about {worst}: {full[worst]:.1%} to {choosing[worst]:.1%}."
    )
    yield ""
    turns = " | ".join(f"turn {turn + 1}" for turn in range(chat_accuracy.TURNS))
    yield f"| way of asking | accuracy | points | same answers | {turns} |"
    yield "|---|---|---|---|" + "---|" * chat_accuracy.TURNS
    for name, way in ways.items():
        apart = "" if name == chat_accuracy.UNPRUNED else _points(way["points"])
        cells = [name, f"{way['accuracy']:.1%}", apart, f"{way['says_what_unpruned_says']:.1%}"]
        cells += [f"{share:.1%}" for share in way["by_turn"]]
        yield f"| {' | '.join(cells)} |"


def _ttft(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    met = "reached" if found["reached"] else "missed"
    yield f"## Time to the first token: {model}'s size"
    yield ""
    yield (
        f"Random weights, fp32, one thread, a picture of 640 x 480 pixels with "
        f"{found['vision_tokens']} vision tokens. The scorer is untrained, so that the default "
        f"selector reads the attention itself. {_where(found)} Conversations of "
        f"{found['turns']} turns; medians of {found['rounds']} interleaved round"
        f"{'s' if found['rounds'] > 1 else ''}. Seconds of processor time up to the first token, "
        "wall time in brackets; stages by wall time. Goal: a later turn with tokens chosen again "
        f"takes at most {found['goal']} of the first: {met}."
    )
    yield ""
    yield (
        "| way of asking | kept | first turn s | later turns s | share | rows of the LLM | "
        "vision s | first layer, scorer, select s | prefill s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, way in found["ways"].items():
        first, later = way["first_stages_ms"], way["later_stages_ms"]
        cells = [name, f"{way['kept']}"]
        cells += [f"{way[f'{t}_cpu_ms'] / 1e3:.2f} ({way[f'{t}_ttft_ms'] / 1e3:.2f})"
                  for t in ("first", "later")]  # fmt: skip
        cells += [f"{way['ratio_cpu']:.3f} ({way['ratio_wall']:.3f})"]
        cells += [f"{way['rows_run_first']}, then {way['rows_run_later']}"]
        for stages in (("vision",), ("first_layer", "scorer", "select"), ("prefill",)):
            both = (sum(part[stage] for stage in stages) / 1e3 for part in (first, later))
            cells.append(", then ".join(f"{seconds:.2f}" for seconds in both))
        yield f"| {' | '.join(cells)} |"


def _where(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['processor']}, {found['date']}, {versions}. {found['note']}".strip()


def _points(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:+.1f} ({interval['low']:+.1f} to {interval['high']:+.1f})"


if __name__ == "__main__":
    main()
