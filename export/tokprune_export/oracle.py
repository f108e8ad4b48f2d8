"""What the HF module itself says of prompts that no graph was traced with.

Everything is asked before the graphs run, so that the module's memory can be given back first.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from tokprune.types import Array
from tokprune_export.decoder import TextModel
from tokprune_export.families import Family, Trial

# Entered around a pass over rows that graphs get in several calls, of these lengths each.
Cut: TypeAlias = Callable[[Sequence[int]], AbstractContextManager[Any]]

NEW_TOKENS = 6
KEPT_SHARE = 0.4


@dataclass(frozen=True)
class Run:
    """Rows for the LLM, cut into the calls that are to be made, and the logits after each call."""

    name: str
    embeds: Float32[Array, "t d"] | None  # None: made by our own graphs
    positions: Int64[Array, "p t"]
    bias: Float32[Array, " t"]
    lengths: tuple[int, ...]  # rows of each call
    logits: Float32[Array, "calls v"]


@dataclass(frozen=True)
class Expected:
    """One trial's answers."""

    trial: Trial
    vision: Float32[Array, "n d"]
    saliency: Float32[Array, " n"] | None  # None: not asked for
    prompt: Float32[Array, "s d"]
    rows: Int64[Array, " u"]
    attention: Float32[Array, "a u n"]
    calls: tuple[Run, ...]  # the LLM graph alone, in calls of several lengths; one trial's
    tokens: Int64[Array, " new"]  # what generate says
    answer: Run  # from pixels and ids, as generate runs it
    keep: Int64[Array, " k"]
    pruned: Run  # the same with the kept vision tokens only, at their original positions


def uncut(lengths: Sequence[int]) -> AbstractContextManager[Any]:
    """Tell nobody: where inputs are not rounded by calls, cuts make no difference."""
    del lengths
    return nullcontext()


def observe(
    model: Any,
    family: Family,
    device: str,
    cut: Cut = uncut,
    *,
    saliency_layers: int = 0,
) -> list[Expected]:
    """Ask the HF module about every trial of its family."""
    model.to(device)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        trials = list(family.trials(model))
        longest = max(trials, key=lambda trial: len(trial.ids))
        oracle = _Oracle(model, family, device, cut, saliency_layers)
        return [_observe(oracle, trial, calls=trial is longest) for trial in trials]


@dataclass(frozen=True)
class _Oracle:
    model: Any
    family: Family
    device: str
    cut: Cut
    saliency_layers: int


def _observe(oracle: _Oracle, trial: Trial, *, calls: bool) -> Expected:
    model, family, device = oracle.model, oracle.family, oracle.device
    inputs = {name: value.to(device) for name, value in trial.inputs.items()}
    text = family.text(model)
    vision, layers = family.encode(model, inputs), oracle.saliency_layers
    prompt = text.model.embed_tokens(trial.ids.to(device))
    prompt[trial.slots] = vision
    tokens, logits = _generate(model, inputs)
    rows = np.arange(int(trial.slots[-1]) + 1, len(trial.ids))
    keep = _some(len(trial.slots))
    stays = np.concatenate([np.setdiff1d(np.arange(len(prompt)), trial.slots), trial.slots[keep]])
    stays.sort()
    answer_positions = np.arange(NEW_TOKENS - 1) + trial.next_position
    axes = trial.positions[:, 0].numpy()
    positions = np.concatenate(
        [axes, np.broadcast_to(answer_positions, (len(axes), NEW_TOKENS - 1))], axis=1
    )
    embeds = torch.cat([prompt, text.model.embed_tokens(tokens[:-1])])
    kept = np.concatenate([stays, len(prompt) + np.arange(NEW_TOKENS - 1)])
    steps = (1,) * (NEW_TOKENS - 1)
    return Expected(
        trial=trial,
        vision=_array(vision),
        saliency=_array(family.saliency(model, inputs, layers)) if layers else None,
        prompt=_array(prompt),
        rows=rows,
        attention=_attention(model, text, prompt, trial)[:, rows][:, :, trial.slots.numpy()],
        calls=_calls(oracle, prompt, axes) if calls else (),
        tokens=tokens.cpu().numpy(),
        answer=Run(
            trial.name, None, positions, _zeros(embeds), (len(prompt), *steps), _array(logits)
        ),
        keep=keep,
        pruned=_forward(
            oracle, trial.name, embeds[kept], positions[:, kept], (len(stays), *steps), None
        ),
    )


def _generate(model: Any, inputs: dict[str, Tensor]) -> tuple[Int64[Tensor, " new"], Tensor]:
    """Return greedy tokens and their logits, whatever the checkpoint's generation_config says."""
    from transformers import GenerationConfig

    configured, model.generation_config = model.generation_config, GenerationConfig()
    try:
        result = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        model.generation_config = configured
    return result.sequences[0, -NEW_TOKENS:], torch.stack(result.logits)[:, 0]


def _attention(model: Any, text: TextModel, prompt: Tensor, trial: Trial) -> Array:
    """Return layer 0's attention maps from HF's eager implementation, those of no other layer."""
    usual = text.model.config._attn_implementation  # noqa: SLF001 - transformers has no getter
    maps: list[Array] = []
    first = text.model.layers[0].self_attn
    hook = first.register_forward_hook(lambda _, __, output: maps.append(_array(output[1][0])))
    model.set_attn_implementation("eager")
    try:
        text.model(
            inputs_embeds=prompt[None],
            position_ids=text.position_ids(trial.positions.to(prompt.device)),
            use_cache=False,
        )
    finally:
        model.set_attn_implementation(usual)
        hook.remove()
    return maps[0]


def _calls(oracle: _Oracle, prompt: Tensor, axes: Array) -> tuple[Run, ...]:
    """Cut one prompt in several ways: whole, one row on an empty past, appended, with a bias."""
    whole, part = len(prompt), len(prompt) // 3
    bias = np.random.default_rng(0).normal(size=whole).astype(np.float32)
    cuts = ((whole,), (1, whole - 1), (part, whole - part - 2, 1, 1))
    plain = [_forward(oracle, _lengths(cut), prompt, axes, cut, None) for cut in cuts]
    cut = (part, whole - part)
    return *plain, _forward(oracle, f"{_lengths(cut)}, biased", prompt, axes, cut, bias)


def _lengths(cut: Sequence[int]) -> str:
    return f"{' + '.join(map(str, cut))} rows"


def _forward(
    oracle: _Oracle,
    name: str,
    embeds: Float[Tensor, "t d"],
    positions: Int64[Array, "p t"],
    lengths: Sequence[int],
    bias: Float32[Array, " t"] | None,
) -> Run:
    """Run all rows at once, with no cache, and read the logits where each call would end."""
    text, count = oracle.family.text(oracle.model), len(embeds)
    # without a mask, transformers takes gaps in positions for borders between packed prompts
    mask = torch.ones(1, count, dtype=torch.int64, device=embeds.device)
    if bias is not None:
        allowed = torch.ones(count, count, dtype=torch.bool, device=embeds.device).tril()
        added = torch.from_numpy(bias).to(embeds.device).expand(count, count)
        mask = added.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[None, None]
    with oracle.cut(lengths):
        output = text.model(
            inputs_embeds=embeds[None],
            position_ids=text.position_ids(torch.from_numpy(positions)[:, None].to(embeds.device)),
            attention_mask=mask,
            use_cache=False,
        )
    ends = np.cumsum(lengths) - 1
    logits = text.head(output.last_hidden_state[0, ends])
    row = _zeros(embeds) if bias is None else bias
    return Run(name, _array(embeds), positions, row, tuple(lengths), _array(logits))


def _some(count: int) -> Int64[Array, " k"]:
    """Return a random part of the vision tokens, at least one, ascending."""
    kept = max(1, round(KEPT_SHARE * count))
    return np.sort(np.random.default_rng(0).permutation(count)[:kept])


def _zeros(embeds: Tensor) -> Float32[Array, " t"]:
    return np.zeros(len(embeds), np.float32)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().float().cpu().numpy()
