"""Which labels a scorer is trained on, and which tell how good it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokprune.errors import RequestInvalid
from tokprune.manifest import Modality
from tokprune_export.agreement import Held
from tokprune_export.examples import Example
from tokprune_export.label_cache import LabelCache
from tokprune_export.labels import sample_name
from tokprune_export.media import identity
from tokprune_export.scorer_training import split

FEWEST_LABELS = 20


@dataclass(frozen=True)
class Division:
    """Names of the rightly answered samples, by use, and how many were answered wrongly."""

    training: list[str]
    checked: list[str]  # tell when to stop
    held: Held  # seen by nothing before the figures
    modalities: list[Modality]  # of what is trained on
    wrong: int


def divide(examples: Sequence[Example], cache: LabelCache, folder: Path, seed: int) -> Division:
    """Divide what was answered rightly, whole pictures and videos at a time.

    Args:
        examples: all of them.
        cache: their labels.
        folder: where these are, for messages.
        seed: of the choice.

    Raises:
        RequestInvalid: labels are missing, or there are too few.
    """
    named = {sample_name(example): example for example in examples}
    missing = sum(name not in cache for name in named)
    if missing:
        raise RequestInvalid(
            f"{missing} labels of other machines are not in {folder}: "
            "give --cache a folder that all machines see"
        )
    right = [name for name in named if not cache.is_wrong(name)]

    def halves(names: list[str], seed: int) -> tuple[list[str], list[str]]:
        shown = [[p for s in named[name].media for p in identity(s).parts] for name in names]
        chosen, others = split(shown, [named[name].modality for name in names], seed)
        return [names[i] for i in chosen], [names[i] for i in others]

    rest, held = halves(right, seed)
    training, checked = halves(rest, seed + 1)
    if len(training) < FEWEST_LABELS:
        raise RequestInvalid(
            f"{len(right)} of {len(named)} questions were answered rightly, which leaves "
            f"{len(training)} to train on (at least {FEWEST_LABELS}, of three pictures or videos "
            "or more). Give more examples, or check the wording of the answers"
        )
    labels = cache.read(held)
    return Division(
        training=training,
        checked=checked,
        held=Held([labels[name] for name in held], [named[name].modality for name in held]),
        modalities=sorted({named[name].modality for name in training}),
        wrong=len(named) - len(right),
    )
