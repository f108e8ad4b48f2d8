"""Start the node, and bring it to the state active.

ros2 launch tokprune_ros tokprune_launch.py bundle:=/opt/bundles/demo image:=/camera/image_raw
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def generate_launch_description() -> LaunchDescription:
    """Describe the node and its first two transitions."""
    config = Path(get_package_share_directory("tokprune_ros")) / "config" / "tokprune.yaml"
    topic = LaunchConfiguration("image")
    node = LifecycleNode(
        package="tokprune_ros",
        executable="ask_node",
        name="tokprune",
        namespace="",
        output="screen",
        parameters=[LaunchConfiguration("config"), {"bundle": LaunchConfiguration("bundle")}],
        remappings=[("image", topic), ("image/compressed", [topic, "/compressed"])],
    )

    def change(transition: int) -> EmitEvent:
        matcher = matches_action(node)
        event = ChangeState(lifecycle_node_matcher=matcher, transition_id=transition)
        return EmitEvent(event=event)

    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",  # not after it was deactivated
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="the exported folder"),
            DeclareLaunchArgument("image", default_value="/camera/image_raw"),
            DeclareLaunchArgument("config", default_value=str(config)),
            RegisterEventHandler(activate),
            node,
            change(Transition.TRANSITION_CONFIGURE),
        ]
    )
