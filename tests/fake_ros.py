"""As much of ROS 2 as samples/ros2 uses, without ROS: what rclpy 3.3 and 7.1 do, in Python alone.

Names, arguments and the states of goals and nodes are rclpy's; what it does not have, this has not.
Nothing goes over a network: a test publishes by calling, and is the only client.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

from fake_ros_actions import ActionServer, CancelResponse, GoalResponse
from fake_ros_messages import KNOWN, Ask

Transition = Enum("Transition", "SUCCESS FAILURE ERROR")
HistoryPolicy = Enum("HistoryPolicy", "KEEP_LAST KEEP_ALL")
ReliabilityPolicy = Enum("ReliabilityPolicy", "RELIABLE BEST_EFFORT")


class ExternalShutdownException(Exception):
    pass


class LifecycleState(NamedTuple):
    label: str
    state_id: int


class QoSProfile:
    def __init__(self, history: Any = None, depth: Any = None, reliability: Any = None) -> None:
        self.history, self.depth, self.reliability = history, depth, reliability


class QoSOverridingOptions:
    @classmethod
    def with_default_policies(cls, *, callback: Any = None, entity_id: Any = None) -> Any:
        return cls()


class ReentrantCallbackGroup:
    pass


class MutuallyExclusiveCallbackGroup:
    pass


class Publisher:
    def __init__(self, kind: type, topic: str) -> None:
        self.kind, self.topic = kind, topic
        self.sent: list[Any] = []

    def publish(self, message: Any) -> None:
        assert isinstance(message, self.kind)
        self.sent.append(message)


class Subscription(NamedTuple):
    kind: type
    topic_name: str
    callback: Callable[[Any], None]
    qos: QoSProfile
    group: Any
    overriding: Any


class Parameter(NamedTuple):
    name: str
    value: Any


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str) -> None:
        self.lines.append(text)

    warning = info = error


class _Now:
    def now(self) -> "_Now":
        return self

    def to_msg(self) -> Any:
        return KNOWN["builtin_interfaces/Time"](sec=int(time.time()), nanosec=0)


class LifecycleNode:
    """rclpy.lifecycle.LifecycleNode, its timers called by hand."""

    overrides: dict[str, Any] = {}  # noqa: RUF012 - as a launch file gives them
    nodes: list["LifecycleNode"] = []  # noqa: RUF012

    def __init__(self, node_name: str, *, enable_communication_interface: bool = True) -> None:
        self.state = "unconfigured"
        self.pool = ThreadPoolExecutor(16)
        self.servers: list[ActionServer] = []
        self.subscriptions: list[Subscription] = []
        self.publishers: list[Publisher] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.descriptors: dict[str, Any] = {}
        self.publisher_count = 1
        self.destroyed = False
        self._name, self._log = node_name, _Log()
        self._declared: dict[str, Any] = {}
        self.nodes.append(self)

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> _Log:
        return self._log

    def get_clock(self) -> _Now:
        return _Now()

    def declare_parameter(self, name: str, value: Any, descriptor: Any = None) -> Parameter:
        assert isinstance(value, (bool, int, float, str, list))
        assert value != [], "rclpy cannot tell the type of an empty list"
        given = self.overrides.get(name, value)
        if type(given) is not type(value):
            raise TypeError(f"{name}: {type(given)}, expected {type(value)}")  # as rclpy does
        self._declared[name], self.descriptors[name] = given, descriptor
        return Parameter(name, given)

    def get_parameter(self, name: str) -> Parameter:
        return Parameter(name, self._declared[name])

    def create_publisher(self, msg_type: type, topic: str, qos_profile: Any) -> Publisher:
        self.publishers.append(Publisher(msg_type, topic))
        return self.publishers[-1]

    def create_timer(
        self, timer_period_sec: float, callback: Callable[[], None], callback_group: Any = None
    ) -> None:
        self.timers.append((timer_period_sec, callback))

    def create_subscription(
        self,
        msg_type: type,
        topic: str,
        callback: Callable[[Any], None],
        qos_profile: QoSProfile,
        *,
        callback_group: Any = None,
        qos_overriding_options: Any = None,
    ) -> Subscription:
        made = Subscription(
            msg_type, f"/{topic}", callback, qos_profile, callback_group, qos_overriding_options
        )
        self.subscriptions.append(made)
        return made

    def destroy_subscription(self, subscription: Subscription) -> bool:
        self.subscriptions.remove(subscription)
        return True

    def destroy_node(self) -> None:
        self.destroyed = True
        self.pool.shutdown()

    def count_publishers(self, topic_name: str) -> int:
        assert topic_name.startswith("/")
        return self.publisher_count

    def on_configure(self, state: LifecycleState) -> Transition:
        return Transition.SUCCESS

    on_activate = on_deactivate = on_cleanup = on_shutdown = on_error = on_configure

    def change(self, transition: str) -> Transition:
        """Take a transition, as `ros2 lifecycle set` does."""
        starts = {"configure": "unconfigured", "activate": "inactive", "deactivate": "active",
                  "cleanup": "inactive", "shutdown": self.state}  # fmt: skip
        ends = {"configure": "inactive", "activate": "active", "deactivate": "inactive",
                "cleanup": "unconfigured", "shutdown": "finalized"}  # fmt: skip
        assert self.state == starts[transition], f"{transition} while {self.state}"
        before = LifecycleState(self.state, 0)
        try:
            made = self.pool.submit(getattr(self, f"on_{transition}"), before).result(60.0)
            assert isinstance(made, Transition)
        except Exception:
            made = Transition.ERROR
        if made is Transition.SUCCESS:
            self.state = ends[transition]
        elif made is Transition.ERROR:
            cleared = self.on_error(before) is Transition.SUCCESS
            self.state = "unconfigured" if cleared else "finalized"
        return made


class MultiThreadedExecutor:
    """Its `spin` ends at once, as by Ctrl-C."""

    made: list["MultiThreadedExecutor"] = []  # noqa: RUF012

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads
        self.nodes: list[LifecycleNode] = []
        self.is_shut = False
        self.made.append(self)

    def add_node(self, node: LifecycleNode) -> bool:
        self.nodes.append(node)
        return True

    def spin(self) -> None:
        raise KeyboardInterrupt

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        self.is_shut = True
        return True


def modules() -> dict[str, ModuleType]:
    """Return what `import` shall find, by name."""
    running: set[str] = set()
    parts: dict[str, dict[str, Any]] = {
        "rclpy": {
            "init": lambda *, args=None: running.add("context"),
            "ok": lambda: bool(running),
            "shutdown": running.clear,
        },
        "rclpy.action": _named(ActionServer, CancelResponse, GoalResponse),
        "rclpy.callback_groups": _named(MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup),
        "rclpy.executors": _named(ExternalShutdownException, MultiThreadedExecutor),
        "rclpy.lifecycle": {
            **_named(LifecycleNode, LifecycleState),
            "TransitionCallbackReturn": Transition,
        },
        "rclpy.qos": _named(HistoryPolicy, QoSProfile, ReliabilityPolicy),
        "rclpy.qos_overriding_options": _named(QoSOverridingOptions),
        "tokprune_msgs.action": _named(Ask),
    }
    for name, made in KNOWN.items():
        package, _, kind = name.partition("/")
        parts.setdefault(f"{package}.msg", {})[kind] = made
    found: dict[str, ModuleType] = {}
    for path, names in parts.items():
        package = path.partition(".")[0]
        found.setdefault(package, ModuleType(package))
        found.setdefault(path, ModuleType(path)).__dict__.update(names)
    return found


def _named(*things: Any) -> dict[str, Any]:
    return {thing.__name__: thing for thing in things}
