"""Message and action definitions of ROS 2, read as strictly as rosidl does, as Python classes.

The classes take what rosidl's generated ones take in a debug build: known fields, of the right
type and range. So a float64 that is given an int, which ROS refuses, is refused here too.
"""

import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FIELD_NAME = re.compile(r"(?!.*__)(?!.*_$)[a-z][a-z0-9_]*")  # rosidl_adapter.parser
FIELD = re.compile(r"(?P<kind>[A-Za-z0-9_/]+)(?P<array>\[\d*\])? +(?P<name>\S+)")
INTEGERS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
PLAIN: dict[str, tuple[type, Any]] = {
    "bool": (bool, False),
    "byte": (bytes, b"\0"),
    "float32": (float, 0.0),
    "float64": (float, 0.0),
    "string": (str, ""),
}


@dataclass(frozen=True)
class Field:
    name: str
    kind: str
    is_array: bool


def fields_of(text: str) -> list[Field]:
    """Read one part of a definition."""
    fields: list[Field] = []
    for line in text.splitlines():
        code = line.partition("#")[0].strip()
        if not code or "=" in code:  # constants are for the class that knows their values
            continue
        found = FIELD.fullmatch(code)
        if found is None or not FIELD_NAME.fullmatch(found["name"]):
            raise ValueError(f"Not a field: {line!r}")
        if found["name"] in [field.name for field in fields]:
            raise ValueError(f"A field twice: {line!r}")
        if (
            found["kind"] not in PLAIN
            and found["kind"] not in INTEGERS
            and "/" not in found["kind"]
        ):
            raise ValueError(f"Unknown type: {line!r}")
        fields.append(Field(found["name"], found["kind"], found["array"] is not None))
    return fields


def action_parts(text: str) -> tuple[list[Field], list[Field], list[Field]]:
    """Read an action: goal, result, feedback."""
    parts = re.split(r"^---\s*$", text, flags=re.MULTILINE)
    if len(parts) != 3:
        raise ValueError(f"An action has three parts, got {len(parts)}")
    goal, result, feedback = (fields_of(part) for part in parts)
    return goal, result, feedback


def message_class(name: str, fields: list[Field], known: Mapping[str, type]) -> type:
    """Make the class of a message.

    Args:
        name: of the class.
        fields: as `fields_of` reads them.
        known: classes of the messages within, by "package/Name".
    """
    checks = {field.name: (field, _check_of(field, known)) for field in fields}

    def begin(self: Any, **given: Any) -> None:
        for field, _ in checks.values():
            object.__setattr__(self, field.name, _default(field, known))
        for key, value in given.items():
            setattr(self, key, value)

    def put(self: Any, key: str, value: Any) -> None:
        if key not in checks:
            raise AttributeError(f"{name} has no field {key!r}")
        field, check = checks[key]
        if field.is_array and field.kind == "uint8":
            fits = isinstance(value, (bytes, bytearray, array))
        elif field.is_array:
            fits = isinstance(value, (list, tuple)) and all(check(item) for item in value)
        else:
            fits = check(value)
        assert fits, f"{name}.{key} takes {field.kind}, got {value!r:.200}"
        object.__setattr__(self, key, value)

    return type(name, (), {"__slots__": tuple(checks), "__init__": begin, "__setattr__": put})


def _check_of(field: Field, known: Mapping[str, type]) -> Callable[[Any], bool]:
    if field.kind in INTEGERS:
        sign, bits = INTEGERS[field.kind]
        low, high = (0, 1 << bits) if sign else (-(1 << bits - 1), 1 << bits - 1)
        return lambda value: type(value) is int and low <= value < high
    if field.kind == "byte":
        return lambda value: isinstance(value, bytes) and len(value) == 1
    wanted = PLAIN[field.kind][0] if field.kind in PLAIN else known[field.kind]
    return lambda value: isinstance(value, wanted)


def _default(field: Field, known: Mapping[str, type]) -> Any:
    if field.is_array:
        return array("B") if field.kind == "uint8" else []
    if field.kind in INTEGERS:
        return 0
    return PLAIN[field.kind][1] if field.kind in PLAIN else known[field.kind]()
