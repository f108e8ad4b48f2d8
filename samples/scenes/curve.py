"""The learning curve of a run."""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot_curve(log: Path, picture: Path) -> None:
    """Draw a run's log.jsonl: shares right over the minutes."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(8, 5))
    names = {"shape": "cells: shape", "digit": "cells: digit", "hits": "answer tokens"}
    for name, label in names.items():
        seen = [row for row in rows if name in row]
        axes.plot([r["minutes"] for r in seen], [r[name] for r in seen], alpha=0.4, label=label)
    for name in ("64", "196", "several", "talk", "film"):
        seen = [row for row in rows if name in row]
        if not seen:
            continue
        minutes = [row["minutes"] for row in seen]
        axes.plot(minutes, [r[name]["all"] for r in seen], "o-", label=f"exact match: {name}")
    axes.set(xlabel="minutes", ylabel="share right", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
