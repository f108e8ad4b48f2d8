"""TensorRT's timing cache: a later build of a similar graph measures less."""

import logging
from pathlib import Path
from typing import Any

from tokprune_runtimes.engine_files import replace_file

_log = logging.getLogger("tokprune.tensorrt")


def use_timing_cache(config: Any, path: Path) -> str | None:
    """Give the builder what is in the file; return why not, if it cannot be used.

    A broken cache, or one of another GPU or version, costs time and nothing else: it is replaced.
    """
    fault = None
    if path.exists():
        fault = _use(config, path)
        if fault is None:
            return None
        fault = f"The timing cache {path} is not used, and will be replaced: {fault}"
        _log.warning("%s", fault)
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return fault


def _use(config: Any, path: Path) -> str | None:
    try:
        timings = config.create_timing_cache(path.read_bytes())
        if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
            return "it is broken, or of another GPU or version"
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # as pybind11 raises them
        return str(error)
    return None


def keep_timing_cache(config: Any, path: Path) -> str | None:
    """Write what the builder measured; return why not, if it cannot be written."""
    timings = config.get_timing_cache()
    if timings is None:
        return None
    try:
        with memoryview(timings.serialize()) as data:
            replace_file(path, bytes(data))
    except OSError as error:  # the engine is built: do not lose it for this
        fault = f"The timing cache {path} was not written: {error}"
        _log.warning("%s", fault)
        return fault
    return None
