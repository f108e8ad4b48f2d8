"""A second handle on a connection, by which another thread cuts it while it is read."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

_DESCRIPTORS = Path("/proc/self/fd")
_claimed: set[str] = set()
_lock = Lock()


class Plug:
    """Cuts a connection. The library that owns it then reads its end."""

    def __init__(self, descriptor: int, inode: str = "") -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._inode = inode
        self._lock = Lock()  # `cut` comes from another thread than `close`

    def cut(self) -> None:
        """Let nothing more be received: a blocked read returns."""
        with self._lock, suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the handle back."""
        with self._lock:
            self._socket.close()
        with _lock:
            _claimed.discard(self._inode)


def sockets() -> set[str]:
    """Return the sockets of this process, by the kernel's names."""
    found: set[str] = set()
    for path in _DESCRIPTORS.iterdir():
        with suppress(OSError):
            found.add(str(path.readlink()))
    return {name for name in found if name.startswith("socket:")}


def new_plug(before: set[str], port: int) -> Plug | None:
    """Return a plug of the one connection to a port that was made since.

    FFmpeg does not say which its socket is. Where another thread made a connection to the same
    port meanwhile, it is not known either, and None is returned.
    """
    with _lock:
        found: dict[str, int] = {}
        for path in _DESCRIPTORS.iterdir():
            with suppress(OSError):
                name = str(path.readlink())
                made = name.startswith("socket:") and name not in before | _claimed
                if made and _peer_port(int(path.name)) == port:
                    found[name] = int(path.name)
        if len(found) != 1:
            return None
        [(inode, descriptor)] = found.items()
        _claimed.add(inode)
    try:
        return Plug(descriptor, inode)
    except OSError:
        _claimed.discard(inode)
        return None


def _peer_port(descriptor: int) -> int | None:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        peer: Any = copy.getpeername()
        return int(peer[1]) if copy.family in (socket.AF_INET, socket.AF_INET6) else None
