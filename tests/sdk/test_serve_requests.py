"""Bodies as requests, without a server: what is read, refused and ignored."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_bodies import asking, picture_part, text_part

from tokprune.budgets import Auto, Deadline, KeepRatio
from tokprune.errors import (
    BudgetImpossible,
    DeadlineExceeded,
    EngineFailed,
    OutOfMemory,
    RequestInvalid,
    TokpruneError,
)
from tokprune.serving import wire
from tokprune.serving.asking import Asked, Rules, asked_of, later
from tokprune.serving.refusals import HttpRefused, refusal
from tokprune.serving.replies import Reply
from tokprune.serving.wire import ChatRequest, chat_request
from tokprune.types import Answer, Selection

RULES = Rules("demo", KeepRatio(0.5), None, 100)
SAID = [{"role": "user", "content": "x"}]
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
FIELDS = st.sampled_from([*ChatRequest.__struct_fields__, "unknown"])
KEYS = st.sampled_from(["role", "content", "type", "text", "image_url", "url", "detail", "name"])
WORDS = st.sampled_from(["user", "system", "assistant", "text", "image_url", "data:a;base64,"])
PARTS = st.recursive(
    SIMPLE | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def asked(**fields: Any) -> Asked:
    return asked_of(chat_request(json.dumps({"messages": SAID, **fields}).encode()), RULES)


def status_of(body: object) -> int:
    try:
        asked_of(chat_request(json.dumps(body).encode()), RULES)
    except (TokpruneError, HttpRefused) as error:
        return refusal(error).status
    return 200


@given(st.dictionaries(FIELDS, ANY | PARTS), st.lists(PARTS, max_size=4))
def test_whatever_json_comes_is_read_or_refused(fields: dict[str, Any], messages: Any) -> None:
    statuses = {
        status_of({**fields, "messages": messages}),
        status_of({"messages": SAID, **fields}),
    }
    assert statuses <= {200, 400, 404}


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_refused(data: bytes) -> None:
    with pytest.raises(RequestInvalid):
        chat_request(data)


def test_every_field_that_would_change_the_answer_is_known_and_refused() -> None:
    raw = {name for name in ChatRequest.__struct_fields__ if _is_raw(name)}
    ignored = {"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store"}
    assert raw - {*ignored, "parallel_tool_calls"} == set(wire._UNSUPPORTED)
    for name, neutral in wire._UNSUPPORTED.items():
        for value in (None, *neutral):
            asked(**{name: value})
        for value in ("something", {"a": 1}, [1], 2, True if False in neutral else "yes"):
            with pytest.raises(RequestInvalid, match=f"leave {name} out"):
                asked(**{name: value})
    with pytest.raises(RequestInvalid, match="leave n out"):
        asked(n=True)  # not 1


def _is_raw(name: str) -> bool:
    return wire.ChatRequest.__annotations__[name] is wire.Raw


def test_what_has_no_meaning_is_ignored() -> None:
    plain = asked()
    assert asked(user={"a": [1]}, metadata=3, store=True, parallel_tool_calls=False) == plain


def test_budgets_are_shares_counts_or_text() -> None:
    assert asked().budget == KeepRatio(0.5)
    assert asked(budget=1.0).budget == KeepRatio(1.0)
    assert asked(budget=1).budget.count == 1  # type: ignore[union-attr]
    assert asked(budget="auto:0.3s").budget == Auto(300.0)


def test_a_bound_that_is_not_given_is_the_default_within_the_servers() -> None:
    assert asked().options.get("max_new_tokens") == 100
    roomy = replace(RULES, max_new_tokens=1000)
    request = chat_request(json.dumps({"messages": SAID}).encode())
    assert asked_of(request, roomy).options.get("max_new_tokens") == 128
    assert asked(max_tokens=7, max_completion_tokens=7).options.get("max_new_tokens") == 7


def test_pictures_are_encoded_as_the_request_says_else_as_the_server_was_told() -> None:
    assert asked().options.get("encode") == "full"
    request, other = (
        chat_request(json.dumps({"messages": SAID, "encode": encode}).encode())
        for encode in (None, "repeats:0.02")
    )
    rules = replace(RULES, encode="lazy:2")
    assert asked_of(request, rules).options.get("encode") == "lazy:2"
    assert asked_of(other, rules).options.get("encode") == "repeats:0.02"
    for wrong in ("lasy", "", "lazy:0"):
        with pytest.raises(RequestInvalid, match="encode"):
            asked(encode=wrong)


@pytest.mark.parametrize("pictures_first", [False, True])
def test_pictures_come_first_only_where_that_is_the_rule(*, pictures_first: bool) -> None:
    one, other = (np.full((8, 8, 3), grey, np.uint8) for grey in (10, 20))
    parts = [text_part("a"), picture_part(one), text_part("b"), picture_part(other)]
    request = chat_request(json.dumps(asking(*parts)).encode())
    question = asked_of(request, replace(RULES, pictures_first=pictures_first)).question
    seen = [part if isinstance(part, str) else int(np.asarray(part).flat[0]) for part in question]
    assert seen == ([10, 20, "a", "b"] if pictures_first else ["a", 10, "b", 20])


def test_times_lose_what_it_took_to_read_the_request() -> None:
    timed = asked(budget="ttft:300ms", deadline_s=2.0)
    left = later(timed, 0.25)
    assert left.budget == Deadline(50.0)
    assert left.options.get("deadline_s") == 1.75
    assert later(asked(budget="auto:300ms"), 0.25).budget == Auto(50.0)
    with pytest.raises(BudgetImpossible, match="took 300 ms, longer than the 300 ms"):
        later(timed, 0.3)
    with pytest.raises(DeadlineExceeded, match=r"its deadline of 0\.1 s"):
        later(asked(deadline_s=0.1), 0.2)
    assert later(asked(), 100.0) == asked()


def test_every_error_has_a_body_like_openais() -> None:
    for error, status, code in (
        (OutOfMemory("x"), 500, "out_of_memory"),
        (EngineFailed("x"), 500, "engine_failed"),
        (MemoryError(), 500, "out_of_memory"),
        (ValueError("a secret"), 500, "internal"),
        (RequestInvalid("x" * 10_000), 400, "request_invalid"),
    ):
        answer = refusal(error)
        told = answer.body["error"]
        assert (answer.status, told["code"]) == (status, code)
        assert set(told) == {"message", "type", "param", "code"}
        assert "secret" not in told["message"]
        assert len(told["message"]) <= 2000


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("deadline", "length"),
        ("cancelled", "length"),
        ("repetition", "stop"),
    ],
)
def test_reasons_to_end_are_openais_and_the_true_one_stands_beside(reason: Any, shown: str) -> None:
    answer = Answer(
        text="a star",
        finish_reason=reason,
        selection=Selection(np.arange(16), 64, 5, 16, "count"),
        regions=(),
        where=np.zeros((64, 7), np.int32),
        selector="uniform",
        timings_ms={"decode": 10.5},
        ttft_ms=36.0,
        token_ids=(1, 2, 3),
        prompt_tokens=40,
        reused=8,
        encode="lazy",
        encoded=48,
        encode_reason="1 of 2 crops",
    )
    reply = Reply("demo", received_ms=4.0, include_usage=True)
    whole, (last, usage) = reply.whole(answer), reply.last(answer)
    for each in (whole, last):
        assert each["choices"][0]["finish_reason"] == shown
        assert each["tokprune"]["finish_reason"] == reason
        assert each["tokprune"]["ttft_ms"] == 40.0
        assert each["tokprune"]["need"] == 5
        assert (each["tokprune"]["encode"], each["tokprune"]["encoded"]) == ("lazy", 48)
        assert each["tokprune"]["encode_reason"] == "1 of 2 crops"
    assert usage["usage"] == whole["usage"]
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


def test_a_stream_is_not_followed_from_request_to_request() -> None:
    assert asked(encode="lazy").options.get("encode") == "lazy"
    for encode in ("follow", "follow:8", "follow:x"):
        with pytest.raises(RequestInvalid, match=r"know nothing of each other.*tokprune watch"):
            asked(encode=encode)
