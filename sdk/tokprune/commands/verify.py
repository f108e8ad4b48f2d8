"""`tokprune verify`: every file of a bundle against its manifest."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tokprune.bundle import VerifyReport, open_bundle, verify_bundle
from tokprune.commands.build import engine_table, engines_json
from tokprune.engines.states import EngineState, list_engines


@dataclass(frozen=True)
class Verify:
    """Check every file of a bundle against its manifest."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run_verify(command: Verify) -> int:
    """Run `tokprune verify`."""
    report = verify_bundle(command.bundle)
    engines = _engines(command.bundle, report)
    if command.json:
        print(json.dumps({**report.as_json(), "engines": engines_json(engines)}))
    else:
        table = Table("file", "bytes", "status", title=str(command.bundle))
        for row in report.files:
            table.add_row(row.name, str(row.bytes), row.status)
        console = Console()
        console.print(table)
        if engines:
            console.print(engine_table(engines))
        console.print("[green]as exported[/]" if report.ok else f"[red]{report.message}[/]")
    return 0 if report.ok else 1


def _engines(path: Path, report: VerifyReport) -> list[EngineState]:
    """Return the engines of a bundle that was found good; of another none can be fresh."""
    return list_engines(open_bundle(path, verify="sizes")) if report.ok else []
