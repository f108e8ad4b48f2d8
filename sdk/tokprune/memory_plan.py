"""What a bundle will take of this machine's memory, before any engine opens a file of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

from tokprune import memory_estimates as estimates
from tokprune.backends import ENGINES
from tokprune.bundle import Bundle, open_bundle
from tokprune.engines.profiles import QUESTION_TOKENS, engine_specs
from tokprune.errors import BackendUnavailable, EnginesStale, OutOfMemory, RequestInvalid
from tokprune.manifest import GraphSpec, LlmForm, Manifest
from tokprune.memory import available_memory, gib
from tokprune.vision_cache import VISION_CACHE_BYTES
from tokprune_runtimes import Backend

When = Literal["opening", "loaded", "request", "mapped"]
# Beyond what is estimated. At the very end of memory ONNX Runtime 1.31.1 was seen to segfault as it
# opens a file, and tokenizers to abort: neither can be caught, so neither may be tried.
SPARE_BYTES = 32 << 20
_SHOWN: Mapping[When, str] = {
    "opening": "while opening",
    "loaded": "always",
    "request": "by the largest request",
    "mapped": "mapped from the disk",
}


class MemoryRow(NamedTuple):
    """One thing that takes memory."""

    name: str
    bytes: int | None  # None: unknown
    when: When
    note: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """An estimate: what is there once a bundle is open, and what the largest request adds."""

    backend: Backend
    rows: tuple[MemoryRow, ...]
    available_bytes: int | None  # None: of a graphics card's own memory nothing is known here
    max_vision_tokens: int  # of the largest request, before pruning
    asked: bool  # whether that number was asked for, or is what the bundle takes at most

    @property
    def loaded_bytes(self) -> int:
        """What stays in memory once the bundle is open, its caches full."""
        return self._sum("loaded")

    @property
    def opening_bytes(self) -> int:
        """What opening the bundle takes at its peak; caches are still empty then."""
        caches = sum(row.bytes or 0 for row in self.rows if row.name == "vision cache")
        return self.loaded_bytes - caches + self._sum("opening")

    @property
    def total_bytes(self) -> int:
        """What the largest request takes at its peak, or opening, whichever is more."""
        return max(self.loaded_bytes + self._sum("request"), self.opening_bytes)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of what could not be estimated, and is missing in the sums."""
        return tuple(row.name for row in self.rows if row.bytes is None)

    @property
    def fits(self) -> bool:
        """Whether the largest request fits, by all that is known, with something to spare."""
        if self.available_bytes is None:
            return True
        return self.total_bytes + SPARE_BYTES <= self.available_bytes

    def check(self) -> None:
        """Refuse what cannot fit. Without `max_vision_tokens`, only opening is looked at.

        The largest request that a bundle takes is often larger than any that will be made, so it
        is no reason to refuse the bundle, unless its size was asked for.

        Raises:
            OutOfMemory: says what is needed, what there is and what takes most.
        """
        needed = (self.total_bytes if self.asked else self.opening_bytes) + SPARE_BYTES
        if self.available_bytes is None or needed <= self.available_bytes:
            return
        counted = ("opening", "loaded", "request") if self.asked else ("opening", "loaded")
        used = [row for row in self.rows if row.bytes and row.when in counted]
        if not self.asked:
            used = [row for row in used if row.name != "vision cache"]
        most = sorted(used, key=lambda row: row.bytes or 0, reverse=True)[:3]
        what = f"questions of {self.max_vision_tokens} vision tokens" if self.asked else "opening"
        todo = "Lower max_vision_tokens or kv_slots, " if self.asked else "Lower kv_slots, "
        raise OutOfMemory(
            f"This bundle needs about {gib(needed)} for {what} on {self.backend}, and there are "
            f"{gib(self.available_bytes)}: {gib(needed - self.available_bytes)} are missing. Most "
            f"is taken by {', '.join(f'{row.name} ({_mib(row.bytes)})' for row in most)}. {todo}"
            "end other programs, or export it in fewer bits (--precision int4) or with a smaller "
            "--max-kv-len"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON. Keys are only ever added."""
        return {
            "backend": self.backend,
            "rows": [row._asdict() for row in self.rows],
            "loaded_bytes": self.loaded_bytes,
            "opening_bytes": self.opening_bytes,
            "total_bytes": self.total_bytes,
            "available_bytes": self.available_bytes,
            "max_vision_tokens": self.max_vision_tokens,
            "fits": self.fits,
            "unknown": list(self.unknown),
        }

    def table(self) -> Table:
        """Return the plan for a terminal."""
        table = Table("what", "MiB", "taken", "", title=f"Memory on {self.backend} (estimate)")
        table.columns[1].justify = "right"
        for row in self.rows:
            table.add_row(row.name, _mib(row.bytes, ""), _SHOWN[row.when], row.note)
        table.add_section()
        table.add_row("opening", _mib(self.opening_bytes, ""), "at the peak")
        tokens = f"{self.max_vision_tokens} vision tokens"
        table.add_row("largest request", _mib(self.total_bytes, ""), "at the peak", tokens)
        verdict = "[green]fits[/]" if self.fits else "[red]does not fit[/]"
        table.add_row("available", _mib(self.available_bytes, ""), "", verdict)
        return table

    def _sum(self, when: When) -> int:
        return sum(row.bytes or 0 for row in self.rows if row.when == when)


def memory_plan(
    bundle: Bundle | str | Path,
    *,
    backend: Backend = "cpu",
    threads: int | None = None,
    max_vision_tokens: int | None = None,
    kv_slots: int = 2,
    vision_cache_bytes: int = VISION_CACHE_BYTES,
    llm_form: str | None = None,
) -> MemoryPlan:
    """Estimate what a bundle takes beyond what the process has already. No engine opens a file.

    On the CPU the estimate follows measurements (docs/results/memory.md: how closely). On CUDA and
    TensorRT weights and cache are counted, and activations are said to be unknown.

    Args:
        bundle: the folder that `tokprune-export` wrote, or a bundle that is open.
        backend: what is to run the graphs.
        threads: of each graph. They make no difference that was found.
        max_vision_tokens: of the largest question, before pruning; None takes the most that the
            bundle takes.
        kv_slots: conversations whose cache is kept.
        vision_cache_bytes: bound of the vision cache.
        llm_form: a form of the LLM graph by name; None takes the best that the backend runs.

    Raises:
        BundleInvalid: the folder is not as the exporter wrote it.
        BackendUnavailable: the bundle has no LLM graph for this backend, or TensorRT is not here.
        EnginesStale: there are no fresh engines.
        RequestInvalid: a number is below 1.
    """
    for name, count in (("max_vision_tokens", max_vision_tokens), ("kv_slots", kv_slots)):
        if count is not None and count < 1:
            raise RequestInvalid(f"{name} must be 1 or more, got {count}")
    del threads  # of the process's memory, a thread's stack is all that was seen
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify="sizes")
    vision = max_vision_tokens or opened.manifest.limits.max_input_len
    if backend in ("tensorrt", "tensorrt-rtx"):
        form, rows = _engines(opened, backend, llm_form)
    else:
        form = _form(opened.manifest, backend, llm_form)
        rows = _graphs(opened, form, vision, known=backend == "cpu")
    table = opened.manifest.files["embed_tokens.npy"].bytes
    return MemoryPlan(
        backend=backend,
        rows=(
            *rows,
            MemoryRow("tokenizer", estimates.tokenizer_bytes(opened), "loaded"),
            *_cache(opened, form, kv_slots),
            MemoryRow("vision cache", vision_cache_bytes, "loaded", "its bound; empty at first"),
            MemoryRow("embedding table", table, "mapped", "the kernel may drop it at any time"),
        ),
        available_bytes=available_memory() if backend == "cpu" else _device_memory(),
        max_vision_tokens=vision,
        asked=max_vision_tokens is not None,
    )


def _form(manifest: Manifest, backend: Backend, name: str | None) -> LlmForm:
    engine = ENGINES[backend]
    forms = [
        form for form in manifest.graphs.llm if engine in form.serves and name in (None, form.form)
    ]
    if not forms:
        raise BackendUnavailable(
            f"This bundle has no LLM graph{f' {name!r}' if name else ''} for {engine}"
        )
    return min(forms, key=lambda form: form.cache == "grows")


def _graphs(bundle: Bundle, form: LlmForm, vision: int, *, known: bool) -> list[MemoryRow]:
    """Return the rows of ONNX Runtime: its library, weights by graph, activations."""
    specs = engine_specs(bundle.manifest, form)
    found = {
        name: estimates.weights(bundle, name, spec, on_cpu=known) for name, spec in specs.items()
    }
    rows = [
        MemoryRow(f"weights of {name}", one.bytes, "loaded", _precision_note(bundle, known=known))
        for name, one in found.items()
    ]
    largest = max(one.largest for one in found.values())
    rows.append(MemoryRow("largest tensor, twice", largest, "opening", "read and packed"))
    engine = estimates.ENGINE + sum(one.session for one in found.values())
    rows.append(MemoryRow("ONNX Runtime", engine, "loaded", "library and sessions"))
    if not known:
        rows.append(MemoryRow("activations", None, "request", "not measured on a GPU"))
        return rows
    return [*rows, *_activations(bundle, form, specs, vision)]


def _precision_note(bundle: Bundle, *, known: bool) -> str:
    precision = bundle.manifest.precision
    return "" if precision == "fp32" or not known else f"{precision}: not measured on a bundle"


def _activations(
    bundle: Bundle, form: LlmForm, specs: Mapping[str, GraphSpec], vision: int
) -> list[MemoryRow]:
    """Return what the largest request takes. Each session has an arena, which keeps what it had."""
    limits = bundle.manifest.limits
    models = estimates.models(bundle.path)
    question = min(QUESTION_TOKENS, limits.max_input_len)
    rows = min(vision + question, limits.max_input_len)
    none = "config.json does not tell the widths"
    pixels, encoder = estimates.picture_bytes(models, specs["vision_encoder"], vision)
    prefill = first = None
    if models.llm is not None:
        prefill = estimates.prefill_bytes(
            form, models.llm, rows, written=estimates.scores_are_written(form)
        )
        first = estimates.first_layer_bytes(models.llm, vision + question, question)
    found = {"vision_encoder": encoder, "first_layer": first, "llm": prefill}
    activations = [
        MemoryRow(f"activations of {name}", count, "request", none if count is None else "")
        for name, count in found.items()
    ]
    return [*activations, MemoryRow("pictures", estimates.HOST * pixels, "request", "on the host")]


def _cache(bundle: Bundle, form: LlmForm, slots: int) -> list[MemoryRow]:
    rows = bundle.manifest.limits.max_kv_len
    one = rows * estimates.cache_row_bytes(bundle)
    note = f"{slots} of {rows} tokens"
    kept = [MemoryRow("KV slots", slots * one, "loaded", note)]
    if form.cache == "grows":
        kept.append(MemoryRow("KV of one step", one, "request", "copied: the form grows it"))
    return kept


def _engines(
    bundle: Bundle, kind: Backend, llm_form: str | None
) -> tuple[LlmForm, Sequence[MemoryRow]]:
    """Return the rows of TensorRT's engines, from their side-cars."""
    from tokprune.engines.states import find_engines

    if kind not in ("tensorrt", "tensorrt-rtx"):
        raise EnginesStale(f"{kind} has no engines")
    engines = find_engines(bundle, kind, llm_form)
    rows = [
        MemoryRow(f"engine of {name}", car.bytes, "loaded", "its file, weights and code")
        for name, car in engines.side_cars.items()
    ]
    note = "side-cars do not record it; shared by the four engines"
    return engines.form, [*rows, MemoryRow("scratch memory", None, "request", note)]


def _device_memory() -> int | None:
    """Return what the GPU has left: on a Jetson the machine's memory, of a card nothing known."""
    return available_memory() if Path("/etc/nv_tegra_release").exists() else None


def _mib(count: int | None, unit: str = " MiB") -> str:
    return "unknown" if count is None else f"{count / 2**20:,.0f}{unit}"
