"""Seeded damage to bytes and JSON."""

import random
from typing import Any

NUMBERS: list[Any] = [0, -1, 2**31, 2**63, 2**64, 10**400, 1.5, 1e308, True, None, "7", [], {}]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes that differ from `data`."""
    while True:
        result = chance.choice(_DAMAGES)(bytearray(data), chance)
        if result != data:
            return bytes(result)


def _flip_bits(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(min(len(data), chance.choice([1, 1, 2, 8, 64]))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _set_bytes(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(min(len(data), chance.choice([1, 2, 4]))):
        data[chance.randrange(len(data))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    return data


def _truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data) + 1)]


def _insert(data: bytearray, chance: random.Random) -> bytearray:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice([1, 2, 4, 100])) + data[at:]


def _remove(data: bytearray, chance: random.Random) -> bytearray:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice([1, 2, 4, 100]) :]


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    at, size = chance.randrange(len(data) + 1), chance.choice([1, 16, 256])
    return data[: at + size] + data[at:]


def _zero(data: bytearray, chance: random.Random) -> bytearray:
    at = chance.randrange(len(data) + 1)
    size = min(chance.choice([1, 16, 4096]), len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


_DAMAGES = [_flip_bits, _set_bytes, _truncate, _insert, _remove, _repeat, _zero]


def inner_nodes(raw: Any) -> "list[dict[str, Any] | list[Any]]":
    """Return every object and array of a JSON value."""
    found: list[Any] = []
    todo = [raw]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            found.append(node)
            todo += node.values()
        elif isinstance(node, list):
            found.append(node)
            todo += node
    return found


def edit_json(raw: Any, chance: random.Random) -> str:
    """Change one thing in a JSON value, and return what: a word that tests may read."""
    node = chance.choice([node for node in inner_nodes(raw) if node])
    key: Any = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
    edit = chance.choice(["remove", "rename", "number", "nest", "swap"])
    if edit == "rename" and isinstance(node, dict):
        node[chance.choice([f"{key}_", key[:-1], key.upper(), "", "\u202e"])] = node.pop(key)
    elif edit == "nest":
        value: Any = node[key]
        for _ in range(chance.choice([1, 50, 900])):
            value = [value] if chance.random() < 0.5 else {"a": value}
        node[key] = value
    elif edit == "swap":
        other: Any = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]
    elif edit == "number":
        node[key] = chance.choice(NUMBERS)
    else:
        del node[key]
    return edit
