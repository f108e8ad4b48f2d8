"""`tokprune verify`: every file of a bundle against its manifest."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tokprune.bundle import open_bundle, verify_bundle
from tokprune.commands.device_tables import device_json, print_device


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
    bundle = open_bundle(command.bundle, verify="sizes") if report.ok else None
    if command.json:
        print(json.dumps({**report.as_json(), **device_json(bundle)}))
        return 0 if report.ok else 1
    table = Table("file", "bytes", "status", title=str(command.bundle))
    for row in report.files:
        table.add_row(row.name, str(row.bytes), row.status)
    console = Console()
    console.print(table)
    if bundle is not None:
        print_device(bundle, console)
    console.print("[green]as exported[/]" if report.ok else f"[red]{report.message}[/]")
    return 0 if report.ok else 1
