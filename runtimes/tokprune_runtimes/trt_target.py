"""Which GPUs an engine is built for: TensorRT the one that is here, TensorRT-RTX any."""

from collections.abc import Sequence
from typing import Any

from tokprune_runtimes.errors import BuildFailed, EngineUnavailable
from tokprune_runtimes.trt_module import Kind, TrtModule

# Turing: no float32 matrix products there (TensorRT-RTX 1.7.1), so a list with it builds nothing.
_ON_REQUEST = ("sm75",)


def choose_targets(
    trt: TrtModule, kind: Kind, asked: Sequence[str], here: str | None
) -> tuple[str, ...]:
    """Return the GPUs to build for.

    Args:
        trt: the module of `kind`.
        kind: which engine.
        asked: such as ("sm87",); empty: this GPU, or all from Ampere on.
        here: this machine's GPU, if any.

    Raises:
        EngineUnavailable: TensorRT has no GPU to build on.
        BuildFailed: the builder does not offer one of them.
    """
    if kind == "tensorrt-rtx":
        offered = _offered(trt)
        if not asked:
            return (here,) if here else tuple(sm for sm in offered if sm not in _ON_REQUEST)
        for sm in asked:
            if sm not in offered and sm != here:
                listed = ", ".join(offered)
                raise BuildFailed(f"tensorrt-rtx does not build for {sm!r}. It offers {listed}")
        return tuple(dict.fromkeys(asked))
    if here is None:
        raise EngineUnavailable(
            "TensorRT builds engines on the GPU that is to run them, and there is none here (or no "
            "cuda-bindings: pip install 'tokprune[tensorrt]'). Run tokprune build on the device"
        )
    if asked and tuple(asked) != (here,):
        raise BuildFailed(
            f"TensorRT builds for the GPU that it runs on, {here}, not for {', '.join(asked)}. "
            "Build on the device, or with tensorrt-rtx"
        )
    return (here,)


def set_targets(trt: TrtModule, kind: Kind, config: Any, targets: Sequence[str]) -> None:
    """Tell the builder."""
    if kind != "tensorrt-rtx":
        return
    offered = _offered(trt)
    config.num_compute_capabilities = len(targets)
    for index, sm in enumerate(targets):
        # Newer GPUs than the module knows by name can still be built for where they are.
        value = offered.get(sm, trt.ComputeCapability.CURRENT)
        if not config.set_compute_capability(value, index):
            raise BuildFailed(f"tensorrt-rtx refuses to build for {sm}")


def _offered(trt: TrtModule) -> dict[str, Any]:
    members: dict[str, Any] = trt.ComputeCapability.__members__
    return {name.lower(): value for name, value in members.items() if name.startswith("SM")}
