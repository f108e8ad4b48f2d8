"""Building the four engines of a bundle, one after another, where they are to run.

One graph at a time, so that the memory of one is free when the next begins. What is fresh is kept.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokprune.bundle import Bundle
from tokprune.engines.clock import BuildClock
from tokprune.engines.folders import Kind, new_folder
from tokprune.engines.plans import BuildOptions, BuildPlan, BuildStep, Built, Job, OnStep
from tokprune.engines.profiles import Profile, engine_specs, profiles
from tokprune.engines.states import (
    ENGINE_NAMES,
    EngineState,
    engine_form,
    engine_states,
    source_files,
    source_sha256,
    trt_build,
)
from tokprune.errors import BackendUnavailable, BuildRefused, RequestInvalid
from tokprune.memory import available_memory, gib
from tokprune_runtimes.errors import BuildFailed, EngineUnavailable

TIMING_CACHE = "timing.cache"
BASE_MEMORY_BYTES = 1 << 30  # interpreter, TensorRT's libraries, the kernels that it tries
LOW_MEMORY_WORKSPACE_BYTES = 512 << 20  # of a kernel; without a limit TensorRT tries all there is
BASE_DISK_BYTES = 64 << 20  # kernels, side-cars, timing cache


def build_engines(
    bundle: Bundle, options: BuildOptions, on_step: OnStep | None = None
) -> tuple[Built, ...]:
    """Build what is not fresh, one engine after another.

    An interrupted build is taken up where it was: every engine is written whole or not at all.

    Args:
        bundle: opened and checked in full.
        options: for which engine and GPUs, and how.
        on_step: told of every step of the builder.

    Raises:
        BackendUnavailable: the engine's package is not installed, or needs a GPU that is not here.
        BuildRefused: disk or memory do not suffice, or the builder refused a graph.
        OSError: no folder can be written.
    """
    plan = plan_build(bundle, options)
    check_room(plan)
    done = {state.name: _kept(state) for state in plan.fresh}
    clock = BuildClock(sum(job.weight_bytes for job in plan.jobs))
    for number, job in enumerate(plan.jobs, 1):
        done[job.name] = _build(plan, job, _watch(clock, job, number, len(plan.jobs), on_step))
        clock.finished(job.weight_bytes)
    return tuple(done[name] for name in ENGINE_NAMES)


def plan_build(bundle: Bundle, options: BuildOptions) -> BuildPlan:
    """Find out what is to be built, and where.

    Raises:
        BackendUnavailable: the engine's package is not installed, or needs a GPU that is not here.
    """
    version, sm = check_builder(options.kind, options.sm)
    form = engine_form(bundle, options.kind, version, options.llm_form)
    best = engine_form(bundle, options.kind, version)
    largest = options.sizes(bundle.manifest.limits)
    wanted = profiles(bundle.manifest, form, largest, few=options.few_profiles)
    named = None if form == best else form.form
    folder = new_folder(bundle, options.kind, version, sm, named)
    states = engine_states(bundle, folder, None, form)
    fresh = tuple(state for state in states if _stays(state, wanted[state.name], options))
    kept = {state.name for state in fresh}
    specs = engine_specs(bundle.manifest, form)
    jobs = [
        Job(
            name,
            bundle.file(specs[name].file),
            source_sha256(bundle, specs[name]),
            sum(bundle.manifest.files[file].bytes for file in source_files(bundle, specs[name])),
            wanted[name],
        )
        for name in ENGINE_NAMES
        if name not in kept
    ]
    return BuildPlan(bundle, options, folder, form, largest, tuple(jobs), fresh)


def check_builder(kind: Kind, sm: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the builder's version and the GPUs that it is to build for.

    Raises:
        BackendUnavailable: it is not installed, or needs a GPU that is not here.
        RequestInvalid: `sm` names no GPU.
    """
    for name in sm:
        if not re.fullmatch(r"sm\d{2,3}[a-z]?", name):
            raise RequestInvalid(f"--sm takes compute capabilities such as sm87, got {name!r:.60}")
    builder = trt_build()
    try:
        version = str(builder.engine_version(kind))
    except EngineUnavailable as error:
        raise BackendUnavailable(str(error)) from None
    here = builder.device_sm()
    if kind == "tensorrt" and here is None:
        raise BackendUnavailable(
            "TensorRT builds engines on the GPU that runs them, and there is none here: run "
            "`tokprune build` on the device. (tensorrt-rtx builds for others: --engine "
            "tensorrt-rtx --sm sm89)"
        )
    return version, tuple(dict.fromkeys(sm)) or (() if here is None else (str(here),))


def check_room(plan: BuildPlan) -> None:
    """Refuse a build that would die half-way.

    Disk: every engine as large as its weights; an engine that is replaced stays until the new one
    is whole. Memory, of the largest graph: the weights once for the parser, and the engine.

    Raises:
        BuildRefused: with the bytes needed and the bytes there.
    """
    kind = plan.options.kind
    if not plan.jobs:
        return
    disk = sum(job.engine_bytes(kind) for job in plan.jobs) + BASE_DISK_BYTES
    free = shutil.disk_usage(plan.folder.path).free
    if free < disk:
        raise BuildRefused(f"Not enough disk at {plan.folder.path}: {_compared(disk, free)}")
    largest = max(plan.jobs, key=lambda job: job.weight_bytes + job.engine_bytes(kind))
    memory = largest.weight_bytes + largest.engine_bytes(kind) + BASE_MEMORY_BYTES
    available = available_memory()
    if available < memory:
        hint = "" if plan.options.low_memory else ", or try --low-memory"
        raise BuildRefused(
            f"Not enough memory for the engine {largest.name}: {_compared(memory, available)}. "
            f"Close other programs, add swap, export in fp16 or int4{hint}"
        )


def _compared(needed: int, available: int) -> str:
    return f"this needs {gib(needed)}, available are {gib(available)}"


def _stays(state: EngineState, wanted: tuple[Profile, ...], options: BuildOptions) -> bool:
    """Tell whether an engine need not be built again."""
    if options.force or state.state != "fresh":
        return False
    built = [_plain(profile) for profile in state.side_car.profiles]
    same = built == [_plain(profile) for profile in wanted]
    return same and state.side_car.weight_streaming == options.weight_streaming


def _plain(profile: Any) -> dict[str, list[list[int]]]:
    return {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}


def _kept(state: EngineState) -> Built:
    return _built(state.name, state.path, state.side_car, skipped=True)


def _built(name: str, path: Path, side_car: Any, *, skipped: bool) -> Built:
    count, warnings = len(side_car.profiles), tuple(side_car.warnings)
    return Built(name, path, side_car.bytes, side_car.seconds, skipped, count, warnings)


def _build(plan: BuildPlan, job: Job, watch: Callable[[Any], bool]) -> Built:
    builder, options = trt_build(), plan.options
    path = plan.folder.engine(job.name)
    build = builder.Build(
        onnx=job.onnx,
        source_sha256=job.source_sha256,
        engine=path,
        profiles=job.profiles,
        sm=plan.folder.sm,
        weight_streaming=options.weight_streaming,
        timing_cache=plan.folder.path / TIMING_CACHE if options.kind == "tensorrt" else None,
        workspace_bytes=LOW_MEMORY_WORKSPACE_BYTES if options.low_memory else None,
    )
    try:
        side_car = builder.build_engine(options.kind, build, watch)
    except EngineUnavailable as error:
        raise BackendUnavailable(str(error)) from None
    except BuildFailed as error:
        raise BuildRefused(
            f"The engine {job.name} was not built. {error}{_hint(plan, job)}"
        ) from None
    return _built(job.name, path, side_car, skipped=False)


def _hint(plan: BuildPlan, job: Job) -> str:
    others = [
        form.form
        for form in plan.bundle.manifest.graphs.llm
        if plan.options.kind in form.serves and form.form != plan.form.form
    ]
    if job.name != "llm" or not others:
        return ""
    return f"\nThe bundle has another form of it: --llm-form {others[0]}"


def _watch(
    clock: BuildClock, job: Job, number: int, engines: int, on_step: OnStep | None
) -> Callable[[Any], bool]:
    def watch(progress: Any) -> bool:
        if on_step is not None:
            phase, step, steps = str(progress.phase), int(progress.step), int(progress.steps)
            eta = clock.eta_s(job.weight_bytes, phase, step, steps)
            on_step(BuildStep(job.name, number, engines, phase, step, steps, eta))
        return True

    return watch
