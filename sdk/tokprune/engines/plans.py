"""What is to be built, how, and what is told on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tokprune.bundle import Bundle
from tokprune.engines.folders import EngineFolder, Kind
from tokprune.engines.profiles import Profile, Sizes, sizes
from tokprune.engines.states import EngineState
from tokprune.manifest import Limits, LlmForm

LOW_MEMORY_VISION_TOKENS = 1024  # attention maps in the vision encoder grow with its square


@dataclass(frozen=True)
class BuildOptions:
    """What `tokprune build` can be told."""

    kind: Kind
    sm: tuple[str, ...] = ()  # GPUs; empty: this one, or without one all that the builder offers
    max_vision_tokens: int | None = None  # of a prompt, before pruning
    max_question_tokens: int | None = None  # after the last picture
    weight_streaming: bool = False
    low_memory: bool = False
    force: bool = False
    llm_form: str | None = None  # None: the best that the bundle has for the engine

    @property
    def few_profiles(self) -> bool:
        """Whether every graph gets as few profiles as it can."""
        return self.low_memory or self.kind == "tensorrt-rtx"

    def sizes(self, limits: Limits) -> Sizes:
        """Return the largest request that engines of a bundle are built for."""
        vision = self.max_vision_tokens
        if vision is None and self.low_memory:
            vision = min(limits.max_input_len, LOW_MEMORY_VISION_TOKENS)
        return sizes(limits, vision_tokens=vision, question_tokens=self.max_question_tokens)


@dataclass(frozen=True)
class BuildStep:
    """How far the building is."""

    engine: str
    number: int  # of the engine, from 1
    engines: int  # to be built
    phase: str  # of the builder
    step: int
    steps: int
    eta_s: float | None  # until all engines are there; None while unknown


@dataclass(frozen=True)
class Built:
    """One engine when all is done."""

    name: str
    path: Path
    bytes: int
    seconds: float  # that the building took, now or then
    skipped: bool  # it was fresh
    profiles: int
    warnings: tuple[str, ...]


OnStep: TypeAlias = Callable[[BuildStep], None]


class Job(NamedTuple):
    """One engine to be built."""

    name: str
    onnx: Path
    source_sha256: str
    weight_bytes: int  # of the ONNX file and its data
    profiles: tuple[Profile, ...]

    def engine_bytes(self, kind: Kind) -> int:
        """Estimate the engine's size: TensorRT-RTX stores the weights once a profile."""
        return self.weight_bytes * (len(self.profiles) if kind == "tensorrt-rtx" else 1)


@dataclass(frozen=True)
class BuildPlan:
    """All that is known before anything is built."""

    bundle: Bundle
    options: BuildOptions
    folder: EngineFolder
    form: LlmForm
    sizes: Sizes
    jobs: tuple[Job, ...]
    fresh: tuple[EngineState, ...]
