"""What checks shapes and types of our functions in the tests: beartype, as far as it can."""

import sys
from collections.abc import Callable
from typing import Any

from beartype import beartype

# Before Python 3.11, beartype does not know `**options: Unpack[SomeTypedDict]`.
_KNOWS_UNPACK = sys.version_info >= (3, 11)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result at every call."""
    if not _KNOWS_UNPACK and any("Unpack[" in str(hint) for hint in _hints(function)):
        return function
    return beartype(function)


def _hints(function: Callable[..., Any]) -> list[Any]:
    return list(getattr(function, "__annotations__", {}).values())
