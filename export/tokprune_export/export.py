"""From a checkpoint to a bundle, in reading order."""

import errno
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TypeAlias

import torch

from tokprune.files import staged_folder
from tokprune.manifest import (
    SCHEMA_VERSION,
    Chat,
    Graphs,
    Limits,
    LlmShape,
    Manifest,
    Scorer,
    Tokens,
    encode,
)
from tokprune_export import graphs, parity, preflight, records
from tokprune_export.chat_template import Template, compile_chat, verify_chat
from tokprune_export.checkpoint import Checkpoint, open_checkpoint
from tokprune_export.decoder import Decoder, TextModel
from tokprune_export.errors import ExportRefused, ParityFailed
from tokprune_export.families import FAMILIES, Family
from tokprune_export.options import ExportOptions
from tokprune_export.oracle import Expected, observe
from tokprune_export.scorers import Scorer as ScorerFile
from tokprune_export.scorers import load_scorer

TRAINED_SELECTOR = "relevance-spread"
UNTRAINED_SELECTOR = "attention-spread"

Step: TypeAlias = Callable[[str], None]  # told the name of each step as it begins
Outcome: TypeAlias = Callable[[Sequence[parity.Row]], None]  # told how the gate went, good or bad


@dataclass(frozen=True)
class Plan:
    """All that is known, and was found good, before any weight is read."""

    options: ExportOptions
    checkpoint: Checkpoint
    family: Family
    limits: Limits
    scorer: ScorerFile
    chat: Chat
    tokens: Tokens
    needs: preflight.Needs


def export(options: ExportOptions, step: Step, outcome: Outcome) -> Manifest:
    """Write a bundle, or nothing.

    Raises:
        ExportRefused: an option, the checkpoint or this machine does not allow it.
        ParityFailed: a graph does not say what the checkpoint says.
    """
    plan = make_plan(options, step)
    try:
        with staged_folder(options.output) as folder:
            return write_bundle(plan, folder, step, outcome)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ExportRefused(
            f"The disk at {options.output.absolute().parent} is full; nothing was left there. "
            f"This export needs {preflight.gib(plan.needs.disk)}"
        ) from None


def make_plan(options: ExportOptions, step: Step) -> Plan:
    """Find everything that would stop the export."""
    step("checks")
    if options.output.exists() or options.output.is_symlink():
        raise ExportRefused(f"{options.output} exists: remove it, or choose another OUTPUT")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExportRefused("There is no CUDA device here that torch can use: leave out --device")
    checkpoint = open_checkpoint(options.model, options.revision)
    family = FAMILIES[checkpoint.family]
    family.check(checkpoint.config)
    limits = records.limits(options, checkpoint)
    scorer = load_scorer(options.scorer, checkpoint.text_config["num_attention_heads"])
    needed = preflight.needs(checkpoint, options.num_decoder_layers)
    preflight.check(needed, options.output)
    step("chat template")
    template = Template(checkpoint.texts)
    chat = compile_chat(checkpoint.texts, template)
    tokens = records.tokens(checkpoint, chat)
    verify_chat(checkpoint.texts, template, chat, tokens, checkpoint.family)
    return Plan(options, checkpoint, family, limits, scorer, chat, tokens, needed)


def write_bundle(plan: Plan, folder: Path, step: Step, outcome: Outcome) -> Manifest:
    """Fill an empty folder."""
    for path in plan.checkpoint.text_files:
        copyfile(path, folder / path.name)
    written, shape, expected = write_graphs(plan, folder, step)
    step("parity")
    atol = plan.options.atol
    bench = parity.Bench(folder, written, plan.checkpoint.family, atol)
    rows = list(parity.check(bench, expected, plan.scorer.network))
    outcome(rows)
    if failed := sum(not row.ok for row in rows):
        raise ParityFailed(f"{failed} of {len(rows)} comparisons are out of tolerance")
    step("manifest")
    (folder / "reports").mkdir()
    (folder / "reports" / "parity.json").write_bytes(parity.report(rows, atol))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tokprune_version=records.tokprune_version(),
        family=plan.checkpoint.family,
        precision=plan.options.precision,
        graphs=written,
        llm=shape,
        chat=plan.chat,
        tokens=plan.tokens,
        limits=plan.limits,
        scorer=_scorer(plan.scorer),
        default_selector=TRAINED_SELECTOR if plan.scorer.trained else UNTRAINED_SELECTOR,
        source=records.source(plan.checkpoint),
        files=records.files(folder),
    )
    (folder / "manifest.json").write_bytes(encode(manifest))
    return manifest


def write_graphs(plan: Plan, folder: Path, step: Step) -> tuple[Graphs, LlmShape, list[Expected]]:
    """Write all graphs and the embedding table, and ask the HF module what they should say.

    The module is gone when this returns, so the gate has its memory.
    """
    options = plan.options
    (folder / graphs.FOLDER).mkdir()
    step("load")
    model = plan.family.load(plan.checkpoint.folder, options.num_decoder_layers)
    text = plan.family.text(model)
    step("vision encoder")
    vision = graphs.write(plan.family.vision(model), folder, "vision_encoder", options.opset)
    step("first layer")
    first = graphs.write(graphs.first_layer(text), folder, "first_layer", options.opset)
    step("scorer")
    source = graphs.scorer(plan.scorer.network, text.heads)
    scorer = graphs.write(source, folder, "scorer", options.opset)
    decoder = Decoder(text)
    step("llm portable")
    portable = graphs.portable_llm(text, decoder, folder, options.opset)
    step("llm ort")
    ort = graphs.ort_llm(text, decoder, folder, options.opset)
    step("embeddings")
    records.write_embeddings(text.embeddings, folder / "embed_tokens.npy")
    step("oracle")
    expected = observe(model, plan.family, options.device)
    shape = _shape(text)
    del model, text, decoder, source
    gc.collect()
    return Graphs(vision, first, scorer, [portable, ort]), shape, expected


def _scorer(scorer: ScorerFile) -> Scorer:
    return Scorer(
        kind=scorer.kind,
        trained=scorer.trained,
        modalities=list(scorer.modalities),
        metrics=scorer.metrics,
        metrics_by_modality=dict(scorer.metrics_by_modality),
    )


def _shape(text: TextModel) -> LlmShape:
    return LlmShape(
        layers=len(text.model.layers),
        heads=text.heads,
        kv_heads=text.kv_heads,
        head_dim=text.cache_dim,
        hidden_size=text.embeddings.shape[1],
        vocab_size=text.head.out_features,
    )
