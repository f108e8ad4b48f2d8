"""What does pruning save on an LLM of real size? Slices of 4 and 8 layers tell of the whole.

Every layer costs the same, so the difference of the two slices over 4 is one layer, and the rest is
what does not depend on their number.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from baseline import baseline
from setting import Row, Setting, case, endless, export
from slice_checkpoint import SIZE_HW, SLICES, Size, flops, write_slice
from targets import Speed, targets

from tokprune.types import Answer

BUDGETS = (1.0, 0.5, 0.25, 0.1)
LAYERS = (4, 8)
NEW_TOKENS = 33
QUESTION = "What is in the way of the robot, and where should it go instead?"
AHEAD = ("first_layer", "scorer", "select")  # stages before the LLM
Times: TypeAlias = dict[str, float]
Measured: TypeAlias = dict[int, dict[float, Times]]  # layers -> budget -> medians


def slices(setting: Setting) -> Iterator[Row]:
    """Yield times by stage and budget for both slices, transformers' beside them.

    Then those of the whole LLM, extrapolated, and whether the targets were met.
    """
    size = SLICES[setting.size]
    precision = "fp16" if "fp16" in setting.precisions else setting.precisions[0]
    measured: Measured = {}
    theirs: dict[int, Times] = {}
    for layers in LAYERS:
        checkpoint = setting.work / f"slice-{setting.size}-{layers}"
        measured[layers] = _timed(setting, _bundle(checkpoint, size, layers, precision))
        for budget, times in measured[layers].items():
            yield {"layers": layers, "precision": precision, "budget": budget, **times}
        for row in _transformers(setting, checkpoint, layers, int(measured[layers][1.0]["rows"])):
            yield row
            if "prefill_ms" in row:
                theirs[layers] = {name: row[name] for name in ("prefill_ms", "decode_token_ms")}
        shutil.rmtree(checkpoint, ignore_errors=True)
    yield from whole(setting.size, measured, theirs)


def _bundle(checkpoint: Path, size: Size, layers: int, precision: str) -> Path:
    """Return the bundle of a slice, made and exported if it is not there."""
    bundle = checkpoint.with_name(f"{checkpoint.name}-{SIZE_HW[0]}-{precision}")
    if not bundle.exists():
        write_slice(checkpoint, size, layers)
        options = ("--max-input-len", "2048", "--max-kv-len", "2560")
        scorer = ("--scorer", str(checkpoint / "scorer.safetensors"))
        export(checkpoint, bundle, precision, (*options, *scorer))
    return bundle


def _transformers(setting: Setting, checkpoint: Path, layers: int, rows: int) -> Iterator[Row]:
    device = "cpu" if setting.engine == "cpu" else "cuda"
    kind = "fp32 on the CPU, SDPA" if setting.engine == "cpu" else "fp16, SDPA"

    def found() -> Iterator[Row]:
        if not (checkpoint / "config.json").exists():  # the bundle was there already
            write_slice(checkpoint, SLICES[setting.size], layers)
        return baseline(checkpoint, rows, NEW_TOKENS, setting.rounds, device)

    return case({"layers": layers, "transformers": kind, "budget": 1.0}, found)


def _timed(setting: Setting, bundle: Path) -> dict[float, Times]:
    """Return medians by budget; the rounds are interleaved, the first two do not count."""
    vlm = endless(setting.open(bundle).model)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    text = len(vlm.model.prepare(picture, QUESTION)[0].ids)
    stages: dict[float, list[Times]] = {budget: [] for budget in BUDGETS}
    for number in range(setting.rounds + 2):
        for budget in BUDGETS:
            start = perf_counter()
            answer = vlm.ask(
                picture, QUESTION, budget, max_new_tokens=NEW_TOKENS, repetition_guard=False
            )
            took_ms = (perf_counter() - start) * 1000
            if number >= 2:
                stages[budget].append(_times(answer, took_ms, text))
    return {
        budget: {name: round(median(row[name] for row in rows), 4) for name in rows[0]}
        for budget, rows in stages.items()
    }


def _times(answer: Answer, took_ms: float, rows: int) -> Times:
    """Return an answer's stages; `rows` are the unpruned prompt's."""
    times = {f"{stage}_ms": took for stage, took in answer.timings_ms.items()}
    steps = max(len(answer.token_ids) - 1, 1)
    return {
        **times,
        "ahead_of_llm_ms": sum(times[f"{stage}_ms"] for stage in AHEAD),
        "ttft_ms": answer.ttft_ms,
        "decode_token_ms": (took_ms - answer.ttft_ms) / steps,
        "vision_tokens": answer.total,
        "kept": answer.kept,
        "rows": rows - answer.total + answer.kept,
    }


def whole(name: str, measured: Measured, theirs: Mapping[int, Times]) -> Iterator[Row]:
    """Yield the whole LLM, extrapolated: ours by budget, transformers', and the targets.

    Times to the first token are without the vision encoder, which is none of a real size here.

    Args:
        name: of the LLM's size.
        measured: both slices by budget.
        theirs: transformers' two slices; empty where these could not be timed.
    """
    size, few = SLICES[name], measured[LAYERS[0]]
    them: Times = {}
    if set(theirs) == set(LAYERS):
        them = {each: _all_layers(size, theirs, each) for each in theirs[LAYERS[0]]}
        yield {"layers": size.layers, "extrapolated": True, "transformers": "at 100 %", **them}
    found: dict[float, Row] = {}
    for budget in BUDGETS:
        slices_at = {layers: measured[layers][budget] for layers in LAYERS}
        ours = {
            each: _all_layers(size, slices_at, each) for each in ("prefill_ms", "decode_token_ms")
        }
        ours["llm_ttft_ms"] = round(ours["prefill_ms"] + _ahead(measured, budget), 4)
        found[budget] = {**ours, **_beside(ours, found.get(1.0, ours), them)}
        ratio = flops(size, few[1.0]["rows"]) / flops(size, few[budget]["rows"])
        found[budget]["flop_ratio"] = round(ratio, 3)
        yield {"layers": size.layers, "extrapolated": True, "budget": budget, **found[budget]}
    speeds = {
        each: Speed(row["prefill_speed_up"], row["flop_ratio"]) for each, row in found.items()
    }
    ahead = {budget: _ahead(measured, budget) for budget in BUDGETS}
    yield from targets(name, int(few[1.0]["vision_tokens"]), ahead, speeds)


def _beside(ours: Times, unpruned: Times, them: Times) -> Times:
    """Return how many times as fast as the same engine unpruned, and as transformers."""
    found = {
        "prefill_speed_up": round(unpruned["prefill_ms"] / ours["prefill_ms"], 3),
        "ttft_speed_up": round(unpruned["llm_ttft_ms"] / ours["llm_ttft_ms"], 3),
        "decode_speed_up": round(unpruned["decode_token_ms"] / ours["decode_token_ms"], 3),
    }
    if them:
        found["ttft_against_transformers"] = round(them["prefill_ms"] / ours["llm_ttft_ms"], 3)
        decode = them["decode_token_ms"] / ours["decode_token_ms"]
        found["decode_against_transformers"] = round(decode, 3)
    return found


def _ahead(measured: Measured, budget: float) -> float:
    """Return what runs before the LLM: the same in both slices, so the slower is taken."""
    return max(measured[layers][budget]["ahead_of_llm_ms"] for layers in LAYERS)


def _all_layers(size: Size, slices_at: Mapping[int, Mapping[str, Any]], name: str) -> float:
    """Extrapolate a time from both slices to all layers of the LLM."""
    few, many = LAYERS
    layer = (slices_at[many][name] - slices_at[few][name]) / (many - few)
    return round(slices_at[few][name] + (size.layers - few) * layer, 4)
