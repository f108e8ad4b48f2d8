"""`tokprune doctor`: what this machine has for a bundle, and what is wrong with it."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokprune.doctor import Report, examine

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Doctor:
    """Look for what keeps this machine from running a bundle. Exit 1 if there is a problem."""

    bundle: tyro.conf.Positional[Path | None] = None
    """Also look at this folder that tokprune-export wrote."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run_doctor(command: Doctor) -> int:
    """Run `tokprune doctor`."""
    report = examine(command.bundle)
    if command.json:
        print(json.dumps(report.as_json()))
    else:
        Console().print(findings_table(report))
    return 0 if report.ok else 1


def findings_table(report: Report) -> Table:
    """Return the findings, section by section."""
    table = Table("section", "what", "found", "what to do", title="tokprune doctor")
    before = ""
    for finding in report.findings:
        if before and finding.section != before:
            table.add_section()
        section = "" if finding.section == before else finding.section
        before = finding.section
        colour = _COLOURS[finding.status]
        name = f"[{colour}]{escape(finding.name)}[/]"
        table.add_row(section, name, escape(finding.value), escape(finding.todo))
    return table
