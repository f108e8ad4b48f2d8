"""What the endpoints share."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tokprune.serving.asgi import ClientGone
from tokprune.serving.asking import Rules
from tokprune.serving.door import Door
from tokprune.serving.refusals import code_of
from tokprune.stats import Stats
from tokprune.vlm import VLM

BODY_LIMIT = 32 * 2**20


@dataclass(frozen=True)
class Serving:
    """A VLM behind HTTP."""

    vlm: VLM
    rules: Rules
    door: Door
    body_limit: int = BODY_LIMIT
    refused: Counter[str] = field(default_factory=Counter[str])  # by code: the VLM never saw them

    @contextmanager
    def counting(self) -> Generator[None]:
        """Count the error that ends a block."""
        try:
            yield
        except ClientGone:
            raise
        except Exception as error:
            self.refused[code_of(error)] += 1
            raise

    def stats(self) -> Stats:
        """Return what the VLM has done, and what was refused before it."""
        stats = self.vlm.stats()
        return replace(stats, errors=dict(Counter(stats.errors) + self.refused))
