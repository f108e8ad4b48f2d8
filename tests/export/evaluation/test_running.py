"""Processes that answer."""

import signal
import subprocess
import sys
from pathlib import Path


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Killed for lack of memory, say, it cannot tell them to."""
    program = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tokprune_export.evaluation.running import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    # Its output ends with the last process that holds it.
    done = subprocess.run([sys.executable, path], capture_output=True, timeout=60, check=False)
    assert (done.returncode, int(done.stdout) > 0) == (-signal.SIGKILL, True)
