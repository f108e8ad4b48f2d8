"""The classes that lmms-eval makes and calls. Only this file needs it to be imported."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.model_utils.gen_metrics import (  # pyright: ignore[reportMissingImports]
    log_metrics,
)
from loguru import logger  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

import tokprune
from tokprune.backends import Asked as AskedBackend
from tokprune.errors import ContextOverflow, PictureInvalid, RequestInvalid
from tokprune.running.request import AskOptions
from tokprune.types import Answer
from tokprune_export.lmms_eval_model.generation import generating
from tokprune_export.lmms_eval_model.likelihood import likelihoods, one_token_choices
from tokprune_export.lmms_eval_model.messages import Asked, asked_of, check_order, shown_first
from tokprune_export.lmms_eval_model.records import (
    Ledger,
    Place,
    Record,
    failed_record,
    record_of,
    summary,
    table,
)
from tokprune_export.lmms_eval_model.settings import settings_of

SAMPLE_AT_FAULT = (PictureInvalid, ContextOverflow, RequestInvalid)


@dataclass
class KeptCounts(TokenCounts):
    """Token counts that bring their answer's record into the harness's samples log."""

    record: Record | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under `token_counts` of a sample."""
        record = asdict(self.record) if self.record else {}
        fields = ("kept", "total", "reason", "selector", "finish_reason", "ttft_ms",
                  "encoder_hits", "ignored", "error")  # fmt: skip
        return {**super().to_dict(), **{name: record[name] for name in fields if name in record}}


class Tokprune(lmms):
    """A bundle under lmms-eval's chat tasks (messages, in which pictures stand where they do)."""

    is_simple = False

    def __init__(self, **options: Any) -> None:
        """Open the bundle.

        Args:
            options: fields of `Settings`, beside what the harness passes to every model.

        Raises:
            RequestInvalid: one is unknown or makes no sense.
            TokpruneError: the bundle cannot be opened or has no such selector.
        """
        super().__init__()
        settings = settings_of(options)
        if settings.system is not None:
            system = self._resolve_system_prompt(settings.system)
            settings = settings_of({**options, "system": system})
        self.settings = settings
        self._ledger = Ledger(settings.answers)
        backend = cast(AskedBackend, settings.backend)
        self.vlm = tokprune.load(settings.bundle, backend=backend, threads=settings.threads)
        self.vlm.model.selector(settings.selector)
        self._warned: set[str] = set()

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests one after another, each as `vlm.ask` would."""
        self._check_alone()
        repeated: Counter[int] = Counter()
        results: list[Any] = []
        for request in self._shown(requests):
            turn = repeated[id(request)]
            repeated[id(request)] += 1
            asked, given = self._read(request)
            record = self._answer(self._place(request, turn), asked, given)
            results.append(GenerationResult(record.text, _counts(record)))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer each round's messages, which the task makes from the answers before.

        The harness has no token counts of several rounds: they are in the answers file alone.
        """
        self._check_alone()
        if self.is_simple:
            raise NotImplementedError(
                "Tasks of several rounds are asked as chats here: leave out --force_simple"
            )
        return [self._rounds(request) for request in self._shown(requests)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Tell how likely the model finds each choice of a question.

        The harness takes the least of what it calls likelihoods, so these are losses. Its 0.7
        turns a plain tuple into text, a `GenerationResult` not.

        Raises:
            NotImplementedError: what is asked for is not known exactly (`one_token_choices`).
        """
        self._check_alone()
        groups: dict[tuple[Any, ...], dict[int, Any]] = {}
        for request in requests:
            if len(request.args) != 6 or not isinstance(request.args[1], str):
                raise NotImplementedError(
                    "Only choices of a question about what is shown are compared by likelihood "
                    "here: no perplexities, and no likelihoods without the question"
                )
            context, _, _, doc_id, task, split = request.args
            groups.setdefault((task, split, doc_id, context), {})[id(request)] = request
        found: dict[int, GenerationResult] = {}
        for group in self._shown(list(groups.values())):
            found.update(self._likelihoods(list(group.values())))
        return [found[id(request)] for request in requests]

    def clean(self) -> None:
        """Say what the answers cost. The harness calls this when all requests are answered."""
        records = self._ledger.records
        if records:
            logger.info("tokprune ({})\n{}", self.settings.bundle, table(records))
            seconds = sum(record.total_ms or 0.0 for record in records) / 1000
            written = sum(record.output_tokens or 0 for record in records)
            log_metrics(
                total_elapsed_time=seconds,
                total_gen_tokens=written,
                avg_speed=written / seconds if seconds else 0.0,
                additional_metrics=summary(records),
            )
            records.clear()
        super().clean()

    def _read(self, request: Any) -> tuple[Callable[[], Asked], Mapping[str, Any]]:
        """Return what reads a request, which has another shape for each kind of task."""
        if self.is_simple:
            context, given, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            return lambda: shown_first(doc_to_visual(doc), context, self.settings), given
        _, doc_to_messages, given, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        return lambda: asked_of(doc_to_messages(doc), self.settings), given

    def _rounds(self, request: Any) -> list[str]:
        _, doc_to_messages, given, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        messages, information, answers = doc_to_messages(doc), None, []
        while True:
            asked = asked_of(messages, self.settings)
            record = self._answer(self._place(request, len(answers)), lambda a=asked: a, given)
            answers.append(record.text)
            step = doc_to_messages(
                doc,
                round_idx=len(answers),
                previous_output=list(answers),
                previous_round_info=information,
            )
            if not (isinstance(step, tuple) and len(step) == 4):
                return answers
            messages, ended, _, information = step
            if ended:
                return answers

    def _likelihoods(self, group: Sequence[Any]) -> dict[int, Any]:
        first = group[0]
        context, _, doc_to_visual, doc_id, task, split = first.args
        choices = one_token_choices([request.args[1] for request in group], self.vlm.model)
        doc = self.task_dict[task][split][doc_id]
        asked = shown_first(doc_to_visual(doc), context, self.settings)
        values, answer = likelihoods(choices, lambda options: self._ask(asked, options))
        record = record_of(self._place(first, 0), answer)
        self._ledger.add(record)
        by_text = dict(zip(choices.texts, values, strict=True))
        return {
            id(request): GenerationResult(
                cast(Any, tuple(by_text[request.args[1].lstrip()])), _counts(record)
            )
            for request in group
        }

    def _answer(self, place: Place, read: Callable[[], Asked], given: Mapping[str, Any]) -> Record:
        """Ask, and note what came of it."""
        how = generating(given, seed=self.settings.seed + place.round, until=self.settings.until)
        self._warn_ignored(how.ignored)
        try:
            record = record_of(place, self._ask(read(), how.options), how.ignored)
        except SAMPLE_AT_FAULT as error:
            if self.settings.on_error == "raise":
                raise
            record = failed_record(place, error, how.ignored)
        self._ledger.add(record)
        return record

    def _ask(self, asked: Asked, options: AskOptions) -> Answer:
        """Ask as `vlm.ask` where media stand before one text, otherwise as a chat."""
        settings, vlm = self.settings, self.vlm
        check_order(asked, media_first=vlm.bundle.manifest.chat.media_first)
        budget = settings.budget_asked
        *media, text = asked.question
        shown = [part for part in media if not isinstance(part, str)]
        if isinstance(text, str) and shown and len(shown) == len(media) and not asked.earlier:
            return vlm.ask(shown, text, budget, settings.selector, system=asked.system, **options)
        chat = vlm.chat(system=asked.system, budget=budget, selector=settings.selector)
        for parts, answer in asked.earlier:
            chat.recall(parts, answer)
        return chat.ask(asked.question, **options)

    def _place(self, request: Any, turn: int) -> Place:
        *_, doc_id, task, split = request.args
        return Place(task, split, doc_id, request.request_type, turn)

    def _warn_ignored(self, names: Sequence[str]) -> None:
        for name in set(names) - self._warned:
            logger.warning("tokprune: the task's {} changes nothing here", name)
            self._warned.add(name)

    def _shown(self, requests: Sequence[Any]) -> Any:
        return tqdm(requests, desc="tokprune answers")

    def _check_alone(self) -> None:
        if self.world_size > 1:
            raise RequestInvalid(
                f"This evaluation was started as {self.world_size} processes, and tokprune cannot "
                "share out GPUs: start one, or one for each part of the tasks"
            )


class TokpruneSimple(Tokprune):
    """The same under lmms-eval's simple tasks: pictures first, then the words."""

    is_simple = True


def _counts(record: Record) -> KeptCounts:
    return KeptCounts(
        input_tokens=record.prompt_tokens, output_tokens=record.output_tokens, record=record
    )
