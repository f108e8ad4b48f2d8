"""Which selectors of the table a bundle can run, and what the others lack."""

from collections.abc import Sequence

from tokprune.errors import RequestInvalid, SelectorUnavailable
from tokprune.manifest import Modality
from tokprune.model import Model
from tokprune.selectors import SELECTORS, Inputs, Scorer, Selector, method_of


def build(name: str, model: Model, scorer: Scorer) -> Selector:
    """Make a selector of the table."""
    return method_of(name).make(Inputs(scorer, model.llm.embed))


def lacking(name: str, model: Model, modalities: set[Modality]) -> str | None:
    """Say why a selector cannot be asked these questions; None: it can."""
    needs = method_of(name).needs
    if "frames" in needs and "video" not in modalities:
        return "It chooses among the frames of a video, and these questions are about pictures"
    try:
        model.selector(name)
    except SelectorUnavailable as error:
        return str(error)
    return None


def chosen(
    names: Sequence[str] | None, model: Model, modalities: set[Modality]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the selectors to ask, and why others of the table are left out.

    Args:
        names: those asked for; None: all that can run.
        model: the bundle.
        modalities: what the questions are about.

    Raises:
        RequestInvalid: no selector has that name, or it cannot be asked.
    """
    table = SELECTORS if names is None else names
    reasons = {name: lacking(name, model, modalities) for name in table}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if names is not None and refused:
        name, reason = next(iter(refused.items()))
        raise RequestInvalid(f"--selectors has {name!r}, which cannot run here: {reason}")
    return tuple(name for name in reasons if name not in refused), refused
