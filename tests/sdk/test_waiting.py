"""A task that is cancelled ends, at whatever step of the event loop: also as what it awaits comes.

`asyncio.wait_for` of Python 3.10 and 3.11 loses the cancelling there, so tasks would go on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from scripted_camera import Script, camera_of
from stub_model import Stub, a_picture, a_vlm
from watchdog import watchdog

from tokprune import TokpruneError, Watcher
from tokprune.camera.camera import Camera
from tokprune.waiting import until_told, within

STEPS = range(8)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(task: "asyncio.Task[None]") -> bool:
    """Cancel once, and see whether the task is cancelled then."""
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5.0)
    task.cancel()
    return bool(done) and task.cancelled()


def for_ever(work: Callable[[], Awaitable[object]]) -> "asyncio.Task[None]":
    async def loop() -> None:
        while True:
            try:
                await work()
            except TokpruneError:  # noqa: PERF203 - as robots do that go on
                await asyncio.sleep(0)

    return asyncio.create_task(loop())


@pytest.mark.parametrize("count", STEPS)
def test_waiting_for_an_event_ends_with_its_task(count: int) -> None:
    async def main() -> None:
        news = asyncio.Event()

        async def work() -> None:
            await until_told(news, 60.0)
            news.clear()

        task = for_ever(work)
        await steps(3)
        news.set()
        await steps(count)
        assert await ended(task)

    asyncio.run(main())


@pytest.mark.parametrize("count", STEPS)
@pytest.mark.parametrize("fails", [False, True])
def test_bounded_work_ends_with_its_task(count: int, fails: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        news = asyncio.Event()
        cancelled = asyncio.Event()

        async def inner() -> None:
            try:
                await news.wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            news.clear()
            if fails:
                raise TokpruneError("it failed")

        task = for_ever(lambda: within(inner(), 60.0))
        await steps(4)
        news.set()
        await steps(count)
        assert await ended(task)
        if count > len(STEPS) // 2:
            assert cancelled.is_set()  # the next round's

    asyncio.run(main())


def test_waiting_ends_in_time_and_work_that_is_late_is_cancelled() -> None:
    async def main() -> None:
        news = asyncio.Event()
        await until_told(news, 0.01)
        assert news.is_set()
        ends: list[str] = []

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ends.append("cancelled")

        async def quick() -> str:
            await asyncio.sleep(0)
            return "done"

        with pytest.raises(asyncio.TimeoutError):
            await within(slow(), 0.01)
        await steps(2)
        assert ends == ["cancelled"]
        assert await within(quick(), 60.0) == "done"

    asyncio.run(main())


async def after_news(camera: Camera, script: Script, value: int, count: int) -> None:
    """Return so many steps after a new picture was told."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    end = camera.listen(lambda: loop.call_soon_threadsafe(told.set))
    script.give(a_picture(value))
    await told.wait()
    await steps(count)
    end()


def test_a_task_that_waits_for_pictures_ends_as_one_comes() -> None:
    script = Script()

    async def main() -> None:
        with camera_of(script) as camera:
            for value in range(10 * len(STEPS)):
                task = for_ever(camera.wait_async)
                await steps(2)
                await after_news(camera, script, value, value % len(STEPS))
                assert await ended(task)

    asyncio.run(main())


def test_a_task_that_watches_ends_at_any_step() -> None:
    script = Script()

    async def main() -> None:
        with (
            a_vlm(Stub(), max_waiting=2) as vlm,
            camera_of(script) as camera,
            Watcher(vlm, camera, "what is it?") as watcher,
        ):
            for value in range(10 * len(STEPS)):
                task = for_ever(watcher.next_async)
                await steps(2)
                await after_news(camera, script, value, value % 40)
                assert await ended(task)

    asyncio.run(main())


def test_a_task_that_asks_ends_at_any_step() -> None:
    """Between any two steps of the event loop, from the first to those after the answer."""

    async def main() -> None:
        with a_vlm(Stub(), max_waiting=2) as vlm:
            for count in range(0, 120, 3):
                task = for_ever(lambda: vlm.ask_async(a_picture(1), "what is it?"))
                for _ in range(count):
                    await asyncio.sleep(0 if count % 2 else 0.0003)
                assert await ended(task)

    asyncio.run(main())
