"""How often promises are tried: a twentieth in `make test`, all of it with SOAK=1 (`make soak`)."""

import os

import pytest

PARTS = 20
CHUNKS = [
    pytest.param(chunk, marks=pytest.mark.soak if chunk else ())
    for chunk in range(PARTS if os.environ.get("SOAK") else 1)
]


def share(promised: int) -> int:
    """Return how many cases one chunk tries. Chunks differ by their seed."""
    return -(-promised // PARTS)
