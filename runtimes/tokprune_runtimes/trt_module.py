"""The Python module of TensorRT or TensorRT-RTX, which have one API, and its one logger."""

import importlib
import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from tokprune_runtimes.errors import EngineUnavailable

Kind = Literal["tensorrt", "tensorrt-rtx"]
TrtModule: TypeAlias = Any  # `tensorrt` or `tensorrt_rtx`; neither has type stubs

_MODULES: dict[Kind, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL: dict[Kind, str] = {
    "tensorrt": "pip install 'tokprune[tensorrt]' (on Jetson it comes with JetPack: make the "
    "environment with `python -m venv --system-site-packages`)",
    "tensorrt-rtx": "pip install 'tokprune[tensorrt-rtx]'",
}
_log = logging.getLogger("tokprune.tensorrt")


def load_module(kind: Kind) -> TrtModule:
    """Import it.

    Raises:
        EngineUnavailable: it is not installed, or its libraries do not load.
    """
    try:
        module: Any = importlib.import_module(_MODULES[kind])
        if not hasattr(module, "Builder"):  # a folder of this name, or half a package
            raise ImportError(f"{module} has no Builder")
    except (ImportError, OSError, RuntimeError) as error:
        # Besides ImportError: the placeholder of tensorrt-cu13-libs on PyPI, and missing libraries.
        message = f"The {kind} engine is not installed ({error}): {_INSTALL[kind]}"
        raise EngineUnavailable(message) from error
    return module


def engine_version(kind: Kind) -> str:
    """Return the version of the installed engine, such as "10.3.0".

    Raises:
        EngineUnavailable: it is not installed.
    """
    return str(load_module(kind).__version__)


class Message(NamedTuple):
    """One line that TensorRT logged."""

    severity: Literal["error", "warning"]
    text: str


class Listeners:
    """Hands every message to whoever listens, and to `logging`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # TensorRT logs from threads of its own
        self._lists: list[list[Message]] = []

    def hear(self, message: Message) -> None:
        """Pass one message on."""
        with self._lock:
            for heard in self._lists:
                heard.append(message)
        _log.log(logging.DEBUG if self._lists else logging.WARNING, "%s", message.text)

    @contextmanager
    def listening(self) -> Generator[list[Message], None, None]:
        """Yield a list that fills with what is logged meanwhile."""
        heard: list[Message] = []
        with self._lock:
            self._lists.append(heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._lists = [other for other in self._lists if other is not heard]


class Logger(NamedTuple):
    """What TensorRT is given, and how to hear it."""

    trt: Any
    listeners: Listeners


@cache  # TensorRT keeps the first logger that a process gives it, and warns about others
def logger_of(trt: TrtModule) -> Logger:
    """Return the process's logger of this module."""
    listeners = Listeners()

    class ForwardingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants this call, not super()'s

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                listeners.hear(Message("error", msg.strip()))
            elif int(severity) <= int(trt.ILogger.WARNING):
                listeners.hear(Message("warning", msg.strip()))

    return Logger(ForwardingLogger(), listeners)


def errors_in(heard: list[Message]) -> str:
    """Join the errors among the messages, each once; say so where there are none."""
    errors = dict.fromkeys(message.text for message in heard if message.severity == "error")
    return "\n".join(errors) or "(it logged no error)"
