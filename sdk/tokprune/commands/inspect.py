"""`tokprune inspect`: what a bundle holds."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tokprune.bundle import describe, open_bundle
from tokprune.commands.device_tables import device_json, print_device


@dataclass(frozen=True)
class Inspect:
    """Show what a bundle holds."""

    bundle: tyro.conf.Positional[Path]
    """The folder that tokprune-export wrote."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run_inspect(command: Inspect) -> int:
    """Run `tokprune inspect`."""
    bundle = open_bundle(command.bundle, verify="sizes")
    rows = describe(bundle)
    if command.json:
        print(json.dumps({**rows, **device_json(bundle)}))
        return 0
    table = Table(title=str(command.bundle), show_header=False)
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    console = Console()
    console.print(table)
    print_device(bundle, console)
    return 0
