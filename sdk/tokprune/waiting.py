"""Waiting in an event loop so that the cancelling of a task is never lost.

`asyncio.wait_for` before Python 3.12 forgets that its task was cancelled if what it waits for was
done in that very moment (https://github.com/python/cpython/issues/86296): a robot that stops its
watching task then waits for it for ever. So nothing here uses it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def until_told(news: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set. After `timeout_s` seconds it is set here."""
    alarm = asyncio.get_running_loop().call_later(timeout_s, news.set)
    try:
        await news.wait()
    finally:
        alarm.cancel()


async def within(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return what a coroutine does; it is cancelled after `timeout_s` seconds.

    Raises:
        asyncio.TimeoutError: it was not done in time.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=timeout_s)
    except asyncio.CancelledError:
        if task.done() and not task.cancelled():
            task.exception()  # nobody will ask for it
        raise
    finally:
        task.cancel()
    if not done:
        raise asyncio.TimeoutError
    return task.result()
