"""The camera page's server: slow browsers, several browsers, its start and its end."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import camera_pages
import pytest
from camera_listeners import Socket, a_client, a_hello
from camera_page.client import MOST_WAITING
from camera_page.event_log import EventLog
from camera_page.hub import REMEMBERED, Hub
from camera_page.messages import Ask, Cancel, Set
from camera_page.photos import Photo
from camera_page.station import Beginning
from PIL import Image
from stub_model import Stub, a_model, a_picture, a_vlm
from watchdog import watchdog

import tokprune
from tokprune import FrameStamp
from tokprune.looking import NO_WAYS, Ways
from tokprune.vlm import VLM

BEGINNING: dict[str, Any] = {
    "question": "what is it?",
    "mode": "on_demand",
    "budget": "1.0",
    "max_new_tokens": 3,
}


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


class Shown:
    """A station that shows another picture each time."""

    def __init__(self) -> None:
        self.asked: Any = None
        self.number = 0

    def live(self) -> Any:
        self.number += 1
        stamp = FrameStamp("eye", self.number, time.monotonic(), time.time())
        return Photo("live", 0, stamp, a_picture(1))


def test_a_browser_that_draws_slowly_gets_fewer_pictures_and_slows_no_other() -> None:
    async def run() -> tuple[int, int]:
        station, quick, slow = Shown(), Socket(), Socket()
        clients = [a_client(socket, lambda _: station) for socket in (quick, slow)]
        tasks = [asyncio.create_task(client.send()) for client in clients]
        for client in clients:
            client.watch(0)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            await asyncio.sleep(0.01)
            if quick.pictures:
                clients[0].drawn()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(quick.pictures), len(slow.pictures)

    quick, slow = asyncio.run(run())
    assert slow == 1  # it never said that it had drawn it
    assert 8 <= quick <= 20  # 12 a second


def test_texts_for_a_stuck_browser_replace_each_other_and_never_pile_up() -> None:
    async def run() -> tuple[int, list[Any]]:
        socket = Socket()
        client = a_client(socket, lambda _: None)
        socket.free.clear()
        sending = asyncio.create_task(client.send())
        for number in range(5000):
            client.text((0, "state"), json.dumps({"state": number}))
            client.text((0, "entry", number), json.dumps({"entry": number}))
            if number % 100 == 0:
                await asyncio.sleep(0)
        socket.free.set()
        await asyncio.sleep(0.1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return len(socket.texts), socket.texts[-2:]

    count, last = asyncio.run(run())
    assert count <= MOST_WAITING + 1
    assert last == [{"state": 4999}, {"entry": 4999}]


def test_files_are_played_at_their_speed_unless_every_frame_is_wanted(tmp_path: Path) -> None:
    program = camera_pages.program()
    for number in range(3):
        Image.fromarray(a_picture(number)).save(tmp_path / f"{number}.png")
    sources = (str(tmp_path), "fake://scenes")
    for every_frame in (False, True):
        command = program.CameraPage(
            bundle=tmp_path, source=sources, name=("shelf",), every_frame=every_frame, loop=True
        )
        cameras = list(program.opened(command))
        assert [camera.live for camera in cameras] == [not every_frame, True]
        assert cameras[0].name == "shelf"
        for camera in cameras:
            camera.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ()}, "Give --source"),
        ({"name": ("a", "b")}, "2 names for 1 sources"),
        ({"keep_frames_mb": 1.0}, "give --log FOLDER too"),
        ({"keep_frames_mb": -1.0, "log": Path()}, "0 or more"),
        ({"selector": "relevanse"}, "Did you mean 'relevance'"),
        ({"budget": "half"}, "Cannot read the budget"),
        ({"encode": "lasy"}, "Did you mean 'lazy'"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_before_anything_is_opened(
    changes: dict[str, Any], message: str
) -> None:
    program = camera_pages.program()
    given = {"bundle": Path("nowhere"), "source": ("fake://scenes",), **changes}
    with pytest.raises(tokprune.RequestInvalid, match=message):
        program.run(program.CameraPage(**given))


def test_browsers_hear_of_all_cameras_and_who_comes_later_of_the_last_answers(
    tmp_path: Path,
) -> None:
    async def run(folder: Path) -> tuple[list[Any], list[Any]]:
        with a_vlm(Stub()) as vlm:
            log = EventLog(folder)
            hub = Hub(vlm, a_hello(), Beginning(**BEGINNING), log)
            pushed = [tokprune.PushedFrames() for _ in range(2)]
            for each in pushed:
                each.push(a_picture(1))
                hub.add(tokprune.open_camera(each, name="eye", frozen_after_s=None))
            first, later = Socket(), Socket()
            clients = [a_client(socket, hub.station) for socket in (first, later)]
            tasks = [asyncio.create_task(client.send()) for client in clients]
            tasks.append(asyncio.create_task(hub.look_after()))
            hub.join(clients[0])
            await said(first, "camera", state="LIVE", source=1)
            await hub.obey(clients[0], Ask(1, "what now?"))
            await said(first, "answered", question="what now?")
            await hub.obey(clients[0], Set(1, budget="nonsense"))
            await hub.obey(clients[0], Cancel(99))  # a camera that is not there
            await said(first, "refused", about="set", code="request_invalid")
            log.error = "The event log cannot be written: No space left on device"
            await said(first, "refused", code="event_log", message=log.error)
            hub.join(clients[1])
            await said(later, "answered", question="what now?")
            await hub.remove(hub.stations[0])
            await said(later, "sources", sources=[{"id": 1, "name": "eye 2", "shown": "pushed"}])
            await ended(tasks)
            await hub.close()
            return first.texts, later.texts

    first, later = asyncio.run(run(tmp_path))
    assert [text["type"] for text in later[:2]] == ["hello", "sources"]
    assert [each["name"] for each in later[1]["sources"]] == ["eye", "eye 2"]
    types = [text["type"] for text in first]
    assert types.index("asked") < types.index("answered")
    assert not [text for text in later if text["type"] == "refused"]  # whose fault it was hears it


def test_who_comes_later_hears_of_so_many_answers_and_no_more() -> None:
    async def run() -> list[Any]:
        with a_vlm(Stub()) as vlm:
            hub = Hub(vlm, a_hello(), Beginning(**BEGINNING))
            pushed = tokprune.PushedFrames()
            hub.add(tokprune.open_camera(pushed, name="eye", frozen_after_s=None))
            first, later = Socket(), Socket()
            clients = [a_client(socket, hub.station) for socket in (first, later)]
            tasks = [asyncio.create_task(client.send()) for client in clients]
            hub.join(clients[0])
            for number in range(1, REMEMBERED + 4):
                pushed.push(a_picture(number))
                await hub.obey(clients[0], Ask(0, f"what is number {number}?"))
                await said(first, "answered", id=number)
            hub.join(clients[1])
            await said(later, "answered", id=REMEMBERED + 3)
            await ended(tasks)
            await hub.close()
            return [text["id"] for text in later.texts if text["type"] == "answered"]

    assert asyncio.run(run()) == list(range(4, REMEMBERED + 4))


async def ended(tasks: list[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def said(socket: Socket, kind: str, **fields: Any) -> None:
    wanted = {"type": kind, **fields}
    until = time.monotonic() + 20
    while not any(wanted.items() <= text.items() for text in socket.texts):
        assert time.monotonic() < until, (wanted, socket.texts[-5:])
        await asyncio.sleep(0.01)


@pytest.mark.torch
@pytest.mark.demo
def test_ctrl_c_ends_it_in_two_seconds_with_browsers_and_an_answer_in_the_middle(
    demo_bundle: Path, tmp_path: Path
) -> None:
    from websockets.sync.client import connect

    arguments = ("--source", "fake://scenes", "--source", "fake://scenes?seed=1")
    with camera_pages.camera_page(demo_bundle, tmp_path, *arguments) as page:
        page.set_pace(1.0)
        url = f"{page.url.replace('http', 'ws', 1)}live"
        with connect(url, compression=None, max_queue=None) as one, connect(url) as stuck:
            one.send(json.dumps({"type": "watch", "source": 0}))
            stuck.send(json.dumps({"type": "watch", "source": 1}))
            while not (isinstance(text := one.recv(20), str) and '"writing"' in text):
                pass
            status, told, seconds = page.end()
    assert (status, told) == (0, "")
    assert seconds < 2


@pytest.mark.torch
@pytest.mark.demo
def test_other_machines_need_the_token_that_is_printed(demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--source", "fake://scenes", "--mode", "on_demand", "--listen", "0.0.0.0")
    with camera_pages.camera_page(demo_bundle, tmp_path, *arguments) as page:
        _, _, query = page.url.partition("?")
        port = int(page.url.partition("/?")[0].rpartition(":")[2])
        home = f"http://127.0.0.1:{port}"
        assert query.startswith("token=")
        assert len(query) > 30
        assert opened(f"{home}/?{query}") == 200
        assert opened(f"{home}/") == 403
        assert opened(f"{home}/static/main.js") == 403
        assert opened(f"{home}/?{query}x") == 403
        status, told, _ = page.end()
    assert (status, told) == (0, "")


def opened(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize(
    ("ways", "window", "last"),
    [(Ways(crops=True), 1, "follow"), (Ways(crops=True), 4, "auto"), (NO_WAYS, 1, "auto")],
)
def test_the_page_offers_what_the_bundle_can(ways: Ways, window: int, last: str) -> None:
    program, model = camera_pages.program(), a_model(Stub())
    model = replace(model, processor=replace(model.processor, ways=ways))
    command = program.CameraPage(Path("there"), source=("fake://scenes",), window=window)
    with VLM(model) as vlm:
        assert program.greeting(vlm, command, drawn=False).encodes[-1] == last
