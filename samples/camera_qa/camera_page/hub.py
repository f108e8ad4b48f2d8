"""Between cameras and browsers: who hears what. Lives on the event loop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import tokprune
from camera_page.client import SOURCES, Client, Key
from camera_page.event_log import EventLog
from camera_page.events import (
    HINTS,
    Answered,
    Asked,
    Calibrating,
    CameraSeen,
    Failed,
    Hello,
    Machine,
    Refused,
    Settings,
    Sources,
    Writing,
    explained,
    packed,
)
from camera_page.machine import MachineFigures
from camera_page.messages import Ask, Calibrate, Cancel, Control, Pause, Resume, Set
from camera_page.station import Beginning, Station, Told

_log = logging.getLogger("camera_page")
STATUS_S, MACHINE_S = 0.2, 2.0
REMEMBERED = 20  # answers of each camera, for browsers that come later
MOST_WEBCAMS = 4
MEASURING_S = 10.0  # about so long nothing is answered, and Ctrl-C waits


class Hub:
    """Keeps the stations, and tells every browser of them."""

    def __init__(
        self, vlm: tokprune.VLM, hello: Hello, beginning: Beginning, log: EventLog | None = None
    ) -> None:
        """Begin without cameras; on the event loop's thread."""
        self.webcams = 0  # browsers that give their own camera
        self._vlm = vlm
        self._hello = hello
        self._beginning = beginning
        self._event_log = log
        self._loop = asyncio.get_running_loop()
        self._stations: dict[int, Station] = {}
        self._clients: set[Client] = set()
        self._latest: dict[int, dict[Key, str]] = {}  # of each station, for who comes later
        self._next = 0
        self._figures = MachineFigures()
        self._machine: str | None = None
        self._log_error: str | None = None
        self._calibrating = False
        self._closed = False

    @property
    def stations(self) -> Sequence[Station]:
        """All cameras, in the order of their tabs."""
        return list(self._stations.values())

    def station(self, number: int) -> Station | None:
        """Return a camera by number, if there is one."""
        return self._stations.get(number)

    def add(self, camera: tokprune.Camera) -> Station:
        """Watch another camera.

        Raises:
            TokpruneError: the model cannot be asked like that.
        """
        number, self._next = self._next, self._next + 1
        self._latest[number] = {}
        name = _unused(camera.name, {station.name for station in self.stations})
        station = Station(
            number, name, camera, self._vlm, self._beginning, self._from_thread, self._event_log
        )
        self._stations[number] = station
        self._tell(SOURCES, packed(self._sources()))
        self._hear(station, station.settings)
        self._hear(station, station.seen())
        return station

    async def remove(self, station: Station) -> None:
        """Let go of a camera."""
        self._stations.pop(station.id, None)
        self._latest.pop(station.id, None)
        self._tell(SOURCES, packed(self._sources()))
        await asyncio.to_thread(station.close)

    def join(self, client: Client) -> None:
        """Tell a browser all there is, and from now on all that happens."""
        self._clients.add(client)
        client.text(("hello",), packed(self._hello))
        client.text(SOURCES, packed(self._sources()))
        if self._machine is not None:
            client.text(("machine",), self._machine)
        for latest in self._latest.values():
            for key, text in latest.items():
                client.text(key, text)

    def leave(self, client: Client) -> None:
        """Tell a browser no more."""
        self._clients.discard(client)

    async def obey(self, client: Client, message: Control | Calibrate) -> None:
        """Do what a browser asks for, or tell it why not."""
        if isinstance(message, Calibrate):
            await self._calibrate()
            return
        station = self._stations.get(message.source)
        if station is None:
            return  # it has just gone
        about = str(message.__struct_config__.tag)
        try:
            _act(station, message)
        except Exception as error:
            if not isinstance(error, tokprune.TokpruneError):
                _log.exception("A message of a browser failed")
            client.text(("refused",), packed(Refused(about, *explained(error))))

    async def look_after(self) -> None:
        """Tell the cameras' states and the machine's figures, until cancelled."""
        machine_s = 0.0
        while True:
            for station in self.stations:
                self._hear(station, station.seen())
            if (machine_s := machine_s - STATUS_S) <= 0:
                machine_s = MACHINE_S
                figures = await asyncio.to_thread(self._figures.read)
                self._machine = packed(Machine(figures))
                self._tell(("machine",), self._machine)
            self._report_log()
            await asyncio.sleep(STATUS_S)

    async def close(self) -> None:
        """End all watchers and cameras."""
        self._closed = True
        stations = self.stations
        self._stations.clear()
        await asyncio.gather(*(asyncio.to_thread(station.close) for station in stations))

    def _report_log(self) -> None:
        """Say once that the event log cannot be written; questions go on."""
        error = None if self._event_log is None else self._event_log.error
        if error is not None and error != self._log_error:
            refused = Refused("log", "event_log", error, HINTS["event_log"])
            self._tell(("refused",), packed(refused))
        self._log_error = error

    async def _calibrate(self) -> None:
        if self._calibrating:
            return
        self._calibrating = True
        self._tell(("calibrating",), packed(Calibrating(running=True)))
        try:
            await asyncio.to_thread(self._vlm.calibrate, MEASURING_S, save=False)
        except tokprune.TokpruneError as error:
            self._tell(("refused",), packed(Refused("calibrate", *explained(error))))
        else:
            self._tell(("calibrating",), packed(Calibrating(running=False)))
        finally:
            self._calibrating = False

    def _sources(self) -> Sources:
        return Sources(
            [
                {"id": station.id, "name": station.name, "shown": station.camera.status().source}
                for station in self.stations
            ]
        )

    def _from_thread(self, station: Station, told: Told) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, station, told)

    def _hear(self, station: Station, told: Told) -> None:
        """Pass on what a station says, and remember what is the newest of its kind."""
        latest = self._latest.get(station.id)
        if latest is None or self._closed:
            return
        text = packed(told)
        match told:
            case Settings() | CameraSeen():
                key: Key = (station.id, type(told).__name__)
                if latest.get(key) == text:
                    return
            case Asked() | Writing():
                key = (station.id, "run", type(told).__name__)
            case Answered() | Failed():
                key = (station.id, "entry", told.id, type(told).__name__)
                _forget_oldest(latest)
                for client in self._clients:
                    client.forget((station.id, "run", "Writing"))
        if not isinstance(told, (Asked, Writing)):
            latest[key] = text
        self._tell(key, text)

    def _tell(self, key: Key, text: str) -> None:
        for client in self._clients:
            client.text(key, text)


def _unused(name: str, taken: set[str]) -> str:
    """Return a name, or the name and the first number from 2 on, that no camera has."""
    number = 1
    while (tried := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return tried


def _forget_oldest(latest: dict[Key, str]) -> None:
    entries = [key for key in latest if key[1] == "entry"]
    for key in entries[: max(0, len(entries) + 1 - REMEMBERED)]:
        del latest[key]


def _act(station: Station, message: Control) -> None:
    acts: dict[type, Callable[[], None]] = {
        Pause: station.pause,
        Resume: station.resume,
        Cancel: station.cancel,
    }
    match message:
        case Set():
            station.change(message)
        case Ask():
            station.ask(message.question)
        case _:
            acts[type(message)]()
