"""rclpy's action server without ROS, and its only client: the test. Part of fake_ros.py."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from threading import RLock
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from fake_ros_messages import Ask

GoalResponse = Enum("GoalResponse", "REJECT ACCEPT")
CancelResponse = Enum("CancelResponse", "REJECT ACCEPT")
GOAL_STATES = {  # rcl_action's goal_state_machine.c
    ("accepted", "execute"): "executing",
    ("accepted", "cancel"): "canceling",
    ("executing", "cancel"): "canceling",
    ("executing", "succeed"): "succeeded",
    ("executing", "abort"): "aborted",
    ("canceling", "succeed"): "succeeded",
    ("canceling", "abort"): "aborted",
    ("canceling", "canceled"): "canceled",
}


class RCLError(Exception):
    pass


class Node(Protocol):
    pool: ThreadPoolExecutor
    servers: "list[ActionServer]"


class GoalId(NamedTuple):
    uuid: bytes


class GoalHandle:
    """rclpy's ServerGoalHandle, and what its client sees."""

    def __init__(self, server: "ActionServer", request: Any) -> None:
        self.request = request
        self.goal_id = GoalId(uuid4().bytes)
        self.feedback: list[str] = []
        self.status = "accepted"
        self.result: Future[Any] = Future()
        self._server = server
        self._lock = RLock()

    @property
    def is_active(self) -> bool:
        return self.status in ("accepted", "executing", "canceling")

    @property
    def is_cancel_requested(self) -> bool:
        return self.status == "canceling"

    def publish_feedback(self, feedback: Any) -> None:
        if not isinstance(feedback, Ask.Feedback):
            raise TypeError
        self.feedback.append(feedback.partial_text)

    def succeed(self) -> None:
        self.step("succeed")

    def abort(self) -> None:
        self.step("abort")

    def canceled(self) -> None:
        self.step("canceled")

    def step(self, event: str) -> None:
        with self._lock:
            if (self.status, event) not in GOAL_STATES:
                raise RCLError(f"goal: {event} while {self.status}")
            self.status = GOAL_STATES[self.status, event]

    def cancel(self, delay_s: float = 0.0) -> bool:
        """Be the client that cancels; the state follows the callback, as in rclpy."""
        if self._server.cancel_callback(self) is not CancelResponse.ACCEPT:
            return False
        time.sleep(delay_s)
        try:
            self.step("cancel")
        except RCLError:
            return False
        return True


class ActionServer:
    def __init__(
        self,
        node: Node,
        action_type: type,
        action_name: str,
        execute_callback: Callable[[Any], Any],
        *,
        callback_group: Any = None,
        goal_callback: Callable[[Any], Any] = lambda _: GoalResponse.ACCEPT,
        cancel_callback: Callable[[Any], Any] = lambda _: CancelResponse.REJECT,
        result_timeout: float = 900,
    ) -> None:
        assert action_type is Ask
        self.name = action_name
        self.group = callback_group
        self.result_timeout = result_timeout
        self.cancel_callback = cancel_callback
        self.destroyed = False
        self._goal_callback, self._execute_callback = goal_callback, execute_callback
        self._pool = node.pool
        node.servers.append(self)

    def send(self, **goal: Any) -> GoalHandle | None:
        """Be a client with a goal; None: it was rejected."""
        request = Ask.Goal(**goal)
        response = self._pool.submit(self._goal_callback, request).result(10.0)
        assert isinstance(response, GoalResponse)
        if response is GoalResponse.REJECT:
            return None
        handle = GoalHandle(self, request)
        self._pool.submit(self._execute, handle)
        return handle

    def _execute(self, handle: GoalHandle) -> None:
        if not handle.is_cancel_requested:
            handle.step("execute")
        try:
            result = self._execute_callback(handle)
            assert isinstance(result, Ask.Result)
        except BaseException as error:  # rclpy would print it, and give an empty result
            handle.result.set_exception(error)
            return
        assert not handle.is_active, "the goal's state was not set"
        handle.result.set_result(result)

    def destroy(self) -> None:
        self.destroyed = True


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come to be in time"
        time.sleep(0.005)
