"""How much memory this process may still take."""

from pathlib import Path


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or its control group's if fewer."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (bound := limit.read_text().strip()) != "max":
        available = min(available, int(bound) - int(used.read_text()))
    return available


def gib(count: int) -> str:
    """Return bytes as text, in GiB and exactly."""
    return f"{count / 2**30:.2f} GiB ({count} bytes)"
