"""`tokprune serve` where the kernel kills whoever connects to anything.

Run as a program: `guarded_serve.py ARGUMENTS...` runs the command line; `guarded_serve.py planted`
connects, to prove the guard.
"""

import socket
import sys

from guarded_ask import forbid_sockets

CONNECT_CALLS = {"x86_64": (0xC000003E, 42), "aarch64": (0xC00000B7, 203)}  # arch, connect(2)

if __name__ == "__main__":
    forbid_sockets(CONNECT_CALLS)
    if sys.argv[1:] == ["planted"]:
        socket.create_connection(("127.0.0.1", 9))
    from tokprune.cli import main

    main()
