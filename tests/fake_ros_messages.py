"""The messages and the action that samples/ros2 uses, as classes that check what they are given."""

from pathlib import Path

from ros_definitions import action_parts, fields_of, message_class

ACTION = Path(__file__).parents[1] / "samples/ros2/tokprune_msgs/action/Ask.action"
MESSAGES = {
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "sensor_msgs/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\n"
    "uint8 is_bigendian\nuint32 step\nuint8[] data",
    "sensor_msgs/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data",
    "diagnostic_msgs/KeyValue": "string key\nstring value",
    "diagnostic_msgs/DiagnosticStatus": "byte level\nstring name\nstring message\n"
    "string hardware_id\ndiagnostic_msgs/KeyValue[] values",
    "diagnostic_msgs/DiagnosticArray": "std_msgs/Header header\n"
    "diagnostic_msgs/DiagnosticStatus[] status",
    "rcl_interfaces/ParameterDescriptor": "string description\nbool read_only",
}
KNOWN: dict[str, type] = {}
for _name, _text in MESSAGES.items():
    KNOWN[_name] = message_class(_name.partition("/")[2], fields_of(_text), KNOWN)


class Ask:
    """tokprune_msgs/action/Ask."""

    Goal, Result, Feedback = (
        message_class(f"Ask_{part}", fields, KNOWN)
        for part, fields in zip(
            ("Goal", "Result", "Feedback"), action_parts(ACTION.read_text()), strict=True
        )
    )
