"""How much memory this process may still take."""

import resource
from pathlib import Path

_ROOT = Path("/")


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process may still take: the machine's, or what its limits leave if fewer.

    Limits are those of its control group and its own (RLIMIT_AS).

    Args:
        root: holds `proc` and `sys`.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    rooms = (available, control_group_room(root), _own_room(root))
    return max(0, min(room for room in rooms if room is not None))


def control_group_room(root: Path = _ROOT) -> int | None:
    """Bytes that the process's control group (version 2) leaves; None: it sets no limit."""
    rooms: list[int] = []
    for folder in control_groups(root):
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.is_file() and used.is_file() and (bound := limit.read_text().strip()) != "max":
            rooms.append(int(bound) - int(used.read_text()))
    return min(rooms, default=None)


def control_groups(root: Path = _ROOT) -> list[Path]:
    """Return the folders of the process's control group and of those that it is in."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [top]
    path = next((line[3:] for line in lines if line.startswith("0::/")), "/")
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [top.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def gib(count: int) -> str:
    """Return bytes as text, in GiB and exactly."""
    return f"{count / 2**30:.2f} GiB ({count} bytes)"


def _own_room(root: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = int((root / "proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
