"""`tokprune serve`, asked by OpenAI's own client through a real server."""

import base64
import io
import json
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from http_server import MODEL, Served, eventually, served
from PIL import Image as Pillow
from request_bodies import asking, data_url, noise, picture_part, text_part

from tokprune.text.sampling import Sampler, Sampling
from tokprune.types import Answer

openai = pytest.importorskip("openai", reason="openai is not installed (group dev)")
pytest.importorskip("starlette", reason="Starlette is not installed (extra serve)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")

pytestmark = pytest.mark.demo
QUESTION = "what is this?"
LONG: dict[str, Any] = {"temperature": 50.0, "max_tokens": 4000}  # words at random


@pytest.fixture
def endless(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Served]:
    """A server whose long answers take ten seconds or more."""
    start = Sampling.start

    def slow(sampling: Sampling) -> Sampler:
        drawn = start(sampling)

        def draw(logits: Any) -> int:
            sleep(0.0025)
            return drawn(logits)

        return draw

    monkeypatch.setattr(Sampling, "start", slow)
    with served(demo_bundle, endless=True) as running:
        yield running


@pytest.fixture
def impatient(endless: Served) -> Generator[Any]:
    """A client of that server."""
    with openai.OpenAI(base_url=f"{endless.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Served]:
    with served(demo_bundle) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Generator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: Any, *parts: dict[str, Any], **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, **asking(*parts), **fields)


def alike(reply: Any, answer: Answer) -> bool:
    """Whether a reply is what the VLM says in process, numbers included."""
    told = reply.tokprune
    return (
        reply.choices[0].message.content == answer.text
        and told["finish_reason"] == answer.finish_reason
        and (told["kept"], told["total"]) == (answer.kept, answer.total)
        and (told["reason"], told["cap"]) == (answer.selection.reason, answer.selection.cap)
        and told["selector"] == answer.selector
        and (told["encode"], told["encoded"]) == (answer.encode, answer.encoded)
        and reply.usage.prompt_tokens == answer.prompt_tokens
        and reply.usage.completion_tokens == len(answer.token_ids)
        and reply.usage.total_tokens == answer.prompt_tokens + len(answer.token_ids)
    )


@pytest.mark.parametrize("budget", [None, "0.25", 7, 1.0, "mass:0.5"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_question_is_answered_as_in_process(
    server: Served, client: Any, budget: Any, seed: int
) -> None:
    picture = noise(seed)
    extra = {} if budget is None else {"extra_body": {"budget": budget}}
    reply = ask(client, picture_part(picture), text_part(QUESTION), **extra)
    answer = server.vlm.ask(picture, QUESTION, 0.5 if budget is None else budget)
    assert alike(reply, answer)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == MODEL


def test_text_alone_is_answered(server: Served, client: Any) -> None:
    messages = [{"role": "user", "content": "what is red?"}]
    reply = client.chat.completions.create(model=MODEL, messages=messages)
    assert alike(reply, server.vlm.chat().ask("what is red?"))


def test_a_chat_with_pictures_in_two_turns_and_a_system_message(
    server: Served, client: Any
) -> None:
    first, second = noise(3), noise(4)
    system = "You name shapes."
    messages: list[Any] = [
        {"role": "system", "content": system},
        {"role": "user", "content": [picture_part(first), text_part(QUESTION)]},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages)
    chat = server.vlm.chat(system=system)
    assert alike(reply, chat.ask(QUESTION, first))
    messages.append(reply.choices[0].message)  # as the client gives it
    messages.append({"role": "user", "content": [text_part("and this?"), picture_part(second)]})
    reply = client.chat.completions.create(model=MODEL, messages=messages)
    answer = chat.ask(["and this?", second])
    assert alike(reply, answer)
    assert len({region.picture for region in answer.regions}) == 2


def test_parts_keep_their_order(server: Served, client: Any) -> None:
    first, second = noise(5), noise(6)
    parts = [picture_part(first), text_part("then"), picture_part(second), text_part(QUESTION)]
    reply = ask(client, *parts)
    assert alike(reply, server.vlm.chat().ask([first, "then", second, QUESTION]))


def test_a_stream_says_what_the_whole_says(server: Served, client: Any) -> None:
    parts = [picture_part(noise(7)), text_part(QUESTION)]
    sampled = {"temperature": 3.0, "seed": 5, "max_tokens": 40}
    whole = ask(client, *parts, **sampled)
    chunks = list(ask(client, *parts, **sampled, stream=True))
    said = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(said) == whole.choices[0].message.content
    assert sum(map(bool, said)) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].tokprune["kept"] == whole.tokprune["kept"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_the_usage_where_it_is_wanted(client: Any) -> None:
    parts = [picture_part(noise(8)), text_part(QUESTION)]
    options = {"include_usage": True}
    *_, last = ask(client, *parts, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage == ask(client, *parts).usage


def test_a_stream_ends_with_done(server: Served) -> None:
    body = asking(text_part("hello"), stream=True)
    with server.connected() as connection:
        head = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        answer = connection.getresponse()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_options_mean_what_they_mean_in_process(server: Served, client: Any) -> None:
    picture = noise(9)
    parts = [picture_part(picture), text_part(QUESTION)]
    options = {"temperature": 3.0, "top_p": 0.9, "seed": 11}
    free = server.vlm.ask(picture, QUESTION, max_new_tokens=30, **options)
    assert alike(ask(client, *parts, **options, max_completion_tokens=30), free)
    stop = free.text[4:7]
    cut = server.vlm.ask(picture, QUESTION, max_new_tokens=30, stop=[stop], **options)
    assert cut.text != free.text
    assert alike(ask(client, *parts, **options, max_tokens=30, stop=stop), cut)
    assert alike(ask(client, *parts, **options, max_tokens=30, stop=[stop]), cut)


def test_a_picture_is_encoded_as_it_was_asked_for(server: Served, client: Any) -> None:
    grey = np.full_like(noise(12), 90)  # its patches repeat each other
    parts = (picture_part(grey), text_part(QUESTION))
    reply = ask(client, *parts, extra_body={"encode": "repeats"})
    assert alike(reply, server.vlm.ask(grey, QUESTION, encode="repeats"))
    assert reply.tokprune["encoded"] < reply.tokprune["total"]


def test_choices_come_with_their_probabilities(server: Served, client: Any) -> None:
    picture, choices = noise(10), ["red", "green", "blue"]
    extra = {"choices_list": choices, "selector": "uniform"}
    reply = ask(client, picture_part(picture), text_part("what color?"), extra_body=extra)
    answer = server.vlm.ask(picture, "what color?", 0.5, "uniform", choices=choices)
    assert alike(reply, answer)
    assert reply.tokprune["choice"] == answer.choice
    assert reply.tokprune["probabilities"] == answer.probabilities


def test_times_count_from_the_arrival_of_the_request(client: Any) -> None:
    told = ask(client, picture_part(noise(11)), text_part(QUESTION)).tokprune
    stages = told["timings_ms"]
    assert 0 < stages["receive"] < told["ttft_ms"]
    assert set(stages) > {"wait", "preprocess", "vision", "prefill", "decode"}


def test_a_deadline_in_the_midst_of_an_answer_leaves_what_was_written(impatient: Any) -> None:
    reply = ask(impatient, text_part(QUESTION), **LONG, extra_body={"deadline_s": 2.0})
    assert reply.tokprune["finish_reason"] == "deadline"
    assert reply.choices[0].finish_reason == "length"
    assert 0 < reply.usage.completion_tokens < 4000


def test_what_a_web_interface_for_robots_sends_is_answered(server: Served, client: Any) -> None:
    """live-vlm-webui's calls: the model from the list, text first, a JPEG, 512 tokens, 0.7."""
    data = io.BytesIO()
    Pillow.fromarray(noise(13, 224)).save(data, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [text_part("Describe it."), {"type": "image_url", "image_url": {"url": url}}]
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": parts}]
    reply = client.chat.completions.create(
        model=model, messages=messages, max_tokens=512, temperature=0.7
    )
    asked = ["Describe it.", data.getvalue()]
    assert alike(reply, server.vlm.chat().ask(asked, max_new_tokens=512, temperature=0.7))


def test_the_model_can_be_retrieved(client: Any) -> None:
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="only 'demo'"):
        client.models.retrieve("other/model")


def test_several_clients_at_once_get_their_own_answers(server: Served, demo_bundle: Path) -> None:
    def one(seed: int) -> tuple[Any, Answer]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as own:
            reply = ask(
                own, picture_part(noise(seed)), text_part(QUESTION), temperature=2.0, seed=1
            )
        return reply, server.vlm.ask(noise(seed), QUESTION, temperature=2.0, seed=1)

    with ThreadPoolExecutor(4) as pool:
        assert all(alike(*each) for each in pool.map(one, range(100, 108)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "n=2 is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "leave tools out"),
        ({"logprobs": True}, "leave logprobs out"),
        ({"response_format": {"type": "json_object"}}, "leave response_format out"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"seed": -1}, "`int` >= 0"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_tokens": 4001}, "more than the 4000"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "give one"),
        ({"stop": ""}, "stop"),
        ({"extra_body": {"budget": "0,5"}}, "Cannot read the budget"),
        ({"extra_body": {"budget": True}}, "budget"),
        ({"extra_body": {"selector": "relevence"}}, "Did you mean 'relevance'"),
        ({"extra_body": {"choices_list": ["yes"]}}, "2 to"),
        ({"extra_body": {"deadline_s": 0}}, "deadline_s must be above 0"),
        ({"extra_body": {"chioces_list": ["a", "b"]}}, "Did you mean 'choices_list'"),
    ],
)
def test_what_is_not_done_is_refused(client: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(client, text_part(QUESTION), **fields)
    assert caught.value.code == "request_invalid"


def test_what_asks_for_nothing_else_is_not_refused(client: Any) -> None:
    fields: dict[str, Any] = {
        "n": 1,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "user": "robot-7",
        "metadata": {"a": "b"},
        "store": False,
        "stream": None,
        "max_tokens": None,
    }
    assert ask(client, text_part(QUESTION), **fields).choices[0].finish_reason == "stop"


def test_each_error_has_its_status_and_code(server: Served, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as lost:
        client.chat.completions.create(model="gpt-4o", messages=asking(text_part("x"))["messages"])
    assert lost.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, text_part("word " * 5000))
    assert long.value.code == "context_overflow"
    with pytest.raises(openai.BadRequestError) as timed:
        ask(client, text_part("x"), extra_body={"budget": "ttft:300ms"})
    assert timed.value.code == "not_calibrated"
    with pytest.raises(openai.InternalServerError) as late:
        ask(client, text_part("x"), extra_body={"deadline_s": 1e-6})
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    assert server.get("/nothing")[0] == 404
    assert server.get("/v1/chat/completions")[0] == 405


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_while_waiting_is_an_error(server: Served, client: Any, *, stream: bool) -> None:
    with server.held(), pytest.raises(openai.InternalServerError) as caught:
        ask(client, text_part("x"), stream=stream, extra_body={"deadline_s": 0.2})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_a_full_server_says_so_at_once_and_when_to_come_back(demo_bundle: Path) -> None:
    with served(demo_bundle, max_waiting=2) as full, ThreadPoolExecutor(3) as pool:
        address = f"{full.url}/v1"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
            with full.held():
                inside = [pool.submit(ask, client, text_part(QUESTION)) for _ in range(2)]
                eventually(lambda: full.vlm.health().waiting == 2)
                with pytest.raises(openai.InternalServerError) as caught:
                    ask(client, text_part(QUESTION))
                assert (caught.value.status_code, caught.value.code) == (503, "busy")
                assert caught.value.response.headers["retry-after"] == "1"
            assert all(each.result().choices[0].finish_reason == "stop" for each in inside)
            assert full.serving.stats().errors == {"busy": 1}
            assert ask(client, text_part(QUESTION)).choices[0].message.content


def test_a_client_that_leaves_a_stream_cancels_its_request(endless: Served, impatient: Any) -> None:
    stream = ask(impatient, picture_part(noise(14)), text_part(QUESTION), **LONG, stream=True)
    for _ in range(3):
        next(stream)
    stream.close()
    eventually(lambda: endless.vlm.health().state == "ready" and not endless.serving.door.inside)
    stats = endless.vlm.stats()
    assert stats.answers == {"cancelled": 1}
    assert 0 < stats.tokens_out < 4000
    again = ask(impatient, text_part(QUESTION), max_tokens=5)
    assert again.usage.completion_tokens == 5


@pytest.mark.parametrize("waiting", [False, True])
def test_a_client_that_hangs_up_cancels_its_request(endless: Served, *, waiting: bool) -> None:
    body, health = json.dumps(asking(text_part(QUESTION), **LONG)), endless.vlm.health
    with ExitStack() as stack:
        if waiting:
            stack.enter_context(endless.held())
        with endless.connected() as connection:
            head = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, head)
            eventually(lambda: bool(health().waiting if waiting else health().state == "busy"))
        eventually(lambda: not health().waiting and not endless.serving.door.inside)
    eventually(lambda: health().state == "ready")
    stats = endless.vlm.stats()
    # Before the first token there is no answer, only an error that nobody hears.
    assert stats.answers.get("cancelled", 0) + stats.errors.get("cancelled", 0) == 1
    assert stats.tokens_out < 4000


def test_the_end_of_the_server_ends_streams_with_what_was_written(
    endless: Served, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokprune.serving.running.GRACE_S", 0.1)
    stream = ask(impatient, text_part(QUESTION), **LONG, stream=True)
    next(stream)
    endless.server.should_exit = True
    *_, last = stream
    assert last.tokprune["finish_reason"] == "cancelled"
    assert last.choices[0].finish_reason == "length"


def test_an_error_in_the_midst_of_a_stream_is_an_error_of_the_client(
    endless: Served, impatient: Any
) -> None:
    stream = ask(impatient, text_part(QUESTION), **LONG, stream=True)
    next(stream)
    endless.vlm.close()
    with pytest.raises(openai.APIError, match="was closed") as caught:
        list(stream)
    assert caught.value.body["code"] == "closed"


def test_health_tells_what_the_vlm_does(server: Served) -> None:
    status, body = server.get("/health")
    assert (status, json.loads(body)["status"]) == (200, "ready")
    with server.held():
        status, body = server.get("/health")
        assert (status, json.loads(body)["status"]) == (200, "busy")


def test_the_health_of_a_closed_vlm_is_503(demo_bundle: Path) -> None:
    with served(demo_bundle) as own:
        own.vlm.close()
        assert own.get("/health")[0] == 503
        status, body = own.post(b'{"messages": [{"role": "user", "content": "x"}]}')
        assert (status, body["error"]["code"]) == (503, "closed")


def test_metrics_count_requests_and_refusals(demo_bundle: Path) -> None:
    parser = pytest.importorskip(
        "prometheus_client.parser", reason="prometheus-client is not installed (extra metrics)"
    )
    with served(demo_bundle) as own:
        assert own.post(b'{"messages": [{"role": "user", "content": "x"}]}')[0] == 200
        assert own.post(b"nonsense")[0] == 400
        status, text = own.get("/metrics")
    assert status == 200
    families = {each.name: each for each in parser.text_string_to_metric_families(text.decode())}
    ended = {each.labels["outcome"]: each.value for each in families["tokprune_requests"].samples}
    assert ended == {"stop": 1, "request_invalid": 1}


def test_metrics_without_their_library_say_what_to_install(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    status, body = server.get("/metrics")
    assert status == 501
    assert "pip install 'tokprune[metrics]'" in json.loads(body)["error"]["message"]


def test_the_same_picture_is_not_encoded_again(client: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(noise(15)), "detail": "high"}}
    told = [ask(client, part, text_part(QUESTION)).tokprune for _ in range(2)]
    assert [each["encoder_runs"] > 0 for each in told] == [True, False]
