"""How the node is, as diagnostic_msgs wants it. Needs no ROS."""

from dataclasses import dataclass

from tokprune_ros.asking import Situation

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"  # diagnostic_msgs/DiagnosticStatus: of the type byte
_LEVELS = {"LIVE": OK, "CONNECTING": WARN, "STALE": WARN}


@dataclass(frozen=True)
class Report:
    """A DiagnosticStatus."""

    level: bytes
    message: str
    values: tuple[tuple[str, str], ...] = ()


def report(now: Situation | None, refused_before: int = 0) -> Report:
    """Say how the node is.

    Args:
        now: None before it is configured.
        refused_before: refused pictures that the last report knew.
    """
    if now is None:
        return Report(OK, "not configured")
    level, message = _judged(now, refused_before)
    return Report(level, message, (*_of_answers(now), *_of_camera(now)))


def _judged(now: Situation, refused_before: int) -> tuple[bytes, str]:
    if now.health.state == "closed":
        return ERROR, "the model was closed"
    if now.camera is None:
        return OK, "not active"
    state = now.camera.state
    level = _LEVELS.get(state, ERROR)
    if now.refused_pictures > refused_before:
        return max(level, WARN), now.refused_why
    if level != OK:
        return level, f"the camera is {state}: {now.camera.error or 'no question is answered'}"
    return OK, "answering" if now.goals else "ready"


def _of_answers(now: Situation) -> list[tuple[str, str]]:
    stats = now.stats
    values = [
        ("bundle", now.health.bundle),
        ("backend", now.health.backend),
        ("goals", str(now.goals)),
        ("answered", str(stats.answered)),
        ("failed", str(stats.failed)),
    ]
    values += [(f"failed: {code}", str(count)) for code, count in sorted(stats.errors.items())]
    if stats.ttft_ms is not None:
        values += [("ttft_ms p50", f"{stats.ttft_ms.p50:.1f}")]
        values += [("ttft_ms p95", f"{stats.ttft_ms.p95:.1f}")]
    if stats.kept_share is not None:
        values += [("kept share p50", f"{stats.kept_share.p50:.3f}")]
    return values


def _of_camera(now: Situation) -> list[tuple[str, str]]:
    camera = now.camera
    if camera is None:
        return []
    values = [("camera", camera.state), ("pictures", str(camera.frames))]
    if camera.age_s is not None:
        values += [("frame age s", f"{camera.age_s:.3f}")]
    if camera.fps is not None:
        values += [("pictures a second", f"{camera.fps:.1f}")]
    if camera.size_wh is not None:
        values += [("picture size", "{} x {}".format(*camera.size_wh))]
    values += [("refused pictures", str(now.refused_pictures))]
    if now.refused_why:
        values += [("last refused because", now.refused_why)]
    return values
