"""Graphs of the size of a real model, with random weights: Qwen2-VL's LLM at 0.5B parameters.

python tests/benchmarks/real_size.py FOLDER [PRECISION] writes them; prefill.py and precision.py do
so where they are missing.
"""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from tokprune.families import Span
from tokprune.families.qwen2_vl import positions
from tokprune.files import staged_folder
from tokprune.graphs import FirstLayerGraph, ScorerGraph
from tokprune.llm import LanguageModel
from tokprune.manifest import EMBEDDING_DTYPES, Limits, LlmForm, LlmShape, Precision
from tokprune.types import Prompt, Region, VisionTokens
from tokprune_runtimes import load_graph

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY = 896, 24, 14, 2, 64, 4864, 151936
TEXT_BEFORE, TEXT_AFTER = 18, 22  # a usual chat prompt: template, question of 14 tokens, template
GRIDS = {729: (27, 27), 1458: (27, 54)}
OPSET = 18
LIMITS = Limits(max_input_len=2048, max_kv_len=4096)
SHAPE = LlmShape(
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    hidden_size=HIDDEN,
    vocab_size=VOCABULARY,
)


@dataclass(frozen=True)
class RealSize:
    """The graphs behind a vision encoder, on one thread."""

    first_layer: FirstLayerGraph
    scorer: ScorerGraph
    llm: LanguageModel


def sources() -> str:
    """Return a hash of the code that the graphs are made by."""
    export = Path(__file__).parents[2] / "export" / "tokprune_export"
    names = ("decoder", "graphs", "int8", "layers", "llm_forms", "narrow", "onnx", "quantize")
    files = [export / f"{name}.py" for name in names] + sorted((export / "scorers").glob("*.py"))
    joined = b"".join(path.read_bytes() for path in (*files, Path(__file__)))
    return hashlib.sha256(joined).hexdigest()[:16]


def name(precision: Precision) -> str:
    """Return what the folder of a precision is called."""
    return f"real_size{'' if precision == 'fp32' else f'-{precision}'}-{sources()}"


def write(folder: Path, precision: Precision) -> None:
    """Trace and write the graphs, with the exporter's own code."""
    from tokprune_export import graphs, records
    from tokprune_export.decoder import Decoder
    from tokprune_export.families.qwen2_vl import text as text_of
    from tokprune_export.rounding import find_rounding
    from tokprune_export.scorers import GridScorer, Size

    model = random_model()
    text = text_of(model)
    with staged_folder(folder) as staged:
        (staged / graphs.FOLDER).mkdir()
        decoder = Decoder(text)
        scales = find_rounding(model, decoder, precision).scales
        target = graphs.Target(staged, OPSET, LIMITS.max_kv_len, precision, scales)
        makers = graphs.FORMS[precision]
        forms = [makers[name](text, decoder, target) for name in ("portable", "ort")]
        graphs.write(graphs.first_layer(text), target, "first_layer")
        wide = replace(target, precision="fp32")
        graphs.write(graphs.scorer(GridScorer(HEADS).eval(), Size(HEADS, HIDDEN)), wide, "scorer")
        table = staged / "embed_tokens.npy"
        records.write_embeddings(text.embeddings, table, EMBEDDING_DTYPES[precision])
        (staged / "forms.json").write_bytes(msgspec.json.encode(forms))


def random_model() -> Any:
    """Return the checkpoint, with an encoder that no graph is made of."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 8, 8],
            },
            "tie_word_embeddings": True,
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": HIDDEN},
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def load(folder: Path, form_name: str) -> RealSize:
    """Open the graphs with one form of the LLM."""
    forms = msgspec.json.decode((folder / "forms.json").read_bytes(), type=list[LlmForm])
    form = next(form for form in forms if form.form == form_name)
    llm = LanguageModel(
        graph=load_graph(folder / form.graph.file, "cpu", threads=1),
        form=form,
        shape=SHAPE,
        embed_tokens=np.load(folder / "embed_tokens.npy", mmap_mode="r", allow_pickle=False),
        eos=frozenset(),
        limits=LIMITS,
    )
    first_layer = load_graph(folder / "onnx/first_layer.onnx", "cpu", threads=1)
    scorer = load_graph(folder / "onnx/scorer.onnx", "cpu", threads=1)
    inputs = frozenset({"attention", "index", "cells"})
    return RealSize(FirstLayerGraph(first_layer, llm), ScorerGraph(scorer, inputs), llm)


def question_about(count: int) -> tuple[Prompt, VisionTokens]:
    """Return a prompt around one picture of `count` vision tokens, their embeddings random."""
    region = Region(0, 0, 0, *GRIDS[count])
    random = np.random.default_rng(0)
    where = np.zeros((count, 7), np.int32)
    where[:, 3:5] = np.indices(GRIDS[count]).reshape(2, -1).T
    embeds = random.normal(0, 0.02, (count, HIDDEN)).astype(np.float32)
    axes, following = positions((Span(TEXT_BEFORE), Span(count, (region,)), Span(TEXT_AFTER)))
    total = TEXT_BEFORE + count + TEXT_AFTER
    words = np.zeros(total, np.bool_)
    words[TEXT_BEFORE + count + 1 : -7] = True  # after <|vision_end|>, before the template's end
    prompt = Prompt(
        ids=random.integers(0, VOCABULARY, total),
        slots=np.arange(TEXT_BEFORE, TEXT_BEFORE + count),
        words=words,
        positions=axes,
        next_position=following,
    )
    return prompt, VisionTokens(embeds, where, (region,))


def prefill_flops(rows: int) -> int:
    """Count multiplications and additions of the matrix products of one prefill, as executed.

    Attention multiplies all rows with all columns and masks afterwards, in both forms; the head
    runs for the last row only.
    """
    attention_weights = 2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * KV_HEADS * HEAD_DIM
    linear = 2 * rows * (attention_weights + 3 * HIDDEN * MLP)
    attention = 2 * 2 * rows * rows * HEADS * HEAD_DIM
    return LAYERS * (linear + attention) + 2 * HIDDEN * VOCABULARY


if __name__ == "__main__":
    write(Path(sys.argv[1]), cast(Precision, (*sys.argv[2:], "fp32")[0]))
