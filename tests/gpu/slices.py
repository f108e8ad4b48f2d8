"""What does pruning save on an LLM of real size? Slices of 4 and 8 layers tell of the whole.

Every layer costs the same, so the difference of the two slices over 4 is one layer, and the rest is
what does not depend on their number.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from setting import Setting, Skipped, export

SIZE_HW = (1064, 1092)  # pixels: 38 x 39 vision tokens
BUDGETS = (1.0, 0.5, 0.25, 0.1)
LAYERS = (4, 8)
NEW_TOKENS = 33
QUESTION = "What is in the way of the robot, and where should it go instead?"
AHEAD = ("first_layer", "scorer", "select")  # stages before the LLM


class Size(NamedTuple):
    """Of a Qwen2-VL LLM."""

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    sections: tuple[int, int, int]  # of M-RoPE


SLICES = {
    "7B": Size(3584, 18944, 28, 4, 28, 152064, (16, 24, 24)),
    "2B": Size(1536, 8960, 12, 2, 28, 151936, (16, 24, 24)),
    "tiny": Size(128, 256, 2, 1, 12, 4096, (16, 8, 8)),  # to try this program
}


def slices(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield times by stage and budget for both slices, and the whole LLM's, extrapolated."""
    size = SLICES[setting.size]
    precision = "fp16" if "fp16" in setting.precisions else setting.precisions[0]
    measured: dict[int, dict[float, dict[str, float]]] = {}
    for layers in LAYERS:
        checkpoint = setting.work / f"slice-{setting.size}-{layers}"
        bundle = setting.work / f"{checkpoint.name}-{precision}"
        if not bundle.exists():
            write_slice(checkpoint, size, layers)
            options = ("--max-input-len", "2048", "--max-kv-len", "2560")
            scorer = ("--scorer", str(checkpoint / "scorer.safetensors"))
            export(checkpoint, bundle, precision, (*options, *scorer))
        measured[layers] = _timed(setting, bundle)
        for budget, times in measured[layers].items():
            yield {"layers": layers, "precision": precision, "budget": budget, **times}
        yield from _transformers(checkpoint, layers, setting.rounds)
        shutil.rmtree(checkpoint, ignore_errors=True)
    yield from _whole(size, measured)


def write_slice(folder: Path, size: Size, layers: int) -> None:
    """Write a random checkpoint with so many decoder layers and a vision encoder of one layer.

    Its scorer is random too: it costs what a trained one does.

    Raises:
        Skipped: torch or transformers are not here.
    """
    try:
        from real_checkpoints import change_settings, write_random
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        from tokprune_export.scorers import GridScorer, Scorer, Size, save_scorer
    except ImportError as error:
        raise Skipped(f"The slices need torch and transformers to be made: {error}") from None

    def config(demo: dict[str, Any]) -> Any:
        return Qwen2VLConfig(
            text_config={
                "vocab_size": size.vocabulary,
                "hidden_size": size.hidden,
                "intermediate_size": size.mlp,
                "num_hidden_layers": layers,
                "num_attention_heads": size.heads,
                "num_key_value_heads": size.kv_heads,
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": list(size.sections),
                },
                "tie_word_embeddings": False,
                "eos_token_id": demo["text_config"]["eos_token_id"],
            },
            vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": size.hidden},
            **{name: demo[name] for name in demo if name.endswith("_token_id")},
            tie_word_embeddings=False,
        )

    shutil.rmtree(folder, ignore_errors=True)
    write_random("qwen2_vl", folder, Qwen2VLForConditionalGeneration, config)
    pixels = {"shortest_edge": 3136, "longest_edge": SIZE_HW[0] * SIZE_HW[1]}
    change_settings(folder / "preprocessor_config.json", size=pixels)
    scorer = Scorer(GridScorer(size.heads), "grid", ("picture",), {}, {})
    save_scorer(
        folder / "scorer.safetensors", scorer, Size(size.heads, size.hidden), {"model": "random"}
    )


def _timed(setting: Setting, bundle: Path) -> dict[float, dict[str, float]]:
    """Return medians by budget; the rounds are interleaved, the first two do not count."""
    vlm = setting.open(bundle)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    text = len(vlm.model.prepare(picture, QUESTION)[0].ids)
    stages: dict[float, list[dict[str, float]]] = {budget: [] for budget in BUDGETS}
    for number in range(setting.rounds + 2):
        for budget in BUDGETS:
            start = perf_counter()
            answer = vlm.ask(picture, QUESTION, budget, max_new_tokens=NEW_TOKENS)
            whole = (perf_counter() - start) * 1000
            if number >= 2:
                steps = max(len(answer.token_ids) - 1, 1)
                times = {f"{stage}_ms": took for stage, took in answer.timings_ms.items()}
                stages[budget].append(
                    {
                        **times,
                        "ahead_of_llm_ms": sum(times[f"{stage}_ms"] for stage in AHEAD),
                        "ttft_ms": answer.ttft_ms,
                        "decode_token_ms": (whole - answer.ttft_ms) / steps,
                        "vision_tokens": answer.total,
                        "kept": answer.kept,
                        "rows": text - answer.total + answer.kept,
                    }
                )
    return {
        budget: {name: round(median(row[name] for row in rows), 4) for name in rows[0]}
        for budget, rows in stages.items()
    }


def _transformers(checkpoint: Path, layers: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield prefill and decode of the same slice in transformers: SDPA, fp16, nothing pruned."""
    about = {"layers": layers, "transformers": "fp16, SDPA"}
    try:
        import torch
        from transformers import Qwen2VLForConditionalGeneration
    except ImportError as error:
        yield {**about, "skipped": str(error)}
        return
    if not torch.cuda.is_available() or not (checkpoint / "config.json").exists():
        yield {**about, "skipped": "torch has no CUDA device here, or the bundle was brought along"}
        return
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float16, attn_implementation="sdpa"
    )
    model = model.to("cuda").eval().model.language_model
    rows = 38 * 39 + 60
    embeds = torch.randn(1, rows, model.config.hidden_size, dtype=torch.float16, device="cuda")
    times = []
    with torch.no_grad():
        for number in range(rounds + 2):
            torch.cuda.synchronize()
            start = perf_counter()
            model(inputs_embeds=embeds, use_cache=True)
            torch.cuda.synchronize()
            if number >= 2:
                times.append((perf_counter() - start) * 1000)
    yield {**about, "rows": rows, "prefill_without_head_ms": round(median(times), 4)}


def _whole(
    size: Size, measured: dict[int, dict[float, dict[str, float]]]
) -> Iterator[dict[str, Any]]:
    """Yield the whole LLM's prefill and what pruning makes of it, beside the ratio of FLOPs."""
    few, many = LAYERS
    whole: dict[float, float] = {}
    for budget in BUDGETS:
        small, large = (measured[count][budget]["prefill_ms"] for count in LAYERS)
        layer = (large - small) / (many - few)
        whole[budget] = small + (size.layers - few) * layer
    rows = {budget: measured[few][budget]["rows"] for budget in BUDGETS}
    for budget in BUDGETS:
        ratio = flops(size, rows[1.0]) / flops(size, rows[budget])
        speed_up = whole[1.0] / whole[budget]
        yield {
            "layers": size.layers,
            "extrapolated": True,
            "budget": budget,
            "prefill_ms": round(whole[budget], 3),
            "speed_up": round(speed_up, 3),
            "flop_ratio": round(ratio, 3),
            "within_15_percent": bool(speed_up >= 0.85 * ratio),
        }


def flops(size: Size, rows: float) -> float:
    """Count multiplications and additions of all layers' matrix products in one prefill."""
    head = size.hidden // size.heads
    attention_weights = 2 * size.hidden**2 + 2 * size.hidden * size.kv_heads * head
    linear = 2 * rows * (attention_weights + 3 * size.hidden * size.mlp)
    return size.layers * (linear + 4 * rows * rows * size.hidden)
