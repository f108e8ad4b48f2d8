"""Optimisation profiles: the ranges of shapes that an engine is built for, and runs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tokprune_runtimes.errors import BuildFailed, FeedsInvalid

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> min, opt, max


class NetworkInput(NamedTuple):
    """An input of a parsed network. A dynamic axis is -1."""

    name: str
    shape: Shape
    is_shape: bool = False  # its values, not its shape, have a range


def check_profiles(inputs: Sequence[NetworkInput], profiles: Sequence[Profile]) -> None:
    """Refuse profiles that do not fit the network, before the builder runs.

    Raises:
        BuildFailed: with every fault, one a line.
    """
    known = {each.name: each for each in inputs}
    faults: list[str] = []
    dynamic = [each.name for each in inputs if each.is_shape or -1 in each.shape]
    if dynamic and not profiles:
        faults.append(f"inputs of dynamic shape need a profile: {', '.join(dynamic)}")
    for index, given in enumerate(profiles):
        where = f"profile {index}"
        faults += [f"{where}: {name} is missing" for name in dynamic if name not in given]
        for name, ranges in given.items():
            if name in known:
                faults += [f"{where}: {name}: {fault}" for fault in _faults(known[name], ranges)]
            else:
                faults.append(f"{where}: the graph has no input {name}; it has {', '.join(known)}")
    if faults:
        raise BuildFailed("The profiles do not fit the graph:\n" + "\n".join(faults))


def _faults(tensor: NetworkInput, ranges: tuple[Shape, Shape, Shape]) -> list[str]:
    declared = tensor.shape
    if tensor.is_shape:
        wanted = declared[0] if declared else 1
        if any(len(shape) != wanted for shape in ranges):
            return [f"a shape input of {wanted} values got {list(ranges)}"]
    else:
        if any(len(shape) != len(declared) for shape in ranges):
            return [f"the graph declares {declared}, of {len(declared)} axes, got {list(ranges)}"]
        if any(
            want not in (-1, got)
            for shape in ranges
            for want, got in zip(declared, shape, strict=True)
        ):
            return [f"the graph declares {declared}, got {list(ranges)}"]
    least, opt, most = ranges
    if any(not 0 <= low <= mid <= high for low, mid, high in zip(least, opt, most, strict=True)):
        return [f"must be 0 <= min <= opt <= max on every axis, got {list(ranges)}"]
    return []


def add_profiles(
    builder: Any, config: Any, inputs: Sequence[NetworkInput], profiles: Sequence[Profile]
) -> None:
    """Hand checked profiles to the builder's config."""
    shape_inputs = {each.name for each in inputs if each.is_shape}
    for index, ranges in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name, (least, opt, most) in ranges.items():
            add = profile.set_shape_input if name in shape_inputs else profile.set_shape
            add(name, least, opt, most)
        if config.add_optimization_profile(profile) != index:
            raise BuildFailed(f"TensorRT does not take profile {index}: {dict(ranges)}")


def choose_profile(engine: str, profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Return the profile with the smallest maxima that holds all shapes; of equals the first.

    Raises:
        FeedsInvalid: none does; says why for each.
    """
    misfits = [_misfit(ranges, shapes) for ranges in profiles]
    fitting = [index for index, misfit in enumerate(misfits) if misfit is None]
    if not fitting:
        listed = "\n".join(f"profile {index}: {why}" for index, why in enumerate(misfits))
        raise FeedsInvalid(
            f"No profile of {engine} holds these shapes:\n{listed}\n"
            "Use fewer tokens or smaller pictures, or build engines for larger limits"
        )
    return min(fitting, key=lambda index: _largest(profiles[index]))


def _misfit(ranges: Profile, shapes: Mapping[str, Shape]) -> str | None:
    for name, shape in shapes.items():
        least, _, most = ranges[name]
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            return f"{name} {shape} is not within {least} to {most}"
    return None


def _largest(ranges: Profile) -> int:
    total = 0
    for _, _, most in ranges.values():
        elements = 1
        for size in most:
            elements *= size
        total += elements
    return total
