"""What a device has made of a bundle, as tables and JSON: `inspect` and `verify` show it."""

from typing import Any

from rich.console import Console
from rich.table import Table

from tokprune.bundle import Bundle
from tokprune.engines.states import EngineState, list_engines
from tokprune.timing.calibration_states import CalibrationState, list_calibrations

_COLOURS = {"fresh": "green", "unchecked": "yellow"}


def device_json(bundle: Bundle | None) -> dict[str, Any]:
    """Return engines and calibrations. Of a bundle that is not as exported none can be fresh."""
    if bundle is None:
        return {"engines": [], "calibrations": []}
    return {
        "engines": [state.as_json() for state in list_engines(bundle)],
        "calibrations": [state.as_json() for state in list_calibrations(bundle)],
    }


def print_device(bundle: Bundle, console: Console) -> None:
    """Print what there is."""
    if engines := list_engines(bundle):
        console.print(_engines(engines))
    if calibrations := list_calibrations(bundle):
        console.print(_calibrations(calibrations))


def _engines(states: list[EngineState]) -> Table:
    table = Table("engine", "for", "bytes", "state", "why", title="Engines of this device")
    for engine in states:
        table.add_row(
            engine.name,
            " ".join(filter(None, (engine.target, engine.kind, engine.version, engine.llm_form))),
            "" if engine.bytes is None else str(engine.bytes),
            _coloured(engine.state),
            engine.reason or "",
        )
    return table


def _calibrations(states: list[CalibrationState]) -> Table:
    table = Table("calibration", "threads", "measured", "state", "why")
    for state in states:
        table.add_row(
            state.path.parent.name,
            "engine's choice" if state.threads is None else str(state.threads),
            state.date or "",
            _coloured(state.state),
            state.reason or "",
        )
    return table


def _coloured(state: str) -> str:
    return f"[{_COLOURS.get(state, 'red')}]{state}[/]"
