"""Text that may hold a password, and is shown by nothing but a call of `reveal`."""

import hmac
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, TypeVar, final

T = TypeVar("T")
HIDDEN: Final = "…"


@final
class Secret:
    """An address as the user gave it. Shows as `Secret(…)`; cannot be pickled or changed."""

    __slots__ = ("reveal",)
    reveal: Callable[[], str]  # in a closure: no attribute of any object is the text

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "reveal", lambda: text)

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __hash__(self) -> int:
        return hash(self.reveal())

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Secret":
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("A Secret cannot be changed: make a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("A Secret cannot be changed: make a new one")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A Secret is not written anywhere: keep the source's text where it was")


class Veiled(Generic[T]):
    """Holds an object of another library that shows its address, as PyAV's containers do."""

    __slots__ = ("get",)

    def __init__(self, thing: T) -> None:
        self.get: Callable[[], T] = lambda: thing

    def __repr__(self) -> str:
        return f"Veiled({HIDDEN})"


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode(errors="surrogatepass")
