"""Open a bundle and its engines."""

from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from tokprune.bundle import Bundle, open_bundle
from tokprune.errors import BackendUnavailable, BundleInvalid, RequestInvalid, unknown
from tokprune.families import FAMILIES
from tokprune.graphs import FirstLayerGraph, ScorerGraph, VisionEncoder
from tokprune.llm import LanguageModel
from tokprune.manifest import Engine, GraphSpec, LlmForm
from tokprune.vlm import VLM
from tokprune_runtimes import BACKENDS, Backend, Graph, load_graph

ENGINES: dict[Backend, Engine] = {"cpu": "onnxruntime-cpu"}


def load(
    bundle: str | Path,
    *,
    backend: Backend = "cpu",
    threads: int | None = None,
    verify: Literal["full", "sizes"] = "full",
    llm_form: str | None = None,
) -> VLM:
    """Check a bundle and open its graphs.

    Args:
        bundle: the folder that `tokprune-export` wrote.
        backend: what runs the graphs.
        threads: threads of each graph; None lets the engine choose.
        verify: "full" compares the sha256 of every file, "sizes" only their lengths.
        llm_form: a form of the LLM graph by name; None takes the best that the backend runs.

    Raises:
        BundleInvalid: the folder is not as the exporter wrote it. No engine has opened a file.
        BackendUnavailable: this backend cannot run the bundle.
    """
    if backend not in BACKENDS:
        raise RequestInvalid(unknown("backend", backend, list(BACKENDS)))
    if threads is not None and threads < 1:
        raise RequestInvalid(f"threads must be 1 or more, got {threads}")
    opened = open_bundle(Path(bundle), verify=verify)
    if opened.manifest.family not in FAMILIES:
        message = unknown("family", opened.manifest.family, list(FAMILIES))
        raise BundleInvalid("family", f"{message} This bundle may need a newer tokprune.")
    form = _llm_form(opened, backend, llm_form)

    def graph(spec: GraphSpec) -> Graph:
        return load_graph(opened.file(spec.file), backend, threads=threads)

    manifest, graphs = opened.manifest, opened.manifest.graphs
    llm = LanguageModel(
        graph=graph(form.graph),
        form=form,
        shape=manifest.llm,
        embed_tokens=opened.embed_tokens(),
        eos=frozenset(manifest.tokens.eos),
        limits=manifest.limits,
    )
    return VLM(
        bundle=opened,
        processor=FAMILIES[manifest.family].open(opened.path),
        tokenizer=open_tokenizer(opened.path),
        vision=VisionEncoder(graph(graphs.vision_encoder)),
        first_layer=FirstLayerGraph(graph(graphs.first_layer), llm),
        scorer=ScorerGraph(
            graph(graphs.scorer), frozenset(tensor.name for tensor in graphs.scorer.inputs)
        ),
        llm=llm,
    )


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open a tokenizer that takes special tokens in user text as plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _llm_form(bundle: Bundle, backend: Backend, name: str | None) -> LlmForm:
    engine = ENGINES[backend]
    forms = [form for form in bundle.manifest.graphs.llm if engine in form.serves]
    if name is not None:
        forms = [form for form in forms if form.form == name]
    if not forms:
        have = ", ".join(
            f"{form.form} ({', '.join(form.serves)})" for form in bundle.manifest.graphs.llm
        )
        raise BackendUnavailable(
            f"This bundle has no LLM graph{f' {name!r}' if name else ''} for {engine}; it has "
            f"{have}. Export it again with this version of tokprune"
        )
    return min(forms, key=lambda form: form.cache == "grows")  # in place is faster
