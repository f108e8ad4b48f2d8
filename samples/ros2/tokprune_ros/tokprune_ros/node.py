"""The ROS 2 node: a thin shell around asking.py, for rclpy 3.3 (Humble) and 7.1 (Jazzy).

A goal's callback waits in a thread of the executor's pool. (As a coroutine it would be polled
without a pause: these versions of rclpy run a task that awaits again and again.)
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import time
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tokprune_msgs.action import Ask

from tokprune import TokpruneError
from tokprune_ros.asking import Asking, Outcome
from tokprune_ros.diagnostics import report
from tokprune_ros.images import decoded, rgb_of
from tokprune_ros.messages import fill_result, fill_status, question_of
from tokprune_ros.settings import Settings, defaults, most_goals

FIXED = ("admission", "max_waiting")  # the executor's threads are counted by them
OTHER_THREADS = 4  # beside goals: pictures, diagnostics, lifecycle and parameters, one to spare
CANCEL_S = 1.0  # that rclpy may take from the cancel callback to the goal's state


class AskNode(LifecycleNode):
    """Loads on configure, warms up on activate, answers while active."""

    def __init__(self) -> None:
        super().__init__("tokprune")
        for name, value in defaults().items():
            self.declare_parameter(name, value, ParameterDescriptor(read_only=name in FIXED))
        self._asking: Asking[Header] | None = None
        self._server: ActionServer | None = None
        self._pictures: Any = None
        self._cancelling: set[bytes] = set()
        self._refused = 0
        self._statuses = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0, self._diagnose, MutuallyExclusiveCallbackGroup())

    def threads(self) -> int:
        """Return how many threads the executor needs."""
        values = self._parameters_now()
        return OTHER_THREADS + most_goals(values["admission"], values["max_waiting"])

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle, and offer the action."""
        try:
            settings = Settings.of(self._parameters_now())
            self._asking = Asking(settings)
        except TokpruneError as error:
            return self._failed(error)
        self._server = ActionServer(
            self,
            Ask,
            "~/ask",
            self._execute,
            callback_group=ReentrantCallbackGroup(),
            goal_callback=self._admit,
            cancel_callback=self._cancel,
            result_timeout=settings.result_timeout_s,
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Warm up, then take pictures and goals."""
        assert self._asking is not None
        try:
            self._asking.activate()
        except TokpruneError as error:
            return self._failed(error)
        kind, topic = (Image, "image")
        if self._asking.settings.compressed:
            kind, topic = CompressedImage, "image/compressed"
        self._pictures = self.create_subscription(
            kind,
            topic,
            self._see,
            QoSProfile(
                history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
            ),
            callback_group=MutuallyExclusiveCallbackGroup(),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel what runs."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the bundle."""
        self.release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel what runs, and free everything."""
        self.release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything: the node can be configured again."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """Stop and free everything, in whatever state."""
        self._stop()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.close()
        if self._server is not None:
            self._server.destroy()
            self._server = None

    def _stop(self) -> None:
        if self._pictures is not None:
            self.destroy_subscription(self._pictures)
            self._pictures = None
        if self._asking is not None and not self._asking.deactivate():
            self.get_logger().error("A goal did not end within 10 s of being cancelled")

    def _parameters_now(self) -> dict[str, Any]:
        return {name: self.get_parameter(name).value for name in defaults()}

    def _failed(self, error: TokpruneError) -> TransitionCallbackReturn:
        self.get_logger().error(f"{error.code}: {error}")
        return TransitionCallbackReturn.FAILURE

    def _see(self, message: Any) -> None:
        asking = self._asking
        if asking is not None:
            decode = decoded if asking.settings.compressed else rgb_of
            asking.see(message.header, partial(decode, message))

    def _admit(self, goal: Any) -> GoalResponse:
        asking = self._asking
        if asking is not None and asking.has_room:
            return GoalResponse.ACCEPT
        self.get_logger().warning("A goal is rejected: the node is busy or not active")
        return GoalResponse.REJECT

    def _cancel(self, handle: Any) -> CancelResponse:
        goal = bytes(handle.goal_id.uuid)
        self._cancelling.add(goal)
        if self._asking is not None:
            self._asking.cancel(goal)
        return CancelResponse.ACCEPT

    def _execute(self, handle: Any) -> Any:
        def give(written: str) -> None:
            handle.publish_feedback(Ask.Feedback(partial_text=written))

        goal, asking = bytes(handle.goal_id.uuid), self._asking
        if asking is None:
            outcome: Outcome[Header] = Outcome(error_code="inactive", error="The node was shut")
        else:
            outcome = asking.ask(goal, question_of(handle.request), give)
        if not outcome.error_code:
            handle.succeed()
        elif goal in self._cancelling and self._is_cancelling(handle):
            handle.canceled()
        else:
            handle.abort()
        self._cancelling.discard(goal)
        return fill_result(Ask.Result(), outcome)

    def _is_cancelling(self, handle: Any) -> bool:
        """Wait until rclpy knows of a cancellation that `_cancel` has accepted."""
        until_s = time.monotonic() + CANCEL_S
        while not handle.is_cancel_requested and time.monotonic() < until_s:
            time.sleep(0.005)
        return handle.is_cancel_requested

    def _diagnose(self) -> None:
        asking, pictures = self._asking, self._pictures
        if asking is not None and pictures is not None:
            publishers = self.count_publishers(pictures.topic_name)
            if not publishers:
                asking.unplugged()
        now = asking.situation() if asking is not None else None
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        made = report(now, self._refused)
        self._refused = now.refused_pictures if now is not None else 0
        message.status.append(fill_status(DiagnosticStatus(), KeyValue, made, self.get_name()))
        self._statuses.publish(message)


def main(args: list[str] | None = None) -> None:
    """Run the node until Ctrl-C."""
    rclpy.init(args=args)
    node = AskNode()
    executor = MultiThreadedExecutor(num_threads=node.threads())
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.release()  # first: goals that wait would keep the executor from ending
        executor.shutdown(timeout_sec=5.0)
        node.destroy_node()
        if rclpy.ok():
            rclpy.shutdown()


if __name__ == "__main__":
    main()
