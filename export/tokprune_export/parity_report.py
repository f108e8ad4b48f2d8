"""What the parity gate asks of a comparison, and how its outcome is told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import msgspec
import numpy as np
from rich.table import Table

from tokprune.manifest import Precision
from tokprune.types import Array
from tokprune_export.errors import ParityFailed


@dataclass(frozen=True)
class Rule:
    """What must hold: `|a - b| <= atol * max(1, max|b|)`, and the cosine of `a` and `b`.

    In float32, differences are sums in another order: they are a few units of the last place of the
    largest values, and one bound is enough. A narrow precision rounds every activation. Its
    unit is 2^-11 of a value (float16), and errors of L layers add up as a random walk does, about
    sqrt(L) units: 0.3 % of the largest value at 40 layers (measured: 0.05 % at 5), and several
    times that where large values cancel, for which `atol` leaves room. Such a bound alone would
    pass a graph whose values are all wrong by 1 % of the largest, which is about their own size.
    The cosine sees that: errors of relative size e cost e^2 / 2 of it, so 0.999 is 4.5 %.

    In bfloat16 the unit is 2^-8, and the weights of most checkpoints have it already; the gate runs
    its graphs with sums in float32 (widen.py), so the same rule holds (measured: 0.4 % of the
    largest value and a cosine of 0.99999 at 5 layers).

    In int4 the oracle has the rounded weights, so what is left is float16, and that ONNX Runtime's
    CPU rounds what it multiplies by 4-bit weights to 8 bits (accuracy level 4 of MatMulNBits):
    2^-8 of the largest of each block, eight times float16's unit (measured: 1 to 2 % of the largest
    logit and a cosine of 0.9995 at 5 layers).

    In int8 the oracle has the rounded weights and rounds inputs as the graph does, so what is left
    are values that sums in another order put on the other side of a level, and the head, whose
    weights and inputs only the graph rounds: again 2^-8 of the largest (measured: up to 2 % of the
    largest logit and a cosine of 0.9998 at 5 layers). Vision encoder and first layer are held to
    float32's rule.
    """

    atol: float
    cosine: float = -1.0  # anything


EXACT = Rule(0.0)
RULES: dict[Precision, Rule] = {
    "fp32": Rule(1e-4),
    "fp16": Rule(1e-2, 0.999),
    "bf16": Rule(1e-2, 0.999),
    "int8": Rule(5e-2, 0.998),
    "int4": Rule(5e-2, 0.998),
}
# A vision encoder with fixed scales, beside a checkpoint that rounds alike. A value that falls to
# the other side of a level moves all that come after it, so that after some layers what differs is
# near to what rounding itself does (measured: cosines of 0.9995 and 3.5 % of the largest at 5
# layers of the demos in float16; 0.9996 and 3.3 % at 27 layers of random weights in float16 and
# float32, where rounding is 0.9994 and 4.5 %). A cosine of 0.995 is an error of 10 %, three times
# that.
STATIC = Rule(1e-1, 0.995)
# What rounding to 8 or 4 bits may do to logits: rows tell how much it is, and a model that is
# lost altogether is refused. Whether answers stay good is for tokprune-eval to say.
ROUNDING = Rule(1.0, 0.8)
# The same of vision tokens whose encoder rounds with fixed scales, of pictures: random pixels are
# no pictures, and are clipped. No layer loses more than 10 % (static_scales.py), and healthy ones
# together about 3 % (measured: cosines of 0.9993 and differences of 4 % at 5 layers); a cosine of
# 0.98 is 20 %.
PICTURES = Rule(0.5, 0.98)


@dataclass(frozen=True)
class Row:
    """One comparison."""

    graph: str
    form: str
    case: str
    max_abs_diff: float
    max_abs: float  # of the oracle's values
    tolerance: float
    cosine: float  # of all values as one vector
    ok: bool
    ties: int = 0  # greedy tokens that differ where the oracle's two best are within the tolerance


@dataclass(frozen=True)
class Notes:
    """What the rows do not say of a bundle."""

    unchecked: Sequence[str] = ()  # what this machine could not run, and why
    not_quantised: Sequence[str] = ()  # linear layers of the LLM that stay float16 in int4
    encoder_not_quantised: Sequence[str] = ()  # of the vision encoder, in int8-static
    calibrated_on: str = ""  # pictures that the scales of int8-static were found on


def compare(graph: str, form: str, case: str, ours: Array, oracle: Array, rule: Rule) -> Row:
    """Hold a rule; what is not a number never does."""
    if ours.shape != oracle.shape:
        shapes = f"shape {ours.shape}, the checkpoint gives {oracle.shape}"
        raise ParityFailed(f"{graph} {form} {case}: {shapes}")
    largest = float(np.abs(oracle).max(initial=0))
    worst = float(np.abs(ours - oracle).max(initial=0))
    tolerance = rule.atol * max(1.0, largest)
    along = cosine(ours, oracle)
    ok = worst <= tolerance and along >= rule.cosine
    return Row(graph, form, case, worst, largest, tolerance, along, ok)


def cosine(ours: Array, oracle: Array) -> float:
    """Return the cosine of two arrays as vectors; two of zeros are alike."""
    a, b = (each.astype(np.float64).ravel() for each in (ours, oracle))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(not a.any() and not b.any())


def with_ties(row: Row, ours: Array, oracle: Array) -> Row:
    """Count greedy tokens that differ where the oracle itself is undecided."""
    best = np.sort(oracle, axis=1)[:, -2:]
    differ = ours.argmax(axis=1) != oracle.argmax(axis=1)
    undecided = best[:, 1] - best[:, 0] < 2 * row.tolerance
    return replace(row, ties=int((differ & undecided).sum()))


def report(rows: Sequence[Row], rule: Rule, notes: Notes) -> bytes:
    """Return reports/parity.json."""
    content = {
        "rule": "max|a - b| <= atol * max(1, max|b|) and cosine(a, b) >= cosine, b from "
        "transformers in float32; see parity_report.py",
        "atol": rule.atol,
        "cosine": rule.cosine,
        "ok": all(row.ok for row in rows),
        "rows": [asdict(row) for row in rows],
        **asdict(notes),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    style = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0)}  # to fit 80 columns
    shown = Table(title="Parity with the checkpoint, max |a - b|", title_justify="left", **style)
    for heading in ("graph", "form", "case", "diff", "limit", "cosine", ""):
        right = heading in ("diff", "limit", "cosine")
        shown.add_column(heading, no_wrap=True, justify="right" if right else "left")
    for row in rows:
        verdict = "ok" if row.ok else "[bold red]FAILED"
        if row.ties and row.ok:
            verdict += f" {row.ties} tie{'s' if row.ties > 1 else ''}"
        figures = (f"{row.max_abs_diff:.1e}", f"{row.tolerance:.1e}", f"{row.cosine:.4f}")
        shown.add_row(row.graph, row.form, row.case, *figures, verdict)
    return shown
