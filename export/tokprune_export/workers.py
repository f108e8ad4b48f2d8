"""The processes that share one job, as `torchrun` started them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # shares of a job may take very different times


@dataclass(frozen=True)
class Workers:
    """This process among the others."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on its machine

    @property
    def leads(self) -> bool:
        """Whether this process does what one alone must do."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Return this process's part: neighbours stay together, parts differ by one at most."""
        start = len(work) * self.rank // self.count
        return work[start : len(work) * (self.rank + 1) // self.count]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            dist.destroy_process_group()


def join_workers() -> Workers:
    """Join the group that `torchrun` describes; without it, this process is alone."""
    if not dist.is_torchelastic_launched():
        return Workers()
    dist.init_process_group("gloo", timeout=PATIENCE)  # nothing but a barrier is asked of it
    return Workers(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
