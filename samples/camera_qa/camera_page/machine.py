"""How busy and how hot this machine is, as far as the kernel tells (/proc and /sys)."""

import re
from pathlib import Path

_GPU_LOADS = (  # file, what full load is there
    ("sys/devices/platform/gpu.0/load", 1000),  # Jetson
    ("sys/devices/gpu.0/load", 1000),
    ("sys/devices/platform/17000000.gpu/load", 1000),
    ("sys/devices/platform/bus@0/17000000.gpu/load", 1000),
    ("sys/class/drm/card0/device/gpu_busy_percent", 100),  # AMD
    ("sys/class/drm/card1/device/gpu_busy_percent", 100),
)
_COLDEST_C, _HOTTEST_C = -40, 150  # what is beyond is no temperature but a broken sensor


class MachineFigures:
    """Reads them; the CPU's load is that since the call before."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = self._cpu_times()

    def read(self) -> dict[str, str]:
        """Return names and figures to be shown; what cannot be read is not among them."""
        figures = {
            "CPU": self._cpu(),
            "GPU": self._gpu(),
            "Memory": self._memory(),
            "Hottest": self._hottest(),
        }
        return {name: text for name, text in figures.items() if text is not None}

    def _text(self, path: str) -> str | None:
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def _cpu_times(self) -> tuple[int, int] | None:
        found = re.match(r"cpu +([\d ]+)", self._text("proc/stat") or "")
        if found is None:
            return None
        times = [int(part) for part in found[1].split()][:8]
        return sum(times), sum(times[3:5])  # all, and idle or waiting for a disk

    def _cpu(self) -> str | None:
        before, self._before = self._before, self._cpu_times()
        if before is None or self._before is None or self._before[0] <= before[0]:
            return None
        spent, idle = (now - then for now, then in zip(self._before, before, strict=True))
        return f"{100 * (1 - idle / spent):.0f} %"

    def _gpu(self) -> str | None:
        for path, full in _GPU_LOADS:
            text = self._text(path)
            if text is not None and text.isdecimal():
                return f"{100 * int(text) / full:.0f} %"
        return None

    def _memory(self) -> str | None:
        found = dict(re.findall(r"^(\w+): +(\d+) kB$", self._text("proc/meminfo") or "", re.M))
        if "MemTotal" not in found or "MemAvailable" not in found:
            return None
        total, free = int(found["MemTotal"]) / 2**20, int(found["MemAvailable"]) / 2**20
        return f"{total - free:.1f} of {total:.1f} GiB"

    def _hottest(self) -> str | None:
        readings: list[float] = []
        for pattern in ("sys/class/thermal/thermal_zone*/temp", "sys/class/hwmon/*/temp*_input"):
            for path in self._root.glob(pattern):
                text = self._text(str(path.relative_to(self._root))) or ""
                if re.fullmatch(r"-?\d+", text):
                    readings.append(int(text) / 1000)
        sane = [value for value in readings if _COLDEST_C < value < _HOTTEST_C]
        return f"{max(sane):.0f} °C" if sane else None
