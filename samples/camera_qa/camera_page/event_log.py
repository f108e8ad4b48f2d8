"""Questions, answers and errors as lines of JSON, and the newest asked frames as JPEG."""

import re
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

LOG_MB = 64
_PICTURE = re.compile(r"(\d{9})-[\w.-]+\.jpg")


class EventLog:
    """Writes `events.jsonl` and, where frames are kept, `frames/NUMBER-CAMERA-FRAME.jpg`.

    Both are bounded: `events.jsonl` is renamed to `events.1.jsonl`, over the one before, when it
    has half of its bytes; of the frames the oldest are deleted. A disk that is full ends nothing:
    `error` says what went wrong last.
    """

    def __init__(self, folder: Path, *, keep_frames_mb: float = 0, log_mb: float = LOG_MB) -> None:
        """Go on in a folder, which is made where it is missing.

        Args:
            folder: where to write.
            keep_frames_mb: bytes of all frames together, in millions; 0 keeps none.
            log_mb: bytes of the lines, in millions.
        """
        self.error: str | None = None
        self._lines = folder / "events.jsonl"
        self._old_lines = folder / "events.1.jsonl"
        self._frames = folder / "frames"
        self._frame_bytes = int(keep_frames_mb * 1e6)
        self._line_bytes = int(log_mb * 1e6) // 2
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        if self._frame_bytes:
            self._frames.mkdir(exist_ok=True)
        self._kept = self._found() if self._frame_bytes else []
        self._next = 1 + max((number for number, _, _ in self._kept), default=-1)

    @property
    def keeps_frames(self) -> bool:
        """Whether `write` wants pictures."""
        return self._frame_bytes > 0

    def write(self, record: dict[str, Any], jpeg: bytes | None = None) -> None:
        """Add a line, and the picture that it is about."""
        with self._lock:
            try:
                name = self._keep(record, jpeg) if jpeg and self._frame_bytes else None
                self._add({**record, "picture": name} if name else record)
            except OSError as error:
                self.error = f"The event log cannot be written: {error.strerror}"
            else:
                self.error = None

    def _add(self, record: dict[str, Any]) -> None:
        line = msgspec.json.encode(record) + b"\n"
        if self._lines.exists() and self._lines.stat().st_size + len(line) > self._line_bytes:
            self._lines.replace(self._old_lines)
        with self._lines.open("ab") as file:
            file.write(line)

    def _keep(self, record: dict[str, Any], jpeg: bytes) -> str | None:
        if len(jpeg) > self._frame_bytes:
            return None
        held = sum(size for _, _, size in self._kept)
        while self._kept and held + len(jpeg) > self._frame_bytes:
            _, oldest, size = self._kept.pop(0)
            oldest.unlink(missing_ok=True)
            held -= size
        camera = re.sub(r"[^\w.-]+", "_", str(record.get("camera", "")))[:40] or "camera"
        path = self._frames / f"{self._next:09d}-{camera}-{record.get('frame')}.jpg"
        path.write_bytes(jpeg)
        self._kept.append((self._next, path, len(jpeg)))
        self._next += 1
        return f"frames/{path.name}"

    def _found(self) -> list[tuple[int, Path, int]]:
        """Return what an earlier run kept, oldest first."""
        matched = ((_PICTURE.fullmatch(path.name), path) for path in self._frames.iterdir())
        found = [(int(match[1]), path, path.stat().st_size) for match, path in matched if match]
        return sorted(found)
