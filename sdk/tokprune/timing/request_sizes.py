"""What the cost of a request depends on."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokprune.timing.calibrations import Stage
from tokprune.types import Prepared, Prompt


@dataclass(frozen=True)
class Sizes:
    """What a request's cost depends on."""

    patches: tuple[int, ...]  # numbers in `pixel_values` of each encoder call that is to run
    vision_tokens: int
    text_rows: int  # of the prompt, vision tokens not counted
    frames: int  # a picture is one
    parts: tuple[int, ...] = ()  # as `patches`, of calls that take a part of a picture or video


def sizes_of(prompt: Prompt, media: Sequence[Prepared]) -> Sizes:
    """Return the sizes of a prepared request that is wholly computed.

    A call that is given twice runs once. Where a cache holds what an encoder call would give, leave
    that call out.
    """
    calls = {id(call): (shown.part, call) for shown in media for call in shown.calls}.values()
    whole, parts = (
        tuple(call["pixel_values"].size for part, call in calls if part is wanted)
        for wanted in (False, True)
    )
    frames = {(region.picture, region.frame) for shown in media for region in shown.regions}
    slots = len(prompt.slots)
    return Sizes(whole, slots, len(prompt.ids) - slots, len(frames), parts)


def stage_size(stage: Stage, sizes: Sizes, kept: int) -> float | int:
    """Return the N of a stage's curve. `vision` has one for each call (`patches`, `parts`)."""
    match stage:
        case "first_layer":
            return sizes.text_rows + sizes.vision_tokens
        case "scorer":
            return sizes.vision_tokens
        case "select":  # greedy orders look at all tokens for each that they take
            return (sizes.vision_tokens * kept) ** 0.5
        case "prefill":
            return sizes.text_rows + kept
        case "vision":
            return sum(sizes.patches) + sum(sizes.parts)
