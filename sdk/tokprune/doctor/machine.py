"""Board, GPU, power, heat, processor and memory, from files of the kernel and of JetPack.

The files of Jetsons follow NVIDIA's documents and what others read there; none was at hand:
`/etc/nv_tegra_release` ("# R36 (release), REVISION: 4.3, ..."), dpkg's `nvidia-jetpack`,
`/proc/device-tree`, `/var/lib/nvpmodel/status` ("pmode:0002 ...") and `/etc/nvpmodel.conf`
("< POWER_MODEL ID=2 NAME=MODE_30W >").
"""

import re
from collections.abc import Iterator

from tokprune.backends import has_device
from tokprune.doctor.finding import Finding, Host, Status
from tokprune.memory import available_memory, control_groups

_TEGRA_SM = {"tegra194": "sm72", "tegra234": "sm87", "tegra264": "sm110"}
_JETPACK_OF_L4T = {"35": "5", "36": "6", "38": "7", "39": "7"}  # where dpkg does not tell
_DPKG_BYTES = 32 << 20
_LITTLE_MEMORY = 2 << 30
_CPU = "/sys/devices/system/cpu"


def jetpack(host: Host) -> Iterator[Finding]:
    """Yield board, L4T and JetPack; nothing on other machines."""
    release = host.text("/etc/nv_tegra_release")
    if release is None:
        return
    if model := host.text("/proc/device-tree/model"):
        yield Finding("board", "model", "ok", model)
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    major = found[1] if found else ""
    yield Finding("board", "L4T", "ok", f"{major}.{found[2]}" if found else "unreadable")
    number = _dpkg(host, "nvidia-jetpack")
    known = number or _JETPACK_OF_L4T.get(major)
    if known is None:
        value = "unknown: nvidia-jetpack is not installed"
        todo = "sudo apt-get update && sudo apt-get install nvidia-jetpack"
        yield Finding("board", "JetPack", "warning", value, todo)
    elif int(re.findall(r"\d+", known)[0]) < 6:
        todo = "tokprune needs Python 3.10: flash JetPack 6 or newer"
        yield Finding("board", "JetPack", "problem", known, todo)
    elif number is None:
        todo = "sudo apt-get install nvidia-jetpack: without it CUDA and TensorRT may be missing"
        value = f"{known} by its L4T; nvidia-jetpack is not installed"
        yield Finding("board", "JetPack", "warning", value, todo)
    else:
        yield Finding("board", "JetPack", "ok", number)


def _dpkg(host: Host, package: str) -> str | None:
    data = host.data("/var/lib/dpkg/status", _DPKG_BYTES) or b""
    for block in data.split(b"\n\n"):
        lines = block.splitlines()
        if lines[:1] == [f"Package: {package}".encode()]:
            if b"Status: install ok installed" not in lines:
                return None
            versions = [line[9:] for line in lines if line.startswith(b"Version: ")]
            return versions[0].decode("utf-8", "replace") if versions else None
    return None


def gpu(host: Host) -> Iterator[Finding]:
    """Yield GPU, driver and SM."""
    if not has_device(host.root):
        yield Finding("gpu", "GPU", "ok", "none that an NVIDIA driver shows")
        return
    boards = host.names("/proc/driver/nvidia/gpus")
    for index, board in enumerate(boards):
        about = host.text(f"/proc/driver/nvidia/gpus/{board}/information") or ""
        model = re.search(r"^Model:\s*(.+)$", about, re.MULTILINE)
        yield Finding("gpu", f"GPU {index}", "ok", model[1] if model else "unknown model")
    driver = host.text("/proc/driver/nvidia/version") or ""
    if found := re.search(r"Kernel Module[^\n]*?\s(\d+\.[\d.]+)", driver):
        yield Finding("gpu", "driver", "ok", found[1])
    told = host.gpu()
    sm = told.get("sm") or _tegra_sm(host)
    if sm is None:
        todo = "pip install cuda-bindings, and check nvidia-smi (on Jetson: tegrastats)"
        value = "unknown: CUDA does not tell"
        yield Finding("gpu", "SM", "warning", value, told.get("error") or todo)
    else:
        yield Finding("gpu", "SM", "ok", sm)
    for key in ("cuda", "driver_cuda"):
        if key in told:
            yield Finding("gpu", "CUDA" if key == "cuda" else "driver's CUDA", "ok", told[key])


def _tegra_sm(host: Host) -> str | None:
    compatible = host.text("/proc/device-tree/compatible") or ""
    return next((sm for chip, sm in _TEGRA_SM.items() if chip in compatible), None)


def power(host: Host) -> Iterator[Finding]:
    """Yield power mode, clocks and heat."""
    yield from _power_mode(host)
    governor = host.text(f"{_CPU}/cpu0/cpufreq/scaling_governor")
    if governor is not None:
        slow = governor in ("powersave", "conservative") and not _is_pstate(host)
        todo = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield _or_warn("power", "governor", governor, todo if slow else "")
    top = host.number(f"{_CPU}/cpu0/cpufreq/cpuinfo_max_freq")
    bound = host.number(f"{_CPU}/cpu0/cpufreq/scaling_max_freq")
    if top and bound:
        value = f"{bound // 1000} of {top // 1000} MHz allowed"
        todo = "a power mode, tool or heat holds the clock down" if bound < top else ""
        yield _or_warn("power", "clock", value, todo)
    yield from _heat(host)


def _is_pstate(host: Host) -> bool:
    """Tell whether `powersave` is the driver's usual governor, which does not hold clocks down."""
    driver = host.text(f"{_CPU}/cpu0/cpufreq/scaling_driver") or ""
    return driver in ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")


def _power_mode(host: Host) -> Iterator[Finding]:
    if host.text("/etc/nv_tegra_release") is None:
        return
    state = re.search(r"pmode:(\d+)", host.text("/var/lib/nvpmodel/status") or "")
    modes = dict(
        re.findall(
            r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>",
            host.text("/etc/nvpmodel.conf") or "",
            re.MULTILINE,
        )
    )
    if state is None:
        todo = "sudo nvpmodel -q shows it; tokprune reads /var/lib/nvpmodel/status"
        yield Finding("power", "power mode", "warning", "unknown", todo)
        return
    number = str(int(state[1]))
    name = modes.get(number, f"mode {number}")
    fastest = next((mode for mode, known in modes.items() if known.startswith("MAXN")), None)
    slow = fastest is not None and not name.startswith("MAXN")
    todo = f"sudo nvpmodel -m {fastest} is the fastest; calibrate again after a change"
    yield _or_warn("power", "power mode", name, todo if slow else "")


def _heat(host: Host) -> Iterator[Finding]:
    hottest: tuple[int, str] | None = None
    for zone in host.names("/sys/class/thermal", "thermal_zone*"):
        place = f"/sys/class/thermal/{zone}"
        millidegrees = host.number(f"{place}/temp")  # some say EAGAIN while they are asleep
        if millidegrees is None:
            continue
        name = host.text(f"{place}/type") or zone
        hottest = max(hottest or (millidegrees, name), (millidegrees, name))
        for trip in host.names(place, "trip_point_*_type"):
            kind = host.text(f"{place}/{trip}")
            bound = host.number(f"{place}/{trip.removesuffix('type')}temp")
            if kind in ("passive", "hot", "critical") and bound and millidegrees >= bound > 0:
                value = f"{millidegrees / 1000:.0f} C, clocks go down from {bound / 1000:.0f} C on"
                todo = "cool it, or take a lower power mode"
                status: Status = "warning" if kind == "passive" else "problem"
                yield Finding("power", f"heat of {name}", status, value, todo)
                break
    if hottest is not None:
        value = f"{hottest[0] / 1000:.0f} C at most ({hottest[1]})"
        yield Finding("power", "temperature", "ok", value)


def processor(host: Host) -> Iterator[Finding]:
    """Yield processor, cores and the memory that this process may take."""
    lines = (host.text("/proc/cpuinfo") or "").splitlines()
    pairs = [
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)
    ]
    names = [value for key, value in pairs if key in ("model name", "Model")]
    parts = sorted({value for key, value in pairs if key == "CPU part"})
    model = names[0] if names else f"ARM part {', '.join(parts)}" if parts else "unknown"
    yield Finding("processor", "model", "ok", model)
    cores = sum(key == "processor" for key, _ in pairs)
    allowed = re.search(r"Cpus_allowed_list:\s*(\S+)", host.text("/proc/self/status") or "")
    value = f"{cores}" + (f", this process may use {allowed[1]}" if allowed else "")
    yield Finding("processor", "cores", "ok", value)
    for folder in control_groups(host.root):
        name = f"/{folder.relative_to(host.root)}/cpu.max"
        quota = re.fullmatch(r"(\d+) (\d+)", host.text(name) or "")
        if quota and int(quota[2]):
            share = int(quota[1]) / int(quota[2])
            todo = f"load with threads={max(1, round(share))}: more would wait for each other"
            status: Status = "warning" if share < cores else "ok"
            yield Finding("processor", "control group", status, f"{share:g} cores", todo)
    yield from _memory(host)


def _memory(host: Host) -> Iterator[Finding]:
    about = dict(re.findall(r"^(\w+):\s+(\d+) kB", host.text("/proc/meminfo") or "", re.MULTILINE))
    if "MemTotal" not in about or "MemAvailable" not in about:
        yield Finding("memory", "memory", "warning", "unknown", "mount /proc")
        return
    left = available_memory(host.root)
    value = f"{left / 2**30:.1f} GiB left to this process, of {_gib(about['MemTotal'])}"
    todo = "end other programs (on a Jetson: sudo systemctl isolate multi-user.target)"
    yield _or_warn("memory", "memory", value, todo if left < _LITTLE_MEMORY else "")
    for folder in control_groups(host.root):
        bound = host.number(f"/{folder.relative_to(host.root)}/memory.max")
        if bound is not None:
            yield Finding("memory", "control group", "ok", f"{bound / 2**30:.1f} GiB at most")
    swaps = (host.text("/proc/swaps") or "").splitlines()[1:]
    kinds = sorted({"zram" if "zram" in line else "disk" for line in swaps})
    swap = f"{_gib(about.get('SwapTotal', '0'))} ({', '.join(kinds)})" if swaps else "none"
    yield Finding("memory", "swap", "ok", swap)


def _gib(kilobytes: str) -> str:
    return f"{int(kilobytes) / 2**20:.1f} GiB"


def _or_warn(section: str, name: str, value: str, todo: str) -> Finding:
    """Return a finding that is ok where there is nothing to do."""
    return Finding(section, name, "warning" if todo else "ok", value, todo)
