"""From a task's `generation_kwargs` to the options of `vlm.ask`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokprune.errors import RequestInvalid, unknown
from tokprune.running.request import AskOptions

NEW_TOKENS = 128  # where a task sets no bound, as `vlm.ask`
# Without meaning here: they are for the preprocessing of LLaVA's own code, for the harness's loop,
# or for what transformers returns. A record of every answer names them.
MEANINGLESS = ("image_aspect_ratio", "max_agentic_steps", "skip_special_tokens", "use_cache")
KNOWN = (
    "do_sample", "max_gen_toks", "max_new_tokens", "num_beams", "repetition_penalty", "seed",
    "stop_sequences", "temperature", "top_k", "top_p", "until", *MEANINGLESS,
)  # fmt: skip


@dataclass(frozen=True)
class Generating:
    """How a request is to be answered."""

    options: AskOptions
    ignored: tuple[str, ...]  # keywords that the task gave and that change nothing here


def generating(given: Mapping[str, Any], *, seed: int = 0, until: bool = True) -> Generating:
    """Translate, truthfully or not at all.

    As in transformers, `do_sample: false` is greedy whatever the temperature; without `do_sample`,
    a temperature above 0 draws.

    Args:
        given: the task's `generation_kwargs`, with those of `--gen_kwargs`.
        seed: of an answer that is drawn, where the task names none.
        until: whether the task's stop strings end the answer.

    Raises:
        RequestInvalid: what is asked for is not done here, or not known.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    for name in asked:
        if name not in KNOWN:
            raise RequestInvalid(unknown("generation keyword", name, list(KNOWN)))
    _refuse_unless(asked, "num_beams", 1, "there is no beam search here")
    _refuse_unless(asked, "repetition_penalty", 1, "logits are not penalised here")
    ignored = [name for name in MEANINGLESS if name in asked]
    options = AskOptions(max_new_tokens=_new_tokens(asked))
    temperature = _temperature(asked)
    if temperature > 0:
        options["temperature"] = temperature
        options["seed"] = int(asked.get("seed", 0)) + seed
        if "top_p" in asked:
            options["top_p"] = float(asked["top_p"])
    elif float(asked.get("temperature", 0)) > 0:
        ignored.append("temperature")
    stops = [*_strings(asked, "until"), *_strings(asked, "stop_sequences")]
    if until:
        options["stop"] = list(dict.fromkeys(stops))
    elif stops:
        ignored.append("until")
    return Generating(options, tuple(ignored))


def _temperature(asked: Mapping[str, Any]) -> float:
    """Return 0 for a greedy answer."""
    draws = asked.get("do_sample")
    temperature = float(asked.get("temperature", 1.0 if draws is True else 0.0))
    if draws is False or asked.get("top_k") == 1:
        return 0.0
    if temperature > 0 and asked.get("top_k", 0) not in (0, -1):
        raise RequestInvalid(
            f"top_k={asked['top_k']} is not offered here: draw with temperature and top_p, or "
            "leave do_sample and temperature out"
        )
    return temperature


def _new_tokens(asked: Mapping[str, Any]) -> int:
    bounds = {int(asked[name]) for name in ("max_new_tokens", "max_gen_toks") if name in asked}
    if len(bounds) > 1:
        raise RequestInvalid(
            f"max_new_tokens={asked['max_new_tokens']} and max_gen_toks={asked['max_gen_toks']} "
            "mean the same: give one"
        )
    return bounds.pop() if bounds else NEW_TOKENS


def _strings(asked: Mapping[str, Any], name: str) -> list[str]:
    value = asked.get(name, [])
    return [value] if isinstance(value, str) else list(value)


def _refuse_unless(asked: Mapping[str, Any], name: str, neutral: float, reason: str) -> None:
    if asked.get(name, neutral) != neutral:
        raise RequestInvalid(f"{name}={asked[name]} is asked for, and {reason}: leave it out")
