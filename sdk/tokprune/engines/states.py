"""The TensorRT engines of a bundle: which form of the LLM they take, and whether they are fresh.

Nothing here deserialises an engine: side-cars are checked, by `tokprune_runtimes.trt_build`.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from tokprune.bundle import Bundle
from tokprune.containment import opened_file, opened_folder
from tokprune.engines.folders import EngineFolder, Kind, engine_folders
from tokprune.engines.profiles import engine_specs
from tokprune.errors import BackendUnavailable, BundleInvalid, EnginesStale
from tokprune.manifest import GraphSpec, LlmForm
from tokprune.onnx_paths import external_data
from tokprune_runtimes.errors import EngineStale, EngineUnavailable

Freshness = Literal["fresh", "stale", "missing", "unchecked"]
SideCars: TypeAlias = Mapping[str, Any]  # engine -> tokprune_runtimes.trt_build.SideCar

ENGINE_NAMES = ("vision_encoder", "first_layer", "scorer", "llm")
_TENSOR_SCATTER = (10, 15)  # the first TensorRT with KVCacheUpdate layers (engines.md)


@dataclass(frozen=True)
class EngineState:
    """One engine as it was found."""

    name: str
    path: Path
    kind: Kind
    version: str
    target: str
    state: Freshness
    reason: str | None  # why it is not fresh
    bytes: int | None
    side_car: Any = None  # tokprune_runtimes.trt_build.SideCar of a fresh one
    llm_form: str | None = None  # where its folder is of another than the version takes by itself

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints. Keys are only ever added."""
        return {
            "name": self.name,
            "path": str(self.path),
            "engine": self.kind,
            "version": self.version,
            "sm": self.target,
            "llm_form": self.llm_form,
            "state": self.state,
            "reason": self.reason,
            "bytes": self.bytes,
        }


class Check(NamedTuple):
    """What the engines of a folder must fit."""

    bundle: Bundle
    folder: EngineFolder
    sm: str | None  # None: any GPU
    content: bool  # whether their bytes are hashed


@dataclass(frozen=True)
class Engines:
    """Four fresh engines for this GPU."""

    folder: EngineFolder
    form: LlmForm
    side_cars: SideCars


def trt_build() -> Any:
    """Return the runtimes' builder. Importing it loads neither TensorRT nor CUDA."""
    from tokprune_runtimes import trt_build as module

    return module


def engine_form(bundle: Bundle, kind: Kind, version: str, name: str | None = None) -> LlmForm:
    """Return the form of the LLM for an engine: `trt` where bundle and version have it.

    Args:
        bundle: the bundle.
        kind: the engine.
        version: of the engine, such as "10.3.0".
        name: a form by name; None takes the best.

    Raises:
        BackendUnavailable: the bundle has none for it.
    """
    old = kind == "tensorrt" and _numbers(version) < _TENSOR_SCATTER
    forms = [
        form
        for form in bundle.manifest.graphs.llm
        if kind in form.serves and name in (None, form.form) and not (old and form.form == "trt")
    ]
    if not forms:
        raise BackendUnavailable(
            f"This bundle has no LLM graph{f' {name!r}' if name else ''} for {kind} {version}; it "
            f"has {forms_text(bundle)}. Export it again with this version of tokprune"
        )
    return min(forms, key=lambda form: form.form != "trt")


def forms_text(bundle: Bundle) -> str:
    """Return the forms of the LLM and what they serve, for messages."""
    forms = bundle.manifest.graphs.llm
    told = ", ".join(f"{form.form} ({', '.join(form.serves)})" for form in forms)
    if bundle.manifest.encoder_precision == "int8":
        return f"{told}, as its vision encoder has 8 bits, for ONNX Runtime on the CPU"
    match bundle.manifest.precision:
        case "int8":
            return f"{told}, as int8 is for ONNX Runtime on the CPU; fp16 and int4 are for GPUs too"
        case "bf16":
            return f"{told}, as bf16 is for GPUs; fp16 and int4 are for ONNX Runtime's CPU too"
        case _:
            return told


def source_files(bundle: Bundle, spec: GraphSpec) -> tuple[str, ...]:
    """Return the files of one graph: the ONNX file, and those that hold its weights."""
    with (
        opened_folder(bundle.path) as root,
        opened_file(root, spec.file) as descriptor,
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped,
    ):
        view = memoryview(mapped)
        try:
            locations = {reference.location for reference in external_data(view)}
        finally:
            view.release()
    folder = spec.file.rpartition("/")[0]
    return (spec.file, *sorted(f"{folder}/{place}" if folder else place for place in locations))


def source_sha256(bundle: Bundle, spec: GraphSpec) -> str:
    """Return what an engine of this graph must have been built from: names and hashes of files."""
    digest = hashlib.sha256()
    for name in source_files(bundle, spec):
        digest.update(f"{name} {bundle.manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def engine_states(
    bundle: Bundle,
    folder: EngineFolder,
    sm: str | None,
    form: LlmForm | None = None,
    *,
    content: bool = True,
) -> list[EngineState]:
    """Return the state of the four engines of a folder. No engine is deserialised.

    Args:
        bundle: what they must have been built from.
        folder: where they lie.
        sm: of the GPU that is to run them; None does not ask.
        form: of the LLM; None takes the one that the folder names.
        content: hash the engines' bytes; who loads them next need not.

    Raises:
        BackendUnavailable: the bundle has no form for this engine.
    """
    form = form or engine_form(bundle, folder.kind, folder.version, folder.form)
    specs = engine_specs(bundle.manifest, form)
    check = Check(bundle, folder, sm, content)
    return [_state(check, name, specs[name]) for name in ENGINE_NAMES]


def list_engines(bundle: Bundle) -> list[EngineState]:
    """Return every engine that this device has of a bundle, for `inspect` and `verify`."""
    folders = engine_folders(bundle)
    sm = trt_build().device_sm() if folders else None
    states: list[EngineState] = []
    for folder in folders:
        states += _states_or_fault(bundle, folder, sm)
    return states


def find_engines(bundle: Bundle, kind: Kind, form: str | None = None) -> Engines:
    """Return fresh engines for this GPU.

    Args:
        bundle: what they must have been built from.
        kind: the engine.
        form: of the LLM; None takes any that was built, the version's best first.

    Raises:
        BackendUnavailable: the engine's package, the driver or the GPU is missing.
        EnginesStale: there are no fresh ones; says what differs.
    """
    builder = trt_build()
    try:
        version = str(builder.engine_version(kind))
    except EngineUnavailable as error:
        raise BackendUnavailable(str(error)) from None
    engine_form(bundle, kind, version, form)  # raises where the bundle has none
    sm = builder.device_sm()
    if sm is None:
        raise BackendUnavailable(
            f"{kind} {version} is installed, but there is no NVIDIA GPU that the driver shows "
            "through cuda-bindings: pip install cuda-bindings, and check nvidia-smi (on Jetson: "
            "tegrastats)"
        )
    faults: list[str] = []
    for folder in _suiting(bundle, kind, sm):
        try:
            chosen = engine_form(bundle, kind, version, folder.form)
        except BackendUnavailable as error:
            faults.append(f"{folder.path}: {error}")
            continue
        if form not in (None, chosen.form):
            continue
        states = engine_states(bundle, folder, sm, chosen, content=False)
        if all(state.state == "fresh" for state in states):
            cars = {state.name: state.side_car for state in states}
            return Engines(folder, chosen, cars)
        faults += [f"{state.path}: {state.reason}" for state in states if state.state != "fresh"]
    have = sorted({folder.path.name for folder in engine_folders(bundle)})
    reasons = "; ".join(faults) or f"it has {', '.join(have) if have else 'none at all'}"
    raise EnginesStale(
        f"The bundle has no fresh engines for {kind} {version} on {sm}: {reasons}. Build them on "
        f"this device: {build_line(bundle, kind, form)}"
    )


def build_line(bundle: Bundle, kind: Kind, form: str | None = None) -> str:
    """Return the command that builds engines."""
    return f"tokprune build {bundle.path} --engine {kind}" + (f" --llm-form {form}" if form else "")


def _states_or_fault(bundle: Bundle, folder: EngineFolder, sm: str | None) -> list[EngineState]:
    try:
        return engine_states(bundle, folder, sm)
    except BackendUnavailable as error:  # the bundle has no LLM for this engine
        place = (folder.path, folder.kind, folder.version, folder.target)
        return [EngineState("llm", *place, "stale", str(error), None, llm_form=folder.form)]


def _suiting(bundle: Bundle, kind: Kind, sm: str) -> Iterator[EngineFolder]:
    """Yield the folders that may hold engines for a GPU.

    The version's best form of the LLM comes first, and of these what was built for this GPU alone.
    """
    folders = [
        folder
        for folder in engine_folders(bundle)
        if folder.kind == kind and (sm in folder.sm or not folder.sm)
    ]
    many = 1000  # more than any list: all GPUs come last
    yield from sorted(folders, key=lambda each: (each.form is not None, len(each.sm) or many))


def _state(check: Check, name: str, spec: GraphSpec) -> EngineState:
    folder = check.folder
    path = folder.engine(name)
    size: int | None = None
    side_car: Any = None
    try:
        with opened_folder(folder.path) as root, opened_file(root, path.name) as descriptor:
            size = os.fstat(descriptor).st_size
        state, reason, side_car = _checked(check, path, spec)
    except BundleInvalid as error:  # it is not there, or no plain file
        missing = error.code.endswith(".missing")
        state = "missing" if missing else "stale"
        reason = f"{path.name} is missing" if missing else str(error)
    place = (folder.kind, folder.version, folder.target)
    return EngineState(name, path, *place, state, reason, size, side_car, folder.form)


def _checked(check: Check, path: Path, spec: GraphSpec) -> tuple[Freshness, str | None, Any]:
    try:
        source = source_sha256(check.bundle, spec)
        side_car = trt_build().check_side_car(
            path, check.folder.kind, source, check.sm, content=check.content
        )
        return "fresh", None, side_car
    except EngineStale as error:
        return "stale", str(error), None
    except EngineUnavailable as error:
        return "unchecked", str(error), None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
