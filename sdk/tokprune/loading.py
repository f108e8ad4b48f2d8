"""Open a bundle and its engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from tokprune.backends import ENGINES, NO_DEVICE, Asked, candidates, has_device, log_choice
from tokprune.budgets import BudgetLike
from tokprune.bundle import Bundle, open_bundle
from tokprune.engines.bounds import BatchedEncoder, BoundedGraph, Bounds, bounds_of
from tokprune.engines.folders import Kind
from tokprune.engines.profiles import axis_size, engine_specs
from tokprune.engines.states import Engines, build_line, find_engines, forms_text, source_sha256
from tokprune.errors import (
    BackendUnavailable,
    BundleInvalid,
    EnginesStale,
    EngineTooSmall,
    RequestInvalid,
    unknown,
)
from tokprune.families import FAMILIES
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.guarding import memory_guarded
from tokprune.llm import LanguageModel
from tokprune.manifest import LlmForm
from tokprune.memory_plan import memory_plan
from tokprune.model import Model
from tokprune.running.worker import Admission, check_admission
from tokprune.timing.latency import open_latency
from tokprune.vision_cache import VISION_CACHE_BYTES
from tokprune.vlm import KV_SLOTS, VLM
from tokprune_runtimes import Backend, Graph, load_graph
from tokprune_runtimes.errors import EngineError, EngineStale


@dataclass(frozen=True)
class LoadedGraphs:
    """The four graphs on one backend."""

    form: LlmForm
    vision: VisionEncoder
    first_layer: Graph
    scorer: Graph
    llm: Graph


@dataclass(frozen=True)
class Wanted:
    """What is to be loaded, and what decides how much memory that takes."""

    bundle: Bundle
    threads: int | None
    llm_form: str | None
    kv_slots: int
    vision_cache_bytes: int

    def check_memory(self, backend: Backend) -> None:
        """Refuse what cannot fit, before an engine opens a file.

        Raises:
            OutOfMemory: says what is missing.
        """
        memory_plan(
            self.bundle,
            backend=backend,
            kv_slots=self.kv_slots,
            vision_cache_bytes=self.vision_cache_bytes,
            llm_form=self.llm_form,
        ).check()


@dataclass(frozen=True)
class Chosen:
    """The backend that was taken, and why not faster ones."""

    backend: Backend
    graphs: LoadedGraphs
    refused: dict[Backend, str]


def load(
    bundle: str | Path,
    *,
    backend: Asked = "auto",
    threads: int | None = None,
    verify: Literal["full", "sizes"] = "full",
    llm_form: str | None = None,
    admission: Admission = "wait",
    max_waiting: int = 16,
    vision_cache_bytes: int = VISION_CACHE_BYTES,
    kv_slots: int = KV_SLOTS,
    warmup: Sequence[BudgetLike] = (),
) -> VLM:
    """Check a bundle and open its graphs.

    Args:
        bundle: the folder that `tokprune-export` wrote.
        backend: what runs the graphs. "auto" takes the first that can: TensorRT or TensorRT-RTX
            with fresh engines for this GPU, ONNX Runtime's CUDA provider, the CPU; `vlm.backend`
            tells which, `vlm.backends_refused` and the log why not the others.
        threads: threads of each graph on the host; None lets the engine choose.
        verify: "full" compares the sha256 of every file, "sizes" only their lengths.
        llm_form: a form of the LLM graph by name; None takes the best that the backend runs.
        admission: what happens to a request when `max_waiting` others wait already: "wait" until
            there is room, "reject" it with Busy, or "latest": only the newest waits, and one that
            waited before ends with Busy.
        max_waiting: requests that may wait beside the one that runs.
        vision_cache_bytes: bound of the cache of vision encoder outputs; 0 switches it off.
        kv_slots: KV caches at most: one for single questions, one for each chat or pinned picture
            that is to keep what the LLM has computed. Allocated when first used.
        warmup: budgets that are tried once before this returns, see `VLM.warmup`.

    Raises:
        BundleInvalid: the folder is not as the exporter wrote it. No engine has opened a file.
        BackendUnavailable: this backend is not installed or cannot run the bundle.
        EnginesStale: TensorRT is there, and fresh engines for this GPU are not.
        OutOfMemory: it cannot fit; `tokprune.memory_plan` tells what it takes.
    """
    order = candidates(backend)
    if threads is not None and threads < 1:
        raise RequestInvalid(f"threads must be 1 or more, got {threads}")
    if kv_slots < 1 or vision_cache_bytes < 0:
        raise RequestInvalid(
            f"kv_slots must be 1 or more and vision_cache_bytes 0 or more, got {kv_slots} and "
            f"{vision_cache_bytes}"
        )
    check_admission(admission, max_waiting)
    with memory_guarded():  # hashing, tokenizer and worker take memory and threads too
        opened = open_bundle(Path(bundle), verify=verify)
        if opened.manifest.family not in FAMILIES:
            message = unknown("family", opened.manifest.family, list(FAMILIES))
            raise BundleInvalid("family", f"{message} This bundle may need a newer tokprune.")
        wanted = Wanted(opened, threads, llm_form, kv_slots, vision_cache_bytes)
        if backend == "auto":
            chosen = _first_that_can(wanted, order)
        else:
            chosen = Chosen(order[0], _graphs(wanted, order[0]), {})
        vlm = VLM(
            _model(opened, chosen, threads),
            backends_refused=chosen.refused,
            latency=open_latency(opened, chosen.backend, threads),
            admission=admission,
            max_waiting=max_waiting,
            vision_cache_bytes=vision_cache_bytes,
            kv_slots=kv_slots,
        )
    vlm.warmup(warmup)
    return vlm


def _first_that_can(wanted: Wanted, order: tuple[Backend, ...]) -> Chosen:
    refused: dict[Backend, str] = {}
    device = has_device()
    for backend in order:
        if backend != "cpu" and not device:
            refused[backend] = NO_DEVICE
            continue
        try:
            graphs = _graphs(wanted, backend)
        except BackendUnavailable as error:
            refused[backend] = str(error)
            continue
        log_choice(backend, refused)
        return Chosen(backend, graphs, refused)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise BackendUnavailable(f"Nothing here can run this bundle. {reasons}")


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open a tokenizer that takes special tokens in user text as plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _model(opened: Bundle, chosen: Chosen, threads: int | None) -> Model:
    manifest, graphs = opened.manifest, chosen.graphs
    llm = LanguageModel(
        graph=graphs.llm,
        form=graphs.form,
        shape=manifest.llm,
        embed_tokens=opened.embed_tokens(),
        eos=frozenset(manifest.tokens.eos),
        limits=manifest.limits,
    )
    inputs = frozenset(tensor.name for tensor in manifest.graphs.scorer.inputs)
    return Model(
        bundle=opened,
        processor=FAMILIES[manifest.family].open(opened.path),
        tokenizer=open_tokenizer(opened.path),
        vision=graphs.vision,
        first_layer=FirstLayerGraph(graphs.first_layer, llm),
        scorer=ScorerGraph(graphs.scorer, inputs),
        llm=llm,
        backend=chosen.backend,
        threads=threads,
    )


def _graphs(wanted: Wanted, backend: Backend) -> LoadedGraphs:
    opened, threads = wanted.bundle, wanted.threads
    if backend in ("tensorrt", "tensorrt-rtx"):
        engines = find_engines(opened, backend, wanted.llm_form)
        wanted.check_memory(backend)
        return _engine_graphs(opened, backend, engines, threads)
    form = _llm_form(opened, backend, wanted.llm_form)
    wanted.check_memory(backend)
    graphs = {
        name: _load(opened.file(spec.file), backend, threads, None)
        for name, spec in engine_specs(opened.manifest, form).items()
    }
    vision = VisionEncoder(graphs["vision_encoder"])
    return LoadedGraphs(form, vision, graphs["first_layer"], graphs["scorer"], graphs["llm"])


def _engine_graphs(
    opened: Bundle, kind: Kind, engines: Engines, threads: int | None
) -> LoadedGraphs:
    """Open four engines, each with the shapes that it was built for."""
    specs = engine_specs(opened.manifest, engines.form)
    rebuild = build_line(opened, kind, engines.folder.form)
    bounds = {
        name: bounds_of(name, spec.inputs, engines.side_cars[name].profiles, rebuild)
        for name, spec in specs.items()
    }
    _check_limits(opened, engines.form, bounds["llm"])
    graphs = {
        name: _load(engines.folder.engine(name), kind, threads, source_sha256(opened, spec))
        for name, spec in specs.items()
    }
    encoder = BatchedEncoder(graphs["vision_encoder"], bounds["vision_encoder"])
    return LoadedGraphs(
        engines.form,
        VisionEncoder(encoder, encoder.check),
        BoundedGraph(graphs["first_layer"], bounds["first_layer"]),
        BoundedGraph(graphs["scorer"], bounds["scorer"]),
        graphs["llm"],
    )


def _check_limits(opened: Bundle, form: LlmForm, bounds: Bounds) -> None:
    """Refuse an LLM engine that does not take the longest prompt and answer of the bundle."""
    limits = opened.manifest.limits
    cache = {"P": 0, "S": limits.max_kv_len}
    for named in (
        {"T": limits.max_input_len, **cache},
        {"T": 1, **cache, "P": max(1, limits.max_kv_len - 1)},
    ):
        shapes = {
            tensor.name: tuple(axis_size(axis, named) for axis in tensor.shape)
            for tensor in form.graph.inputs
        }
        try:
            bounds.check(shapes)
        except EngineTooSmall:
            raise EnginesStale(
                f"The engine llm was built for other limits than the bundle's "
                f"{limits.max_input_len} prompt tokens and {limits.max_kv_len} with the answer. "
                f"Build it again: {bounds.rebuild}"
            ) from None


def _load(path: Path, backend: Backend, threads: int | None, source: str | None) -> Graph:
    try:
        return load_graph(path, backend, threads=threads, source_sha256=source)
    except EngineStale as error:
        raise EnginesStale(str(error)) from None
    except EngineError as error:
        raise BackendUnavailable(str(error)) from error


def _llm_form(bundle: Bundle, backend: Backend, name: str | None) -> LlmForm:
    engine = ENGINES[backend]
    forms = [form for form in bundle.manifest.graphs.llm if engine in form.serves]
    if name is not None:
        forms = [form for form in forms if form.form == name]
    if not forms:
        raise BackendUnavailable(
            f"This bundle has no LLM graph{f' {name!r}' if name else ''} for {engine}; it has "
            f"{forms_text(bundle)}. Export it again with this version of tokprune"
        )
    return min(forms, key=lambda form: form.cache == "grows")  # in place is faster
