"""Decode with the KV cache held by the engine, against feeding it as arrays at every step.

python tests/benchmarks/kv.py writes docs/results/kv.json and kv.md. It needs the graphs of
real_size.py (written once), 3 GB of memory, and about four minutes of one core.
"""

import ctypes
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import real_size
import tyro
from kv_decoders import DECODERS, HOLDERS, Decoder, Holder
from machine import RESULTS, machine
from rich.console import Console
from rich.progress import track

from tokprune.llm import LanguageModel
from tokprune.types import Array

Form: TypeAlias = Literal["ort", "portable"]
FORMS: tuple[Form, ...] = ("ort", "portable")
CHUNK = 100  # rows a run while the cache is filled: a whole prefill would hide what decode takes
MIB = 2**20
BUILT = Path(__file__).parents[2] / "build" / "benchmarks" / f"real_size-{real_size.sources()}"


@dataclass(frozen=True)
class Options:
    """Measure decode steps of a 0.5B LLM with random weights, after many tokens."""

    past: int = 1500
    """Tokens before the first step."""
    steps: int = 8
    """Steps of a sample."""
    rounds: int = 9
    """Samples of each cell; rounds are interleaved, figures are medians."""
    memory: tuple[Form, Holder] | None = None
    """Only measure the memory of one cell, and print it as JSON. The program runs itself so."""
    note: str = ""
    """What else the machine was doing."""
    output: Path = RESULTS
    """Folder of the two files."""


def filled(llm: LanguageModel, holder: Holder, options: Options) -> Decoder:
    """Return a decoder after `past` random tokens."""
    ids, room = _past(options), options.past + options.steps
    decoder = DECODERS[holder](llm, ids[:CHUNK], room)
    for start in range(CHUNK, options.past, CHUNK):
        decoder.extend(ids[start : start + CHUNK])
    return decoder


def _past(options: Options) -> list[int]:
    random = np.random.default_rng(0)
    return random.integers(0, real_size.VOCABULARY, options.past).tolist()


@dataclass(frozen=True)
class Sample:
    """Some steps, by the token."""

    form: str
    holder: str
    round: int
    wall_ms: float
    cpu_ms: float
    faults: float  # pages that the system had to give, each 4 KiB
    moved: float  # tensors of the cache that lie elsewhere after the step


def main() -> None:
    """Write what is missing, measure, write down."""
    options = tyro.cli(Options)
    if options.memory is not None:
        print(json.dumps(memory(*options.memory, options)))  # noqa: T201 # its parent reads it
        return
    if not BUILT.exists():
        Console().print(f"Writing graphs of 0.5B random weights to {BUILT} (once, 2.6 GB)")
        subprocess.run([sys.executable, real_size.__file__, str(BUILT)], check=True)
    samples = [sample for form in FORMS for sample in steps(form, options)]
    held = {cell: in_a_child(*cell, options) for cell in product(FORMS, HOLDERS)}
    write(samples, held, options)


def steps(form: Form, options: Options) -> Iterator[Sample]:
    """Time both ways on one session, in turns; their logits are the same."""
    llm = real_size.load(BUILT, form).llm
    decoders: dict[Holder, Decoder] = {holder: filled(llm, holder, options) for holder in HOLDERS}
    ids = np.random.default_rng(1).integers(0, real_size.VOCABULARY, options.steps).tolist()
    for number in track(range(-1, options.rounds), description=form):
        for holder, decoder in decoders.items():
            sample = _sample(form, holder, number, decoder, ids)
            if number >= 0:  # the first allocates
                yield sample
        _check_same([decoder.logits for decoder in decoders.values()])
        for decoder in decoders.values():
            decoder.rewind(options.past - CHUNK)


def _sample(
    form: Form, holder: Holder, number: int, decoder: Decoder, ids: Sequence[int]
) -> Sample:
    took, moved = Took(0, 0, 0), 0
    for token in ids:
        before, began = decoder.addresses(), Took.now()
        decoder.extend([token])
        took = took.plus(began)
        after = decoder.addresses()
        moved += sum(one != other for one, other in zip(before, after, strict=True))
    count = len(ids)
    wall_ms, cpu_ms = 1e3 * took.wall_s / count, 1e3 * took.cpu_s / count
    return Sample(form, holder, number, wall_ms, cpu_ms, took.faults / count, moved / count)


class Took(NamedTuple):
    """What a process has used."""

    wall_s: float
    cpu_s: float
    faults: int

    @classmethod
    def now(cls) -> "Took":
        """Return the counters."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return cls(time.perf_counter(), time.process_time(), faults)

    def plus(self, began: "Took") -> "Took":
        """Add what was used since `began`."""
        now = Took.now()
        return Took(
            self.wall_s + now.wall_s - began.wall_s,
            self.cpu_s + now.cpu_s - began.cpu_s,
            self.faults + now.faults - began.faults,
        )


def _check_same(logits: Sequence[Array]) -> None:
    """See that both ways compute the same, or the comparison means nothing."""
    apart = float(np.abs(logits[0] - logits[1]).max())
    if apart > 1e-4 * max(1.0, float(np.abs(logits[0]).max())):
        raise RuntimeError(f"The logits of both ways are {apart} apart")


def memory(form: Form, holder: Holder, options: Options) -> dict[str, float]:
    """Return MiB above a process that has run the graph without a past: held, and at its peak.

    Free memory that the C library keeps would take the cache in, and hide it: it goes back first.
    """
    llm = real_size.load(BUILT, form).llm
    np.asarray(llm.embed_tokens[_past(options)])  # what is read of the file is no cache
    DECODERS[holder](llm, [1] * CHUNK, CHUNK)  # nor is what a run of a chunk takes anyway
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    empty = _status("VmRSS")
    decoder = filled(llm, holder, options)
    trim(0)
    full = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    for _ in range(options.steps):
        decoder.extend([1])
    return {"held": full - empty, "peak": _status("VmHWM") - empty}


def _status(name: str) -> float:
    """Return a line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def in_a_child(form: Form, holder: Holder, options: Options) -> dict[str, float]:
    """Measure memory in a process of its own."""
    given = ["--past", str(options.past), "--steps", str(options.steps)]
    command = [sys.executable, __file__, "--memory", form, holder, *given]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def write(
    samples: Sequence[Sample], held: dict[tuple[Form, Holder], dict[str, float]], options: Options
) -> None:
    """Write the samples and what they amount to."""
    shape = real_size.SHAPE
    row_bytes = 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim
    rows = [
        {**row(samples, *cell), **{f"{name}_mib": round(mib, 1) for name, mib in found.items()}}
        for cell, found in held.items()
    ]
    result = {
        **machine("onnxruntime", "numpy"),
        "note": options.note,
        "llm": "0.5B parameters, random, fp32, one thread",
        "past": options.past,
        "cache_mib": round(row_bytes * (options.past + options.steps) / MIB, 1),
        "tensors": 2 * shape.layers,
        "rows": rows,
        "samples": [asdict(sample) for sample in samples],
    }
    (options.output / "kv.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "kv.md").write_text(markdown(result))
    Console().print(markdown(result), markup=False, soft_wrap=True)


def row(samples: Sequence[Sample], form: Form, holder: Holder) -> dict[str, Any]:
    """Sum up one cell."""
    cell = [s for s in samples if (s.form, s.holder) == (form, holder)]
    best = [s for s in samples if (s.form, s.holder) == (form, "engine")]
    more = [one.cpu_ms - other.cpu_ms for one, other in zip(cell, best, strict=True)]
    return {
        "form": form,
        "holder": holder,
        "wall_ms": round(median(s.wall_ms for s in cell), 1),
        "cpu_ms": round(median(s.cpu_ms for s in cell), 1),
        "more_cpu_ms": round(median(more), 1),  # than the engine's in the same round
        "faults": round(median(s.faults for s in cell), 1),
        "most_faults": round(max(s.faults for s in cell), 1),
        "moved": round(max(s.moved for s in cell), 2),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table that docs show."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        "# Decode by where the KV cache is held",
        "",
        f"{result['llm']}, after {result['past']} tokens. {result['processor']}, "
        f"{result['date']}, {versions}. {result['note']}".strip(),
        f"The cache has {result['tensors']} tensors of {result['cache_mib']} MiB in all. *Engine*: "
        "the product's loop, in place in the form `ort`, growing in the form `portable`. *Arrays*: "
        "the same graph, its past and present given and taken as numpy arrays at every step. "
        "Medians of interleaved rounds, by processor time, wall time in brackets; every sample is "
        "in `kv.json`. Moved tensors lie elsewhere after a step (the worst round), page faults are "
        "what the system had to give. Memory is above a process that has run the graph without a "
        "past: with the cache filled, and at the peak of decode; a process each.",
        "",
        "| form | cache | ms a token | more than engine ms | tensors moved a token | page faults a "
        "token (worst round) | memory MiB | at the peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        more = "" if row["holder"] == "engine" else f"{row['more_cpu_ms']:+.1f}"
        cells = [row["form"], row["holder"], f"{row['cpu_ms']:.1f} ({row['wall_ms']:.1f})", more]
        cells += [f"{row['moved']:g} of {result['tensors']}"]
        cells += [f"{row['faults']:.0f} ({row['most_faults']:.0f})"]
        cells += [f"{row['held_mib']:.0f}", f"{row['peak_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
