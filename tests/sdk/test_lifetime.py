"""When a VLM, its worker, an event loop or the process ends, or is forked."""

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from threading import Event

import pytest
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import watchdog


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


def until(true: Callable[[], object]) -> None:
    """Wait for another thread; the watchdog ends it."""
    pause = Event()
    while not true():
        pause.wait(0.001)


def test_a_loop_that_was_closed_does_not_take_the_worker_with_it() -> None:
    """Streams that a closed loop waited for, at every place where the worker would wake it."""
    stub = Stub()
    with a_vlm(stub, max_waiting=0) as vlm:
        held = Held("decode")
        stub.at = held
        loop = asyncio.new_event_loop()
        stream = loop.run_until_complete(vlm.stream_async(a_picture(1), "a?"))
        reading = loop.create_task(stream.result_async())
        outside = loop.create_task(vlm.ask_async(a_picture(), "b?"))
        loop.run_until_complete(asyncio.sleep(0))
        assert held.reached.wait(20)
        until(lambda: vlm.health().waiting == 1)
        loop.close()
        held.go.set()
        until(lambda: vlm.health().state == "ready" or vlm.health().waiting == 0)
        for task in (reading, outside):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.get_coro().close()
        assert vlm.ask(a_picture(), "c?").finish_reason == "stop"


def test_a_vlm_that_is_let_go_of_ends_its_threads() -> None:
    vlm = a_vlm()
    vlm.ask(a_picture(), "a?", deadline_s=100.0)
    threads = [vlm._runtime.worker._thread, vlm._runtime.worker._alarms._thread]
    there = weakref.ref(vlm)
    del vlm
    gc.collect()
    assert there() is None
    for thread in threads:
        assert thread is not None
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("what", ["stream", "chat", "pin"])
def test_what_a_vlm_made_goes_on_when_the_vlm_itself_is_let_go_of(what: str) -> None:
    expected = a_vlm().ask(a_picture(1), "a?", 1.0).text
    assert expected
    if what == "stream":
        assert "".join(a_vlm().stream(a_picture(1), "a?", 1.0)) == expected
    elif what == "chat":
        chat = a_vlm().chat()
        gc.collect()
        assert chat.ask("a?", a_picture(1), 1.0).text == expected
    else:
        pinned = a_vlm().pin(a_picture(1), budget=1.0)
        gc.collect()
        assert pinned.ask("a?").text == expected


FORK = """
import os, signal, sys, warnings
from threading import Thread
from stub_model import *
from tokprune import ForkDetected
warnings.simplefilter("ignore", DeprecationWarning)
stub = Stub()
held = Held("decode")
vlm = a_vlm(stub)
chat = vlm.chat()
before = vlm.ask(a_picture(), "a?")
stub.at = held
stream = vlm.stream(a_picture(1), "b?", deadline_s=100.0)
assert held.reached.wait(20)
locks = sys.argv[1] == "held"
if locks:  # as if another thread had held every one of them
    runtime = vlm._runtime
    alien = [runtime.worker._changed, runtime.worker._alarms._changed, runtime.state.stats._lock,
             runtime.state.vision_cache._lock, runtime.state.kv._lock]
    Thread(target=lambda: [lock.acquire() for lock in alien]).start()
pid = os.fork()
if not pid:
    signal.alarm(20)  # a hang ends by it
    for ask in (lambda: vlm.ask(a_picture(), "a?"), lambda: chat.ask("a?"),
                lambda: vlm.pin(a_picture()).ask("a?")):
        try:
            ask()
        except ForkDetected as error:
            assert "spawn" in str(error) and error.code == "fork_detected"
        else:
            raise SystemExit("not found out")
    vlm.health()
    stream.close()
    vlm.close()
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if locks:
    os._exit(status)
held.go.set()
assert stream.result().text
assert vlm.ask(a_picture(), "a?").text == before.text
vlm.close()
sys.exit(status)
"""


@pytest.mark.parametrize("locks", ["free", "held"])
def test_a_fork_is_told_so_and_ends_while_its_parent_goes_on(locks: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, locks],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 7, done.stderr
    assert not done.stderr


def test_the_program_ends_though_a_request_runs() -> None:
    code = (
        "from stub_model import *\n"
        "stub = Stub(); stub.at = held = Held('decode')\n"
        "vlm = a_vlm(stub); stream = vlm.stream(a_picture(1), 'a?', deadline_s=100.0)\n"
        "assert held.reached.wait(20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stderr) == (0, "")
