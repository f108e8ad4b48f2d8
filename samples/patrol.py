"""Ask a camera the same yes/no question for ever, and stop the robot whenever there is doubt.

    python samples/patrol.py BUNDLE [SOURCE] [--question Q] [--go-on yes|no]

It moves on an answer that is sure and in time. A late answer, a camera that is lost, frozen or slow
and a model that fails stop it. A loop that hangs is for systemd (Type=notify, WatchdogSec=5).
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Literal

import tyro

import tokprune
from tokprune import CameraUnusable, DeadlineExceeded, EngineFailed


def notify(state: str) -> None:
    """Tell systemd, if that has started the program (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(state.encode(), address.replace("@", "\0", 1))


def act(action: str, why: str) -> None:
    """Put your robot's command here. Its base should stop by itself when none comes any more."""
    print(f"{time.strftime('%X')} {action:4} {why}", flush=True)


def patrol(
    bundle: Path,
    source: str = "fake://scenes?seed=7",
    /,
    question: str = "is there a yellow star?",
    go_on: Literal["yes", "no"] = "no",
    sure: float = 0.8,
    deadline_s: float = 1.0,
    every_s: float = 0.5,
    seconds: float = float("inf"),
) -> None:
    """Patrol, until it is stopped.

    Args:
        bundle: the folder that tokprune-export wrote.
        source: a camera, such as /dev/video0, csi://0, rtsp://... or fake://scenes.
        question: to be answered with yes or no.
        go_on: the answer that lets the robot move.
        sure: least probability of that answer.
        deadline_s: later answers count as none.
        every_s: time from one question to the next.
        seconds: how long to patrol.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # through `finally`
    until_s = time.monotonic() + seconds
    how: tokprune.AskOptions = {"choices": ["yes", "no"], "deadline_s": deadline_s}
    with tokprune.load(bundle, warmup=[0.5]) as vlm, tokprune.open_camera(source) as camera:
        notify("READY=1")
        try:
            while (began_s := time.monotonic()) < until_s:
                try:
                    answer = vlm.ask(camera, question, 0.5, **how)
                    share = (answer.probabilities or {}).get(go_on, 0.0)
                    why = f"{answer.choice} ({share:.0%} {go_on}), {answer.frame_age_s:.2f} s old"
                    act("GO" if share >= sure else "STOP", why)
                except (CameraUnusable, DeadlineExceeded, EngineFailed) as error:
                    act("STOP", f"{error.code}: {error}")
                notify("WATCHDOG=1")  # only here: whatever hangs above is seen
                time.sleep(max(0.0, began_s + every_s - time.monotonic()))
        finally:  # any other error ends the program; systemd starts it again
            act("STOP", "the patrol has ended")


if __name__ == "__main__":
    tyro.cli(patrol)
