"""The ROS 2 node against tests/fake_ros.py, from configure to shutdown."""

import importlib
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_ros
import pytest
from fake_ros import LifecycleNode, MultiThreadedExecutor, Transition
from fake_ros_actions import GoalHandle, wait_for
from fake_ros_messages import KNOWN
from PIL import Image as Pillow
from ros_pictures import SCENE, Header, Publisher, first_picture, raw, shot, slow_words
from tokprune_ros.diagnostics import ERROR, OK, WARN
from tokprune_ros.images import rgb_of

DESCRIBE = "describe the image."


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, demo_bundle: Path) -> Iterator[Callable[..., Any]]:
    """Start a node with parameters, as a launch file does."""
    for name, module in fake_ros.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tokprune_ros.node", raising=False)
    module = importlib.import_module("tokprune_ros.node")
    monkeypatch.setattr(LifecycleNode, "nodes", [])

    def make(**parameters: Any) -> Any:
        given = {"bundle": str(demo_bundle), **parameters}
        monkeypatch.setattr(LifecycleNode, "overrides", given)
        return module.AskNode()

    yield make
    for node in LifecycleNode.nodes:
        node.release()  # pyright: ignore
        node.pool.shutdown()
    monkeypatch.delitem(sys.modules, "tokprune_ros.node")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_words(monkeypatch)


def activated(node: Any) -> Any:
    for transition in ("configure", "activate"):
        assert node.change(transition) is Transition.SUCCESS, node.get_logger().lines
    return node


def publishing(node: Any) -> Publisher:
    return Publisher(node.subscriptions[0].callback)


def see_first(node: Any) -> None:
    first_picture(node._asking)


@pytest.mark.demo
@pytest.mark.torch
def test_a_goal_is_answered_from_configure_to_cleanup(start: Callable[..., Any]) -> None:
    node = activated(start())
    (server,), (pictures,) = node.servers, node.subscriptions
    assert (server.name, server.result_timeout) == ("~/ask", 10.0)
    assert isinstance(server.group, fake_ros.ReentrantCallbackGroup)
    assert pictures.topic_name == "/image"
    assert pictures.qos.depth == 1
    assert pictures.qos.reliability is fake_ros.ReliabilityPolicy.BEST_EFFORT
    assert pictures.overriding is not None
    with publishing(node) as camera:
        see_first(node)
        handle = server.send(prompt=DESCRIBE, budget="0.9", max_new_tokens=100)
        result = handle.result.result(20.0)
        chosen = server.send(prompt=SCENE.question, choices=["red", SCENE.answer], encode="repeats")
        chosen = chosen.result.result(20.0)
        assert node.change("deactivate") is Transition.SUCCESS
    assert handle.status == "succeeded"
    assert len(handle.feedback) > 5
    assert all(later.startswith(text) for text, later in pairwise(handle.feedback))
    assert handle.feedback[-1] == result.text
    assert (result.finish_reason, result.error_code, result.choice) == ("stop", "", "")
    assert (result.kept, result.total) == (177, 196)
    assert (result.encode, result.encoded, result.encode_reason) == ("full", 196, "")
    assert (chosen.encode, chosen.total) == ("repeats", 196)
    assert chosen.encode_reason == f"{196 - chosen.encoded} of 196 tokens repeat others"
    assert 0 < result.header.stamp.sec <= camera.count
    assert 0 < result.ttft_ms / 1000 < result.frame_age_s + 0.1
    assert dict(zip(result.stages, result.stage_ms, strict=True))["prefill"] > 0
    assert chosen.choice == SCENE.answer
    assert sum(chosen.probabilities) == pytest.approx(1.0)
    assert node.subscriptions == []
    assert server.send(prompt="late") is None
    assert node.change("cleanup") is Transition.SUCCESS
    assert server.destroyed
    activated(node)  # and all over again
    with publishing(node):
        see_first(node)
        assert node.servers[1].send(prompt=SCENE.question).result.result(20.0).text == SCENE.answer


@pytest.mark.demo
@pytest.mark.torch
@pytest.mark.usefixtures("slow")
def test_a_client_that_cancels_gets_what_was_written(start: Callable[..., Any]) -> None:
    node = activated(start())
    with publishing(node):
        see_first(node)
        handle: GoalHandle = node.servers[0].send(prompt=DESCRIBE, budget="1.0")
        wait_for(lambda: bool(handle.feedback))
        # rclpy's own thread may come to the state long after the answer was cut.
        assert handle.cancel(delay_s=0.2)
        result = handle.result.result(10.0)
    assert handle.status == "canceled"
    assert (result.error_code, result.finish_reason) == ("cancelled", "cancelled")
    assert result.text.startswith(handle.feedback[0])


@pytest.mark.demo
@pytest.mark.torch
@pytest.mark.usefixtures("slow")
def test_failures_abort_the_goal_and_say_why(start: Callable[..., Any]) -> None:
    node = activated(start())
    lost = node.servers[0].send(prompt="what?")
    assert lost.result.result(10.0).error_code == "camera_lost"
    assert lost.status == "aborted"
    with publishing(node):
        see_first(node)
        late = node.servers[0].send(prompt=DESCRIBE, deadline_s=0.6)
        result = late.result.result(10.0)
        assert late.status == "aborted"
        assert (result.error_code, result.finish_reason) == ("deadline_exceeded", "deadline")
        assert result.text == late.feedback[-1]


@pytest.mark.demo
@pytest.mark.torch
@pytest.mark.usefixtures("slow")
def test_deactivating_aborts_what_runs_and_waits_for_it(start: Callable[..., Any]) -> None:
    node = activated(start())
    with publishing(node):
        see_first(node)
        handle = node.servers[0].send(prompt=DESCRIBE, budget="1.0")
        wait_for(lambda: bool(handle.feedback))
        assert node.change("deactivate") is Transition.SUCCESS
        assert handle.result.result(1.0).error_code == "cancelled"
    assert handle.status == "aborted"


@pytest.mark.demo
@pytest.mark.torch
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    ("parameters", "threads", "fates"),
    [
        ({}, 5, ["succeeded", None, None]),
        ({"max_waiting": 1}, 6, ["succeeded", "succeeded", None]),
        ({"admission": "latest"}, 7, ["succeeded", "aborted", "succeeded"]),
    ],
)
def test_goals_too_many_are_rejected_at_once(
    start: Callable[..., Any], parameters: dict[str, Any], threads: int, fates: list[Any]
) -> None:
    node = activated(start(**parameters))
    assert node.threads() == threads
    assert node.descriptors["max_waiting"].read_only
    with publishing(node):
        see_first(node)
        handles: list[Any] = []
        for _ in fates:
            handles.append(node.servers[0].send(prompt=DESCRIBE, max_new_tokens=8))
            wait_for(lambda: node._asking.situation().goals == goals_in(handles))
        results = [handle.result.result(20.0) for handle in handles if handle is not None]
    assert [handle and handle.status for handle in handles] == fates
    assert {result.error_code for result in results} == (
        {"", "busy"} if "aborted" in fates else {""}
    )


def goals_in(handles: list[Any]) -> int:
    return sum(handle is not None and not handle.result.done() for handle in handles)


@pytest.mark.demo
@pytest.mark.torch
def test_diagnostics_come_once_a_second_in_every_state(start: Callable[..., Any]) -> None:
    node = start(frozen_after_s=0.0)
    ((period_s, tick),) = node.timers
    (statuses,) = node.publishers
    assert (period_s, statuses.topic) == (1.0, "/diagnostics")

    def told() -> tuple[bytes, str]:
        tick()
        (status,) = statuses.sent[-1].status
        assert status.hardware_id == "tokprune"
        return status.level, status.message

    assert told() == (OK, "not configured")
    node.change("configure")
    assert told() == (OK, "not active")
    node.change("activate")
    assert told() == (WARN, "the camera is CONNECTING: no question is answered")
    with publishing(node):
        see_first(node)
        assert told() == (OK, "ready")
    time.sleep(0.1)  # or it would come too soon after the last one
    node.subscriptions[0].callback(raw("bayer_rggb8", 2, 2, bytes(4), 2, header=Header()))
    level, message = told()
    assert level == WARN
    assert "bayer_rggb8" in message
    node.publisher_count = 0  # nobody publishes any more
    told()
    wait_for(lambda: told()[0] == ERROR, 1.0)
    node.change("shutdown")
    assert told() == (OK, "not configured")


@pytest.mark.demo
@pytest.mark.torch
def test_compressed_pictures_are_asked_about(start: Callable[..., Any]) -> None:
    node = activated(start(compressed=True))
    kind = KNOWN["sensor_msgs/CompressedImage"]
    assert (node.subscriptions[0].kind, node.subscriptions[0].topic_name) == (
        kind,
        "/image/compressed",
    )

    def make(number: int) -> Any:
        file = BytesIO()
        plain = rgb_of(shot(number))
        Pillow.fromarray(plain).save(file, "PNG")
        data = array("B", file.getvalue())
        return kind(header=Header(), format="rgb8; png compressed bgr8", data=data)

    with Publisher(node.subscriptions[0].callback, make):
        see_first(node)
        handle = node.servers[0].send(prompt=SCENE.question)
        assert handle.result.result(20.0).text == SCENE.answer


def test_a_bundle_that_is_not_there_leaves_the_node_unconfigured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, module in fake_ros.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LifecycleNode, "overrides", {"bundle": str(tmp_path / "none")})
    monkeypatch.delitem(sys.modules, "tokprune_ros.node", raising=False)
    module = importlib.import_module("tokprune_ros.node")
    node = module.AskNode()
    assert node.change("configure") is Transition.FAILURE
    assert node.state == "unconfigured"
    assert "bundle_invalid" in node.get_logger().lines[-1]
    monkeypatch.setattr(LifecycleNode, "overrides", {"deadline_s": 5})
    with pytest.raises(TypeError, match="deadline_s"):
        module.AskNode()  # as rclpy tells who writes 5 for 5.0
    monkeypatch.setattr(LifecycleNode, "overrides", {})
    monkeypatch.setattr(LifecycleNode, "nodes", [])
    module.main()  # its spin ends as by Ctrl-C
    assert MultiThreadedExecutor.made[-1].num_threads == 5
    assert MultiThreadedExecutor.made[-1].is_shut
    (spun,) = LifecycleNode.nodes
    assert spun.destroyed
    monkeypatch.delitem(sys.modules, "tokprune_ros.node")
