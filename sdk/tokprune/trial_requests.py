"""Requests that are drawn to measure a device: pictures of noise, from small to large."""

import numpy as np

from tokprune.errors import ContextOverflow, NotCalibrated, PictureInvalid
from tokprune.model import Model
from tokprune.prompting import Conversation, Shown, Turn
from tokprune.types import Prepared, Prompt

QUESTION = "What is in front of the robot, and how far away is it?"
SIDES_PX = (84, 112, 168, 224, 336, 448, 672, 896, 1344)
SEVERAL = (2, 4, 8, 16)  # pictures of `SMALL_PX`, for encoders that take one size only
SMALL_PX = 224


def trial_requests(loaded: Model, most: int) -> list[tuple[Prompt, tuple[Prepared, ...]]]:
    """Return at most so many requests of growing numbers of vision tokens.

    Raises:
        NotCalibrated: no drawn picture is one that the bundle or its engines take.
    """
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (SIDES_PX[-1], SIDES_PX[-1], 3), np.uint8)
    pictures = [[noise[:side, :side]] for side in SIDES_PX]
    pictures += [[noise[:SMALL_PX, :SMALL_PX]] * count for count in SEVERAL]
    limits = loaded.bundle.manifest.limits
    found: dict[int, tuple[Prompt, tuple[Prepared, ...]]] = {}
    refusal = ""
    for each in pictures:
        try:
            media = loaded.processor.prepare(each)
            loaded.vision.check_all(media)
            content = (*(Shown(index) for index in range(len(media))), QUESTION)
            prompt = loaded.prompt(Conversation((Turn(content),)), media)
        except (PictureInvalid, ContextOverflow) as error:
            refusal = str(error)
            continue
        if len(prompt.ids) < limits.max_input_len:
            found.setdefault(len(prompt.slots), (prompt, media))
        else:
            refusal = f"{len(prompt.ids)} rows of {limits.max_input_len} that the bundle takes"
    if not found:
        raise NotCalibrated(f"No drawn picture can be measured with this bundle: {refusal}")
    ordered = [found[tokens] for tokens in sorted(found)]
    if len(ordered) <= most:
        return ordered
    return [ordered[round(at)] for at in np.linspace(0, len(ordered) - 1, most)]
