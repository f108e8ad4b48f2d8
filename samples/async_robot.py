"""A robot's control loop at 50 Hz in asyncio, with questions beside it that never hold it up.

    python samples/async_robot.py BUNDLE [SOURCE] [--seconds S]

The model runs on a thread of its own; `ask_async` only waits for it. At the end the program says
how late its own control steps were, with and without questions, so see what yours does to them.
"""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import tyro

import tokprune

PERIOD_S = 1 / 50


@dataclass
class Robot:
    """What the control loop knows."""

    heard: str = "nothing"
    answers: int = 0
    late_ms: list[float] = field(default_factory=list)

    async def control(self, seconds: float) -> None:
        """Take a step of control every 20 ms: sensors, motors, and what was heard."""
        due_s = time.monotonic()
        for _ in range(round(seconds / PERIOD_S)):
            due_s += PERIOD_S
            await asyncio.sleep(due_s - time.monotonic())
            self.late_ms.append((time.monotonic() - due_s) * 1000)

    async def watch(self, vlm: tokprune.VLM, camera: tokprune.Camera, question: str) -> None:
        """Ask about the newest picture, as often as the model can."""
        while True:
            try:
                await camera.wait_async(timeout_s=1.0)
                answer = await vlm.ask_async(camera, question, max_new_tokens=8, deadline_s=2.0)
                self.heard, self.answers = answer.text, self.answers + 1
            except tokprune.TokpruneError as error:  # noqa: PERF203 - questions go on
                self.heard = f"no answer ({error.code})"
                await asyncio.sleep(0.1)

    def report(self, what: str) -> None:
        """Say how late the steps were."""
        late = sorted(self.late_ms)
        p50, p99 = (late[int(share * (len(late) - 1))] for share in (0.5, 0.99))
        print(f"{what}: {len(late)} steps, late by {p50:.2f} ms (median), {p99:.2f} ms (p99)")
        print(f"{what}: {self.answers} answers, heard: {self.heard}")


async def main(
    bundle: Path,
    source: str = "fake://scenes?seed=7",
    /,
    question: str = "how many shapes are there?",
    seconds: float = 5.0,
) -> None:
    """Measure; the bundle is the folder that tokprune-export wrote, the source any camera."""
    # One thread for the model leaves the other cores to the robot.
    vlm = tokprune.load(bundle, threads=1, warmup=[0.5])
    with vlm, tokprune.open_camera(source) as camera:
        alone, robot = Robot(), Robot()
        await alone.control(seconds)
        alone.report("without questions")
        watching = asyncio.create_task(robot.watch(vlm, camera, question))
        await robot.control(seconds)
        robot.report("with questions")
        watching.cancel()  # stops the running question too
        await asyncio.wait([watching])


if __name__ == "__main__":
    asyncio.run(tyro.cli(main))
