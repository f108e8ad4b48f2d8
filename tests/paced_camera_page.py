"""The camera page with a model that writes as slowly as the file $TOKPRUNE_PACE says.

Run as a program, with the arguments of samples/camera_qa/app.py.
"""

import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokprune.llm import LanguageModel

PROGRAM = Path(__file__).parents[1] / "samples" / "camera_qa" / "app.py"
_generate = LanguageModel.generate


def paced(*arguments: Any, **options: Any) -> Iterator[Any]:
    """Wait after each token; a cancelled answer ends at the next."""
    for token in _generate(*arguments, **options):
        yield token
        time.sleep(float(Path(os.environ["TOKPRUNE_PACE"]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    LanguageModel.generate = paced  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(PROGRAM.parent))  # as when it is started itself
    runpy.run_path(str(PROGRAM), run_name="__main__")
