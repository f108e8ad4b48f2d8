"""Random checkpoints of a few layers of an LLM of real size."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from setting import Skipped

SIZE_HW = (1092, 1092)  # pixels: 39 x 39 vision tokens, as the targets are for 1,500 and more


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


def write_slice(folder: Path, size: Size, layers: int) -> None:
    """Write a random checkpoint with so many decoder layers and a vision encoder of one layer.

    Its scorer is random too, of the kind that is trained by default: it costs what such a one does.

    Raises:
        Skipped: torch or transformers are not here.
    """
    try:
        from real_checkpoints import change_settings, write_random
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        from tokprune_export.scorers import AskedScorer, Scorer, save_scorer
        from tokprune_export.scorers import Size as ScorerSize
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
    network = AskedScorer(size.heads, size.hidden)
    scorer = Scorer(network, "asked", ("picture",), {}, {})
    of_size = ScorerSize(size.heads, size.hidden)
    save_scorer(folder / "scorer.safetensors", scorer, of_size, {"model": "random"})


def flops(size: Size, rows: float) -> float:
    """Count multiplications and additions of all layers' matrix products in one prefill."""
    head = size.hidden // size.heads
    attention_weights = 2 * size.hidden**2 + 2 * size.hidden * size.kv_heads * head
    linear = 2 * rows * (attention_weights + 3 * size.hidden * size.mlp)
    return size.layers * (linear + 4 * rows * rows * size.hidden)
