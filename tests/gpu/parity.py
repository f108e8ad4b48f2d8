"""Does every graph of an engine give what it gives on the CPU?

Each graph gets what the CPU's graphs before it gave, so that a fault shows where it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from setting import Row, Setting, each_bundle

from tokprune.llm import Access, Continuation
from tokprune.model import Model
from tokprune.scenes.suite import suite
from tokprune.types import Array, FirstLayer, Prepared, Prompt, Selection, VisionTokens

TOKENS = 196
STEPS = 4  # of decoding, after the prefill


class Rule(NamedTuple):
    """What must hold: `|a - b| <= atol * max(1, max|b|)`, and the cosine of `a` and `b`."""

    atol: float
    cosine: float


# Those of the exporter's parity gate: tokprune_export.parity_report says why they are what they
# are. bf16 is held against float32 there too.
RULES = {
    "fp32": Rule(1e-4, -1.0),
    "fp16": Rule(1e-2, 0.999),
    "bf16": Rule(1e-2, 0.999),
    "int4": Rule(5e-2, 0.998),
}


class Inputs(NamedTuple):
    """What the graphs are fed: the CPU's outputs, but for the picture."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    vision: VisionTokens
    first: FirstLayer


def graph_parity(setting: Setting) -> Iterator[Row]:
    """Yield cosine and largest difference of every graph's outputs, by family and precision."""
    yield from each_bundle(setting, _graphs)


def _graphs(setting: Setting, family: str, precision: str) -> Iterator[Row]:
    ours = setting.open(setting.bundle(family, precision)).model
    reference, exact = setting.reference(family, precision)
    sample = next(iter(suite("dev", 1, tokens=TOKENS)))
    inputs = inputs_of(reference.model, list(sample.pictures), sample.question)
    answer = answer_ids(reference.model, inputs)
    theirs = outputs_of(reference.model, inputs, answer)
    for name, values in outputs_of(ours, inputs, answer).items():
        compared = compare(values, theirs[name], RULES[precision])
        yield {"output": name, "against": f"{exact} on the CPU", **compared}


def inputs_of(model: Model, pictures: list[Array], question: str) -> Inputs:
    """Return what a model's graphs are fed for a question."""
    prompt, media = model.prepare(list(pictures), question)
    vision = model.vision(media)
    return Inputs(prompt, media, vision, model.first_layer.run(prompt, vision))


def answer_ids(model: Model, inputs: Inputs) -> list[int]:
    """Return the likeliest tokens after a prompt: so many as are decoded here."""
    written = _started(model, inputs)
    ids: list[int] = []
    for _ in range(STEPS):
        ids.append(int(written.logits.argmax()))
        written.extend(ids[-1:])
    return ids


def outputs_of(model: Model, inputs: Inputs, answer: list[int]) -> dict[str, Array]:
    """Return the outputs of all four graphs by name; the LLM's at prefill and at each step."""
    vision = model.vision(inputs.media)
    found: dict[str, Array] = {"vision_encoder.vision_tokens": vision.embeds}
    if vision.saliency is not None:
        found["vision_encoder.saliency"] = vision.saliency
    first = model.first_layer.run(inputs.prompt, inputs.vision)
    found["first_layer.attention"] = first.attention
    found["scorer.relevance"] = model.scorer(inputs.vision, inputs.first)
    written = _started(model, inputs)
    found["llm.logits, prefill"] = np.array(written.logits)
    steps: list[Array] = []
    for token in answer:
        written.extend([token])
        steps.append(np.array(written.logits))
    found["llm.logits, decode"] = np.stack(steps)
    return found


def compare(ours: Array, theirs: Array, rule: Rule) -> Row:
    """Hold a rule; what is not a number never does, nor does another shape."""
    if ours.shape != theirs.shape:
        return {"shapes": [list(ours.shape), list(theirs.shape)], "ok": False}
    a, b = (each.astype(np.float64).ravel() for each in (ours, theirs))
    worst, largest = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else float(not a.any() and not b.any())
    tolerance = rule.atol * max(1.0, largest)
    return {
        "cosine": round(cosine, 8),
        "least_cosine": rule.cosine,
        "max_abs_diff": worst,
        "max_abs": largest,
        "tolerance": tolerance,
        "ok": worst <= tolerance and cosine >= rule.cosine,
    }


def _started(model: Model, inputs: Inputs) -> Continuation:
    total = len(inputs.prompt.slots)
    everything = Selection(np.arange(total), total, None, None, "all")
    return model.llm.start(inputs.prompt, inputs.vision, everything, STEPS + 1, Access())
