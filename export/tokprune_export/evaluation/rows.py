"""Results as a flat list: one row for each group, selector and budget; and joining several runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokprune.errors import RequestInvalid
from tokprune.files import atomic_write
from tokprune_export.evaluation.options import is_fixed
from tokprune_export.evaluation.suites import WHOLE

Row = dict[str, Any]
PLACE = ("bundle", "suite", "split", "group", "selector", "budget")
HEAD = ("date", "machine", "tokprune", "note")
RUN = ("bundle", "suite", "split", "tokens", "frames", "samples", *HEAD)


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of one run: those of most questions where a cell was asked twice."""
    found: dict[tuple[Any, ...], Row] = {}
    for figures in (results["figures"], results["more"]):
        for row in _rows(results, figures) if figures else ():
            found[tuple(row[name] for name in PLACE)] = row
    return list(found.values())


def _rows(results: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterable[Row]:
    times = (results["latency"] or {}).get("cells", {})
    for name, budgets in figures["cells"].items():
        for budget, parts in budgets.items():
            ttft = times.get(f"{name}@{budget}")
            for group, part in parts.items():
                yield {
                    **{key: results[key] for key in ("bundle", "suite", "split")},
                    "group": group,
                    "selector": name,
                    "budget": number(budget),
                    "n": part["n"],
                    "accuracy": _mean(part["accuracy"]),
                    "retention": _mean(part["retention"]),
                    **_bounds("ci", part["accuracy"]),
                    **_bounds("retention_ci", part["retention"]),
                    "loyalty": _mean(part["loyalty"]),
                    **{key: part[key] for key in ("recall", "recall_50", "spearman")},
                    **{key: part[key] for key in ("kept", "kept_p95", "encoded")},
                    "ttft_ms": round(ttft["p50"]["ttft"], 3) if ttft and group == WHOLE else None,
                }


def number(budget: str) -> float | int | str:
    """Return a fixed budget as a number: a float is a share, an int a count."""
    if not is_fixed(budget):
        return budget
    return float(budget) if "." in budget else int(budget)


def _mean(estimate: Mapping[str, float] | None) -> float | None:
    return None if estimate is None else estimate["mean"]


def _bounds(name: str, estimate: Mapping[str, float] | None) -> dict[str, float | None]:
    given = estimate or {}
    return {f"{name}_low": given.get("low"), f"{name}_high": given.get("high")}


def write_rows(path: Path, head: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write rows as JSON, one a line, behind what they were measured with."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    facts = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    atomic_write(path, f'{facts},\n "rows": [\n{lines}\n]}}\n'.encode())


def merge(folders: Sequence[Path], target: Path) -> list[Row]:
    """Join the rows of several runs into one file.

    Args:
        folders: the OUT of each run.
        target: the file to write.

    Raises:
        RequestInvalid: a folder holds no finished run, or two hold the same rows.
    """
    runs: list[Row] = []
    found: dict[tuple[Any, ...], Row] = {}
    places: dict[tuple[Any, ...], Path] = {}
    for folder in folders:
        run = _read(folder)
        runs.append({key: run[key] for key in RUN})
        for row in run["rows"]:
            place = tuple(row[name] for name in PLACE)
            if place in found:
                raise RequestInvalid(
                    f"{places[place]} and {folder} both have rows of {', '.join(map(str, place))}: "
                    "give one of them"
                )
            found[place], places[place] = row, folder
    head = {"date": max(run["date"] for run in runs), "machine": _machines(runs), "runs": runs}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_rows(target, head, list(found.values()))
    return list(found.values())


def _read(folder: Path) -> Row:
    path = folder / "rows.json"
    try:
        run = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestInvalid(
            f"Cannot read {path}: {error.strerror}. Give the --out folders of finished runs of "
            "tokprune-eval"
        ) from None
    except ValueError as error:
        raise RequestInvalid(f"{path} is no file of tokprune-eval: {error}") from None
    missing = [name for name in (*RUN, "rows") if not isinstance(run, dict) or name not in run]
    if missing:
        raise RequestInvalid(f"{path} is no file of tokprune-eval: it has no {missing[0]!r}")
    return run


def _machines(runs: Sequence[Row]) -> str:
    return "; ".join(dict.fromkeys(run["machine"] for run in runs))
