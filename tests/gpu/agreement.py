"""Does an engine answer as the CPU does?"""

from collections.abc import Iterator
from typing import Any

from setting import FAMILIES, Setting, Skipped

import tokprune
from tokprune.budgets import KeepCount
from tokprune.scenes.suite import Sample, suite
from tokprune.vlm import VLM

BUDGETS = (1.0, 0.5, 0.25)
NEW_TOKENS = 24
LEAST = {"fp32": 1.0, "fp16": 0.97, "bf16": 0.95, "int4": 0.9}  # share of texts equal to fp32's
SWEPT = 12  # numbers of kept tokens


def agreement(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield, for every family and precision, the share of answers equal to the CPU's in float32.

    In float32 all must be the same; how many of a narrower precision must be stands in LEAST.
    Beside that, it is told how many are those of the CPU in the same precision.
    """
    for family in FAMILIES:
        samples = list(suite("dev", setting.questions, tokens=100))
        exact = _texts(tokprune.load(setting.bundle(family, "fp32"), backend="cpu"), samples)
        for precision in setting.precisions:
            about = {"family": family, "precision": precision}
            bundle = setting.bundle(family, precision)
            try:
                vlm = setting.open(bundle)
            except Skipped as reason:
                yield {**about, "skipped": str(reason)}
                continue
            same = _texts(tokprune.load(bundle, backend="cpu"), samples)
            found = _texts(vlm, samples)
            share = _equal(found, exact)
            yield {
                **about,
                "form": vlm.model.llm.form.form,
                "answers": len(found),
                "equal_to_fp32_on_cpu": share,
                "equal_to_this_precision_on_cpu": _equal(found, same),
                "least": LEAST[precision],
                "ok": share >= LEAST[precision],
            }


def sweep(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield whether any number of kept tokens works, the fewest and the most included."""
    sample = next(iter(suite("dev", 1, tokens=100)))
    for family in FAMILIES:
        bundle = setting.bundle(family, setting.precisions[0])
        vlm, reference = setting.open(bundle), tokprune.load(bundle, backend="cpu")
        total = vlm.ask(list(sample.pictures), sample.question, budget=1.0).total
        counts = sorted({round(1 + (total - 1) * step / (SWEPT - 1)) for step in range(SWEPT)})
        for count in counts:
            answers = [
                each.ask(
                    list(sample.pictures),
                    sample.question,
                    KeepCount(count),
                    max_new_tokens=NEW_TOKENS,
                )
                for each in (vlm, reference)
            ]
            kept = [answer.selection.keep.tolist() for answer in answers]
            yield {
                "family": family,
                "count": count,
                "total": total,
                "same_tokens_kept": kept[0] == kept[1],
                "same_text": answers[0].text == answers[1].text,
                "ok": answers[0].kept == count,
            }


def _texts(vlm: VLM, samples: list[Sample]) -> list[str]:
    return [
        vlm.ask(list(s.pictures), s.question, budget, max_new_tokens=NEW_TOKENS).text
        for s in samples
        for budget in BUDGETS
    ]


def _equal(ours: list[str], theirs: list[str]) -> float:
    return round(sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours), 4)
