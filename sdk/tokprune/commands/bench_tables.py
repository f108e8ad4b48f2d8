"""What `tokprune bench` prints."""

import sys
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tokprune.benching import Rows

_WIDTH = 120  # of the tables where there is no terminal
_STAGES = {  # headings
    "wait": "wait",
    "preprocess": "read",
    "vision": "vision",
    "first_layer": "layer 1",
    "scorer": "scorer",
    "select": "select",
    "prefill": "prefill",
}


def show(report: dict[str, Any]) -> None:
    """Print a table for each bundle, and which is fastest."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for result in report["bundles"]:
        console.print(_table(result))
        if "stream" in result:
            for line in _followed(result):
                console.print(line, soft_wrap=True)
        elif result["encode"] != "full":
            console.print(_encoded(result), soft_wrap=True)
        memory = result["memory"]
        if memory["growth_bytes"] is not None:
            console.print(
                f"resident memory after the warm-up {memory['warm_bytes'] / 2**20:.1f} MiB, "
                f"growth {memory['growth_bytes'] / 2**20:+.2f} MiB"
            )
    for rank in report["fastest"]:
        console.print(
            f"{rank['budget']}: fastest {rank['stage']}: {rank['bundle']}, {rank['lead']:.2f} "
            f"times the speed of {rank['next']}",
            soft_wrap=True,
        )
    facts = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    console.print(
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, load "
        f"{facts['load_average'][0]} before, {versions}; {report['rounds']} rounds after "
        f"{report['warmup']}",
        soft_wrap=True,
    )


def _table(result: dict[str, Any]) -> Table:
    """Return medians of one bundle; of the time to the first token the 95th percentile, too."""
    rows: Rows = result["budgets"]
    if "stream" in result:
        rows = [line for row in rows for line in _stream_lines(row)]
    stages = [name for name in _STAGES if any(name in row.get("stages_ms", {}) for row in rows)]
    title = f"{result['bundle']} ({result['precision']}, {result['backend']}, {result['llm_form']})"
    table = Table(title=f"{title}: ms, medians", title_justify="left", box=SIMPLE, padding=(0, 1))
    table.add_column("budget", no_wrap=True)
    headings = ["kept", "TTFT", "p95", *(_STAGES[name] for name in stages), "a token", "tokens/s"]
    for heading in headings:
        table.add_column(heading, justify="right")
    if any(row["error"] for row in rows):
        table.add_column("refused", overflow="fold")
    for row in rows:
        refused = _refusal(row)
        table.add_row(row["budget"], *_figures(row, stages), *([refused] if refused else []))
    return table


def _figures(row: dict[str, Any], stages: list[str]) -> list[str]:
    if not row["rounds"]:
        return ["-"] * (5 + len(stages))
    each, ttft = row["decode_ms_per_token"], row["ttft_ms"]
    return [
        f"{row['kept']['mean']:g} of {row['total']}",
        *(f"{ttft[name]:.1f}" for name in ("p50", "p95")),
        *(f"{row['stages_ms'][name]['p50']:.1f}" for name in stages),
        "-" if each is None else f"{each['p50']:.2f}",
        "-" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}",
    ]


def _encoded(result: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{row['encoded']['mean']:g} of {row['total']} at {row['budget']}"
        for row in result["budgets"]
        if row["rounds"]
    )
    return f"vision tokens encoded by {result['encode']}: {counts or 'none'}"


def _stream_lines(row: dict[str, Any]) -> Rows:
    """Return the rows of one budget: everything encoded, the first frame followed, the later."""
    budget, first, full = row["budget"], row["first"], row["full"]
    return [
        {**full, "budget": f"{budget} full"},
        {**first, "budget": f"{budget} first"},
        {**row, "budget": f"{budget} later"},
    ]


def _followed(result: dict[str, Any]) -> list[str]:
    """Say what the stream was, and what following it gained."""
    stream = result["stream"]
    lines = [
        f"{stream['frames']} frames, within={stream['within']}: a camera's noise of "
        f"{stream['noise']:g} grey levels, a square of {stream['moving_share']:.0%} of the picture "
        f"moves by {stream['step_px']} px a frame; full looks at the same frames in turn"
    ]
    lines += [
        f"{row['budget']}: {row['encoded_share']:.0%} encoded a frame after the first; the first "
        f"token after {row['ttft_mean_ms']:.1f} ms in place of {row['full_ttft_mean_ms']:.1f} ms "
        f"in the mean, {row['faster']:.2f} times as soon"
        for row in result["budgets"]
        if "faster" in row
    ]
    return lines


def _refusal(row: dict[str, Any]) -> str:
    error = row["error"]
    if error is None:
        return ""
    asked = row["rounds"] + row["refused"]
    return f"{row['refused']} of {asked}: {error['code']}: {error['message']}"
