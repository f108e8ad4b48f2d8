"""Machines that tests make up below a folder: /proc, /sys, /etc and /dev as they would be there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokprune.doctor import Host
from tokprune.doctor.finding import Disk

ARM_CPU = "processor\t: {index}\nBogoMIPS\t: 62.50\nCPU part\t: {part}\n\n"
X86_CPU = "processor\t: {index}\nmodel name\t: AMD Ryzen 7 7700\n\n"
DPKG = """Package: nano
Status: install ok installed
Version: 7.2-2

Package: nvidia-jetpack
Status: install ok installed
Architecture: arm64
Version: {version}

"""
NVPMODEL = """# comments
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
< PM_CONFIG DEFAULT=2 >
"""
CPU_PACKAGES = {
    "tokprune": "0.1.0",
    "numpy": "2.2.6",
    "pillow": "12.3.0",
    "tokenizers": "0.23.3",
    "onnxruntime": "1.23.2",
}
JETSON_PACKAGES = {**CPU_PACKAGES, "tensorrt": "10.3.0", "cuda-bindings": "12.9.10"}
SERIAL = "8C7F2A1E"


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def host(root: Path, packages: Mapping[str, str], **changes: Any) -> Host:
    free = Disk(64 << 30, read_only=False)
    facts: dict[str, Any] = {
        "root": root,
        "installed": packages.get,
        "disk": lambda _: free,
        "environment": {},
        "secrets": ("anna", "robot-7"),
        "home": Path("/home/anna"),
    }
    return Host(**{**facts, **changes})


def common(root: Path, *, cores: str, total_gib: int, left_gib: float) -> None:
    kilobytes = total_gib << 20, int(left_gib * (1 << 20))
    write(
        root,
        {
            "proc/cpuinfo": cores,
            "proc/meminfo": (
                f"MemTotal:       {kilobytes[0]} kB\nMemAvailable:   {kilobytes[1]} kB\n"
                "SwapTotal:      4194304 kB\n"
            ),
            "proc/self/cgroup": "0::/user.slice\n",
            "proc/self/status": f"Name:\tpython\nCpus_allowed_list:\t0-{cores.count('proc') - 1}\n",
            "proc/swaps": "Filename Type Size Used Priority\n",
        },
    )


def camera(root: Path, number: int, name: str, stable: str | None = None) -> None:
    device = f"video{number}"
    write(root, {f"dev/{device}": "", f"sys/class/video4linux/{device}/name": f"{name}\n"})
    if stable is not None:
        folder = root / "dev/v4l/by-id"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / stable).symlink_to(f"../../{device}")


def orin(root: Path) -> Host:
    """An AGX Orin with JetPack 6.2, in the 30 W mode, with a USB and a CSI camera."""
    cores = "".join(ARM_CPU.format(index=index, part="0xd42") for index in range(8))
    common(root, cores=cores, total_gib=30, left_gib=24)
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    write(
        root,
        {
            "etc/nv_tegra_release": (
                "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
                "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
            ),
            "var/lib/dpkg/status": DPKG.format(version="6.2+b77"),
            "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
            "dev/nvgpu/igpu0/power": "",
            "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
            "etc/nvpmodel.conf": NVPMODEL,
            f"{cpu}/scaling_governor": "schedutil\n",
            f"{cpu}/cpuinfo_max_freq": "2201600\n",
            f"{cpu}/scaling_max_freq": "1728000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "51250\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
            "proc/swaps": ("Filename Type Size Used Priority\n/dev/zram0 partition 1048576 0 5\n"),
            "usr/sbin/nvargus-daemon": "",
        },
    )
    camera(root, 0, "vi-output, imx219 9-0010")
    stable = f"usb-046d_HD_Pro_Webcam_C920_{SERIAL}-video-index0"
    camera(root, 1, "HD Pro Webcam C920", stable)
    return host(root, JETSON_PACKAGES, gpu=lambda: {"sm": "sm87", "cuda": "12.6"})


def thor(root: Path) -> Host:
    """A Thor with JetPack 7 from the L4T number alone, at full power, too hot."""
    cores = "".join(ARM_CPU.format(index=index, part="0xd83") for index in range(14))
    common(root, cores=cores, total_gib=122, left_gib=110)
    write(
        root,
        {
            "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic\n",
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,tegra264\0",
            "dev/nvidiactl": "",
            "var/lib/nvpmodel/status": "pmode:0000\n",
            "etc/nvpmodel.conf": NVPMODEL,
            "sys/class/thermal/thermal_zone0/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "101000\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
        },
    )
    packages = {**JETSON_PACKAGES, "tensorrt": "10.16.1.11"}
    return host(root, packages)


def desktop(root: Path, *, with_gpu: bool, packages: Mapping[str, str] = CPU_PACKAGES) -> Host:
    """A PC, its memory and cores bounded by a control group."""
    common(
        root,
        cores="".join(X86_CPU.format(index=index) for index in range(16)),
        total_gib=62,
        left_gib=40,
    )
    write(
        root,
        {
            "sys/fs/cgroup/user.slice/memory.max": f"{8 << 30}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{1 << 30}\n",
            "sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n",
        },
    )
    if not with_gpu:
        return host(root, packages)
    write(
        root,
        {
            "dev/nvidiactl": "",
            "proc/driver/nvidia/version": (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n"
            ),
            "proc/driver/nvidia/gpus/0000:01:00.0/information": (
                "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 142\n"
                "GPU UUID: \t GPU-12345678-9abc-def0-1234-56789abcdef0\n"
            ),
        },
    )
    return host(root, packages, gpu=lambda: {"sm": "sm89", "cuda": "13.0", "driver_cuda": "13.0"})
