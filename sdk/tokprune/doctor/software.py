"""What is installed, and which backends could run with it. Metadata only: nothing is imported."""

import platform
from collections.abc import Iterator

from tokprune.backends import has_device
from tokprune.doctor.finding import Finding, Host
from tokprune.engines.folders import Kind
from tokprune_runtimes.ort_cuda import INSTALL, REINSTALL

_NEEDED = ("numpy", "pillow", "tokenizers")
_EXTRAS = {  # what brings it, and what cannot be done without
    "av": ("camera", "videos and cameras"),
    "prometheus-client": ("metrics", "Prometheus"),
    "starlette": ("serve", "tokprune serve"),
    "uvicorn": ("serve", "tokprune serve"),
}
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_SWAPPED = "one of both overwrites the other's files, and removing either breaks both"
_ONNXRUNTIME = {"aarch64": "arm64 Linux has no onnxruntime-gpu for Orin and Thor: use TensorRT"}


def software(host: Host) -> Iterator[Finding]:
    """Yield versions."""
    python = ".".join(platform.python_version_tuple()[:3])
    yield Finding("software", "python", "ok", f"{python} {platform.machine()}")
    own = host.installed("tokprune")
    yield Finding("software", "tokprune", "ok", own or "not installed, run from its sources")
    for name in _NEEDED:
        if (found := host.installed(name)) is None:
            todo = f"pip install {name}"
            yield Finding("software", name, "problem", "not installed", todo)
        else:
            yield Finding("software", name, "ok", found)
    yield from _onnxruntime(host)
    trt = {name: host.installed(name) for name in (*_TENSORRT, "tensorrt-rtx", "cuda-bindings")}
    for name, found in trt.items():
        if found is not None:
            yield Finding("software", name, "ok", found)
    for name, (extra, use) in _EXTRAS.items():
        found = host.installed(name)
        missing = f"not installed; for {use}: pip install 'tokprune[{extra}]'"
        yield Finding("software", name, "ok", found or missing)


def _onnxruntime(host: Host) -> Iterator[Finding]:
    cpu, gpu = host.installed("onnxruntime"), host.installed("onnxruntime-gpu")
    if cpu and gpu:
        value = f"both onnxruntime {cpu} and onnxruntime-gpu {gpu} are installed: {_SWAPPED}"
        todo = f"for CUDA: {REINSTALL}; for the CPU: pip uninstall -y onnxruntime-gpu && pip "
        todo += "install --force-reinstall --no-deps onnxruntime"
        yield Finding("software", "onnxruntime", "problem", value, todo)
    elif not cpu and not gpu:
        yield Finding(
            "software", "onnxruntime", "problem", "not installed", "pip install onnxruntime"
        )
    else:
        name, found = ("onnxruntime", cpu) if cpu else ("onnxruntime-gpu", gpu)
        yield Finding("software", name, "ok", found or "")


def backends(host: Host) -> Iterator[Finding]:
    """Yield which backends could run a bundle here, and why others could not."""
    for name, fault in (
        ("cpu", _cpu(host)),
        ("cuda", _cuda(host)),
        ("tensorrt", _tensorrt(host, _TENSORRT, "tensorrt")),
        ("tensorrt-rtx", _tensorrt(host, ("tensorrt-rtx",), "tensorrt-rtx")),
    ):
        if fault is None:
            yield Finding("backends", name, "ok", "could run a bundle")
        elif name == "cpu":
            yield Finding("backends", name, "problem", "cannot run", fault)
        else:
            yield Finding("backends", name, "ok", f"cannot run: {fault}")


def _cpu(host: Host) -> str | None:
    if host.installed("onnxruntime") or host.installed("onnxruntime-gpu"):
        return None
    return "ONNX Runtime is not installed: pip install onnxruntime"


def _cuda(host: Host) -> str | None:
    if not has_device(host.root):
        return "there is no NVIDIA GPU that a driver shows"
    if host.text("/etc/nv_tegra_release") is not None:
        return _ONNXRUNTIME["aarch64"]
    if not host.installed("onnxruntime-gpu"):
        return f"onnxruntime-gpu is not installed: {INSTALL}"
    if host.installed("onnxruntime"):
        return f"onnxruntime is installed beside it: {REINSTALL}"
    return None


def _tensorrt(host: Host, packages: tuple[str, ...], extra: str) -> str | None:
    if not has_device(host.root):
        return "there is no NVIDIA GPU that a driver shows"
    if not any(host.installed(name) for name in packages):
        jetson = host.text("/etc/nv_tegra_release") is not None
        if jetson and extra == "tensorrt":
            return (
                "this environment does not see JetPack's TensorRT: make it with `python3 -m venv "
                "--system-site-packages` (sudo apt-get install python3-libnvinfer)"
            )
        return f"it is not installed: pip install 'tokprune[{extra}]'"
    if not host.installed("cuda-bindings"):
        return "cuda-bindings is not installed: pip install cuda-bindings, of the driver's CUDA"
    return None


def is_installed_version(host: Host, kind: Kind, built: str) -> bool:
    """Tell whether an engine's version is the installed one, or nothing tells which that is."""
    packages = ("tensorrt-rtx",) if kind == "tensorrt-rtx" else _TENSORRT
    found = [known for name in packages if (known := host.installed(name)) is not None]
    return not found or built in found
