"""CUDA libraries that do nothing, made from the names that another library looks for.

ONNX Runtime decides on which engine each node runs when a session is made, before any kernel runs.
Where there is no GPU, these libraries let its CUDA engine be loaded and decide; nothing that is run
on them means anything. Names and sonames are read from the engine itself, so nothing here knows its
version; only what must answer something (a device, memory, handles) is written out below.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

PREFIX = re.compile(r"_*cu")  # of every function and library of CUDA
UNVERSIONED = {"cu": "libcuda.so.1", "curand": "libcurand.so.10"}  # the others name their library

PRELUDE = """
#include <stdlib.h>
#include <string.h>
"""
# The first fields of cudaDeviceProp, as CUDA 12 and 13 document them.
DEVICE = """
struct device {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3], clock;
    size_t constants;
    int major, minor;
};
"""
# An Ampere GPU of 16 GiB (the capability of Jetson Orin).
WRITTEN = {
    "cudaGetDeviceCount": "int F(int *count) { *count = 1; return 0; }",
    "cudaGetDevice": "int F(int *device) { *device = 0; return 0; }",
    "cudaGetDeviceProperties": DEVICE
    + """int F(struct device *d, int i) {
        memset(d, 0, sizeof *d);
        strcpy(d->name, "stub");
        d->memory = 1ul << 34; d->shared_memory = 48 << 10; d->warp = 32; d->threads = 1024;
        d->major = 8; d->minor = 7;
        return 0;
    }""",
    "cudaDeviceGetAttribute": """int F(int *value, int attribute, int device) {
        *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 64;  /* capability: major, minor */
        return 0;
    }""",
    "cudaMemGetInfo": "int F(size_t *free, size_t *all) { *free = *all = 1ul << 34; return 0; }",
    "__cudaRegisterFatBinary": "void *F(void *code) { return calloc(1, 64); }",
}
ALLOCATES = "int F(void **memory, size_t bytes) { *memory = calloc(1, bytes + 256); return 0; }"
CREATES = "int F(void **handle) { *handle = calloc(1, 256); return 0; }"
TELLS_VERSION = "int F(int *version) {{ *version = {version}; return 0; }}"
NAMES_STATUS = 'const char *F(int status) { return "stub"; }'
SUCCEEDS = "long F(void) { return 0; }"


def write_stubs(library: Path, folder: Path) -> dict[str, int]:
    """Build what `library` needs of CUDA into `folder`; return how many functions each file has.

    Raises:
        SystemExit: there is no C compiler, or no binutils.
    """
    for tool in ("cc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed: stub libraries need a C compiler, binutils")
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", output("readelf", "-dW", str(library)))
    wanted = by_library(output("nm", "-D", "--undefined-only", str(library)).splitlines())
    cudas = [name for name in needed if PREFIX.match(name.removeprefix("lib"))]
    for name in cudas:
        build(name, wanted.get(name, {}), folder)
    return {name: len(wanted.get(name, {})) for name in cudas}


def by_library(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Group undefined symbols, `name@version` or `name`: library -> name -> version, or none."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in lines:
        name, _, version = line.split()[-1].partition("@")
        if not PREFIX.match(name):
            continue
        kind = "curand" if name.startswith("curand") else "cu"
        found[version or UNVERSIONED[kind]][name] = version
    return found


def build(soname: str, names: Mapping[str, str], folder: Path) -> None:
    """Compile one library; its functions carry the version that was asked for."""
    source, exports = folder / f"{soname}.c", folder / f"{soname}.map"
    digits = re.search(r"\.so\.(\d+)$", soname)
    version = f"{1000 * int(digits[1]) if digits else 0}"  # as CUDA counts: 13.0 is 13000
    bodies = (body(name, version).replace("F(", f"{name}(", 1) for name in names)
    source.write_text("\n".join((PRELUDE, *bodies)))
    options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
    if any(names.values()):
        exports.write_text(f"{soname} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={exports}")
    subprocess.run(["cc", *options, "-o", str(folder / soname), str(source)], check=True)


def body(name: str, version: str) -> str:
    """Return a function in C, called F."""
    if name in WRITTEN:
        return WRITTEN[name]
    if name.endswith("GetVersion"):
        return TELLS_VERSION.format(version=version)
    if re.search("Malloc|HostAlloc", name):
        return ALLOCATES
    if "Create" in name:
        return CREATES
    if re.search("Get(Error|Status)(Name|String)", name):
        return NAMES_STATUS
    return SUCCEEDS


def output(*command: str) -> str:
    """Return what a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
