"""Does an engine answer as the CPU does?"""

from collections.abc import Iterator, Sequence

from setting import FAMILIES, Row, Setting, Skipped, case, each_bundle

from tokprune.budgets import KeepCount
from tokprune.scenes.suite import Sample, suite
from tokprune.types import Answer
from tokprune.vlm import VLM

BUDGETS = (1.0, 0.5, 0.25)
NEW_TOKENS = 24
LEAST = {"fp32": 1.0, "fp16": 0.97, "bf16": 0.95, "int4": 0.9}  # share of texts equal to fp32's
SWEPT = 12  # numbers of kept tokens
# Of so few texts, against the CPU in the same precision: one or two may fall to the other side.
LEAST_SWEPT = {"fp32": 1.0, "fp16": 0.9, "bf16": 0.8, "int4": 0.8}


def agreement(setting: Setting) -> Iterator[Row]:
    """Yield, for every family and precision, the share of answers equal to the CPU's in float32.

    In float32 all must be the same; how many of a narrower precision must be stands in LEAST.
    Beside that, it is told how many are those of the CPU in the same precision.
    """
    for family in FAMILIES:
        samples = list(suite("dev", setting.questions, tokens=100))
        exact: list[str] = []  # filled by the first precision that is asked about
        for precision in setting.precisions:
            yield from case(
                {"family": family, "precision": precision},
                lambda family=family, precision=precision, exact=exact, samples=samples: _agreed(
                    setting, family, precision, samples, exact
                ),
            )


def _agreed(
    setting: Setting, family: str, precision: str, samples: Sequence[Sample], exact: list[str]
) -> Iterator[Row]:
    vlm = setting.open(setting.bundle(family, precision))
    if not exact:
        exact.extend(_texts(setting.on_cpu(family, "fp32"), samples))
    found = _texts(vlm, samples)
    share = _equal(found, exact)
    try:
        beside: Row = {
            "equal_to_this_precision_on_cpu": _equal(
                found, _texts(setting.on_cpu(family, precision), samples)
            )
        }
    except Skipped as reason:
        beside = {"this_precision_on_cpu": f"skipped: {reason}"}
    yield {
        "form": vlm.model.llm.form.form,
        "answers": len(found),
        "equal_to_fp32_on_cpu": share,
        **beside,
        "least": LEAST[precision],
        "ok": share >= LEAST[precision],
    }


def sweep(setting: Setting) -> Iterator[Row]:
    """Yield whether any number of kept tokens works, the fewest and the most included.

    Each must keep as many as was asked for. Texts are held against the CPU's: in float32 each must
    be the same, of a narrower precision the share that stands in LEAST_SWEPT.
    """
    yield from each_bundle(setting, _swept)


def _swept(setting: Setting, family: str, precision: str) -> Iterator[Row]:
    sample = next(iter(suite("dev", 1, tokens=100)))
    vlm = setting.open(setting.bundle(family, precision))
    reference, exact = setting.reference(family, precision)
    total = vlm.ask(list(sample.pictures), sample.question, budget=1.0).total
    same: list[bool] = []
    for count in sorted({round(1 + (total - 1) * step / (SWEPT - 1)) for step in range(SWEPT)}):
        ours, theirs = (_kept(each, sample, count) for each in (vlm, reference))
        same.append(ours.text == theirs.text)
        yield {
            "count": count,
            "total": total,
            "same_tokens_kept": ours.selection.keep.tolist() == theirs.selection.keep.tolist(),
            "same_text": same[-1],
            "ok": ours.kept == count and (same[-1] or LEAST_SWEPT[precision] < 1),
        }
    share = round(sum(same) / len(same), 4)
    least = LEAST_SWEPT[precision]
    yield {
        "texts_equal_to": f"{exact} on the CPU",
        "share_of_texts_equal": share,
        "least": least,
        "ok": share >= least,
    }


def _kept(vlm: VLM, sample: Sample, count: int) -> Answer:
    return vlm.ask(
        list(sample.pictures), sample.question, KeepCount(count), max_new_tokens=NEW_TOKENS
    )


def _texts(vlm: VLM, samples: Sequence[Sample]) -> list[str]:
    return [
        vlm.ask(list(s.pictures), s.question, budget, max_new_tokens=NEW_TOKENS).text
        for s in samples
        for budget in BUDGETS
    ]


def _equal(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return round(sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours), 4)
