"""From a checkpoint to a bundle, in reading order."""

import errno
import gc
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import NamedTuple, TypeAlias

import msgspec
import torch
from torch import nn

from tokprune.files import staged_folder
from tokprune.manifest import (
    EMBEDDING_DTYPES,
    SCHEMA_VERSION,
    Chat,
    Engine,
    Graphs,
    Limits,
    LlmForm,
    LlmShape,
    Manifest,
    Scorer,
    Tokens,
    encode,
)
from tokprune_export import graphs, int8, parity, preflight, records
from tokprune_export.chat_template import Template, compile_chat, verify_chat
from tokprune_export.checkpoint import Checkpoint, open_checkpoint, open_processor
from tokprune_export.decoder import Decoder, TextModel
from tokprune_export.errors import ExportRefused, ParityFailed
from tokprune_export.families import FAMILIES, Family
from tokprune_export.narrow import DTYPES
from tokprune_export.options import ExportOptions
from tokprune_export.oracle import Expected, observe
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import Notes, Row, report
from tokprune_export.rounding import ROUNDED, find_rounding, observe_rounded
from tokprune_export.saliency import layers_summed
from tokprune_export.scorers import Scorer as ScorerFile
from tokprune_export.scorers import Size, TwoLooks, load_scorer, size_of
from tokprune_export.static_scales import NOT_ROUNDED, Scales, find_scales

TRAINED_SELECTOR = "relevance-spread"
UNTRAINED_SELECTOR = "attention-spread"

Step: TypeAlias = Callable[[str], None]  # told the name of each step as it begins
Outcome: TypeAlias = Callable[[Sequence[Row]], None]  # told how the gate went, good or bad


class Written(NamedTuple):
    """The graphs, and what they should say."""

    graphs: Graphs
    shape: LlmShape
    expected: list[Expected]
    rounded: list[Expected] | None  # of what has weights in 8 or 4 bits
    scales: Scales  # of the vision encoder, where it has 8 bits
    not_quantised: list[str]  # linear layers that int4 leaves in float16


@dataclass(frozen=True)
class Plan:
    """All that is known, and was found good, before any weight is read."""

    options: ExportOptions
    checkpoint: Checkpoint
    family: Family
    limits: Limits
    scorer: ScorerFile
    glance_scorer: ScorerFile | None
    chat: Chat
    tokens: Tokens
    needs: preflight.Needs
    saliency_layers: int  # 0: none


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
    scorer, glance_scorer = load_scorers(options, size_of(checkpoint.text_config))
    layers = saliency_layers(options, family, checkpoint)
    needed = preflight.needs(checkpoint, options.num_decoder_layers, options.precision)
    preflight.check(needed, options.output)
    step("chat template")
    template = Template(checkpoint.texts)
    chat = compile_chat(checkpoint.texts, template)
    tokens = records.tokens(checkpoint, chat)
    verify_chat(checkpoint.texts, template, chat, tokens, checkpoint.family)
    return Plan(
        options, checkpoint, family, limits, scorer, glance_scorer, chat, tokens, needed, layers
    )


def load_scorers(options: ExportOptions, size: Size) -> tuple[ScorerFile, ScorerFile | None]:
    """Read the scorer, and the one of first looks where there is one."""
    scorer = load_scorer(options.scorer, size)
    if options.glance_scorer is None:
        return scorer, None
    if options.scorer is None:
        raise ExportRefused(
            "Got --glance-scorer without --scorer: give the scorer of whole pictures too, or train "
            "one for both (tokprune-train --glances 0.33)"
        )
    glance = load_scorer(options.glance_scorer, size)
    if not glance.by_glances:
        raise ExportRefused(
            f"{options.glance_scorer} has no figures of first looks: train it on some, with "
            "tokprune-train --glances 0.33"
        )
    return scorer, glance


def network_of(plan: Plan) -> nn.Module:
    """Return what the scorer graph computes."""
    if plan.glance_scorer is None:
        return plan.scorer.network
    return TwoLooks(plan.scorer.network, plan.glance_scorer.network).eval()


def saliency_layers(options: ExportOptions, family: Family, checkpoint: Checkpoint) -> int:
    """Return how many layers of the vision encoder saliency is summed over, 0 where none is."""
    if options.saliency:
        available = family.attention_layers(checkpoint.config)
        return layers_summed(available, options.saliency_layers)
    if options.saliency_layers is not None:
        raise ExportRefused("--saliency-layers says how saliency is summed: give --saliency too")
    return 0


def write_bundle(plan: Plan, folder: Path, step: Step, outcome: Outcome) -> Manifest:
    """Fill an empty folder."""
    for path in plan.checkpoint.text_files:
        copyfile(path, folder / path.name)
    written = write_graphs(plan, folder, step)
    step("parity")
    options, family = plan.options, plan.checkpoint.family
    bench = Bench(
        folder,
        written.graphs,
        family,
        options.precision,
        options.atol,
        written.rounded,
        options.encoder_precision,
        written.scales.probes,
    )
    rows = list(parity.check(bench, written.expected, network_of(plan)))
    outcome(rows)
    if failed := sum(not row.ok for row in rows):
        raise ParityFailed(f"{failed} of {len(rows)} comparisons are out of tolerance")
    step("manifest")
    (folder / "reports").mkdir()
    unchecked = [why for form in written.graphs.llm if (why := parity.unrunnable(form))]
    scales = written.scales
    notes = Notes(unchecked, written.not_quantised, scales.left, scales.pictures)
    told = report(rows, bench.rule, notes)
    (folder / "reports" / "parity.json").write_bytes(told)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        tokprune_version=records.tokprune_version(),
        family=family,
        precision=options.precision,
        graphs=written.graphs,
        llm=written.shape,
        chat=plan.chat,
        tokens=plan.tokens,
        limits=plan.limits,
        scorer=_scorer(plan.scorer, plan.glance_scorer),
        saliency_layers=plan.saliency_layers,
        encoder_precision=options.encoder_precision,
        default_selector=TRAINED_SELECTOR if plan.scorer.trained else UNTRAINED_SELECTOR,
        source=records.source(plan.checkpoint),
        files=records.files(folder),
    )
    (folder / "manifest.json").write_bytes(encode(manifest))
    return manifest


def write_graphs(plan: Plan, folder: Path, step: Step) -> Written:
    """Write all graphs and the embedding table, and ask the HF module what they should say.

    The module is gone when this returns, so the gate has its memory.
    """
    options = plan.options
    (folder / graphs.FOLDER).mkdir()
    step("load")
    model = plan.family.load(plan.checkpoint.folder, options.num_decoder_layers)
    text = plan.family.text(model)
    length = plan.limits.max_kv_len
    target = graphs.Target(folder, options.opset, length, options.precision)
    encoder = plan.family.vision(model, plan.saliency_layers)
    scales = encoder_scales(plan, encoder.module, step)
    step("vision encoder")
    vision = graphs.write(encoder, target, "vision_encoder", scales)
    step("first layer")
    first = graphs.write(graphs.first_layer(text), target, "first_layer")
    step("scorer")
    source = graphs.scorer(network_of(plan), size_of(plan.checkpoint.text_config))
    scorer = graphs.write(source, replace(target, precision="fp32"), "scorer")
    decoder = Decoder(text)
    if options.precision in ROUNDED:
        step("scales")
    rounding = find_rounding(model, decoder, options.precision, encoder.module, scales)
    target = replace(target, scales=rounding.scales)
    forms: list[LlmForm] = []
    for name, make in graphs.FORMS[options.precision].items():
        step(f"llm {name}")
        form = make(text, decoder, target)
        forms.append(msgspec.structs.replace(form, serves=served(form, options)))
    step("embeddings")
    dtype = EMBEDDING_DTYPES[options.precision]
    records.write_embeddings(text.embeddings, folder / "embed_tokens.npy", dtype)
    shape, left = _shape(text), rounding.left
    del decoder, source, encoder
    step("oracle")
    expected = observe(model, plan.family, options.device, saliency_layers=plan.saliency_layers)
    rounded = observe_rounded(model, plan.family, options.device, rounding, plan.saliency_layers)
    del model, text, rounding, target
    gc.collect()
    return Written(Graphs(vision, first, scorer, forms), shape, expected, rounded, scales, left)


def encoder_scales(plan: Plan, encoder: nn.Module, step: Step) -> Scales:
    """Return how the vision encoder is rounded; nothing, where it is not."""
    options = plan.options
    match options.encoder_precision:
        case "int8":
            return Scales(int8.encoder_columns(encoder))
        case "int8-static":
            step("calibration")
            processor = open_processor(plan.checkpoint.family, plan.checkpoint.texts)
            there = deepcopy(encoder).to(options.device) if options.device != "cpu" else encoder
            dtype = DTYPES[options.precision]
            return find_scales(there, processor, options.calibration, dtype, options.device)
        case None:
            return NOT_ROUNDED


def served(form: LlmForm, options: ExportOptions) -> list[Engine]:
    """Return the engines that run a form of the LLM and the vision encoder beside it."""
    alone = options.encoder_precision == "int8"
    return [engine for engine in form.serves if not alone or engine == "onnxruntime-cpu"]


def _scorer(scorer: ScorerFile, glance: ScorerFile | None) -> Scorer:
    return Scorer(
        kind=scorer.kind,
        trained=scorer.trained,
        modalities=list(scorer.modalities),
        metrics=scorer.metrics,
        metrics_by_modality=dict(scorer.metrics_by_modality),
        glance_metrics=(glance or scorer).by_glances or {},
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
