"""A question asked where the kernel forbids something.

Run as a program: `guarded_ask.py GUARD BUNDLE SECONDS` loads the bundle, asks, lives on for some
seconds (what sends telemetry does it late), and prints the answer as JSON. GUARD is `network`
(whoever makes a socket, native code included, is killed), `planted` (the same, and a socket is
made, to prove the guard) or `read-only` (nothing can be written; run it under narrow_disk.UNSHARE).
"""

import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SOCKET_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # audit arch, socket(2)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def forbid_sockets(calls: Mapping[str, tuple[int, int]] = SOCKET_CALLS) -> None:
    """Let the kernel kill this process when it makes a socket. Follows seccomp(2).

    `calls`: another system call to forbid, by machine: audit arch and number.
    """
    arch, call = calls[platform.machine()]
    steps = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_EQUAL, 0, 2, arch),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_EQUAL, 1, 0, call),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value, pointer in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _FILTER, program),
    ):
        if libc.prctl(option, value, pointer, 0, 0):
            raise OSError(ctypes.get_errno(), "this kernel takes no seccomp filter")


def forbid_writing() -> None:
    """Make every file system of this mount namespace read-only, as far as it has any."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind not in ("proc", "sysfs", "cgroup2", "devpts", "mqueue"):
            command = ["mount", "-o", "remount,bind,ro", where]
            subprocess.run(command, check=False, capture_output=True)


def writable(folders: list[Path]) -> list[str]:
    """Return where a file can be written in spite of all."""
    found: list[str] = []
    for folder in folders:
        probe = folder / f"probe-{os.getpid()}"
        status = subprocess.run(["touch", str(probe)], check=False, capture_output=True).returncode
        if not status:
            probe.unlink()
            found.append(str(folder))
    return found


def main(guard: str, bundle: Path, seconds: float) -> dict[str, object]:
    """Ask under a guard."""
    free: list[str] = []
    if guard == "read-only":
        folders = [bundle, Path.cwd(), Path.home(), Path(tempfile.gettempdir())]
        forbid_writing()
        free = writable(folders)
    else:
        forbid_sockets()
    if guard == "planted":
        socket.socket()
    import tokprune

    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    answer = tokprune.load(bundle, threads=1).ask(picture, "what is this?", 0.5, max_new_tokens=3)
    time.sleep(seconds)
    return {"kept": answer.kept, "total": answer.total, "text": answer.text, "writable": free}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))) + "\n")
