"""`make soak`: every part of every promise, gone on with where it was stopped (tests/counts.py)."""

import hashlib
import json
import os
import platform
from collections import defaultdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ON = bool(os.environ.get("SOAK"))


class Soak:
    """Runs the parts that have not passed with these sources, and writes down which have."""

    def __init__(self, root: Path) -> None:
        self.log = root / "build" / "soak" / f"{_sources(root)}.jsonl"
        self.results = root / "docs" / "results" / "promises.json"
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.passed: dict[str, float] = dict(json.loads(line) for line in lines)
        self.parts: dict[str, list[str]] = defaultdict(list)  # promise -> its parts

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        promised = [item for item in items if _is_promise(item)]
        for item in promised:
            self.parts[item.nodeid.partition("[")[0]].append(item.nodeid)
        waiting = [item for item in promised if item.nodeid not in self.passed]
        config.hook.pytest_deselected(items=[item for item in items if item not in waiting])
        items[:] = waiting

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed[report.nodeid] = report.duration
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a") as file:
                file.write(json.dumps([report.nodeid, report.duration]) + "\n")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.parts or session.config.option.collectonly:
            return
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK  # all had passed before
        result: dict[str, Any] = {"promises": {}}
        if self.results.exists():  # others may have run in another session
            result = json.loads(self.results.read_text())
        for name, parts in self.parts.items():
            result["promises"][name] = self._promise(parts)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")

    def _promise(self, parts: list[str]) -> dict[str, Any]:
        done = [self.passed[part] for part in parts if part in self.passed]
        return {
            "parts": len(parts),
            "passed": len(done),
            "seconds": round(sum(done), 1),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "sources": self.log.stem,
            "python": platform.python_version(),
            "onnxruntime": version("onnxruntime"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        }


def _is_promise(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return item.get_closest_marker("soak") is not None or "chunk" in getattr(call, "params", {})


def _sources(root: Path) -> str:
    digest = hashlib.sha256()
    for package in ("sdk", "runtimes", "export", "tests"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
