"""What FFmpeg's errors mean, in our words: its own hold the address, password included."""

import errno

from av import error as av_error

from tokprune.camera.naming.sources import Kind

_NO_SUCH_DEVICE = "no such device: is it plugged in?"
_ABSENT = "the host cannot be reached: is the name right, and the network up?"
_NUMBERS = {
    errno.ECONNREFUSED: "connection refused: is the camera on, and the port right?",
    errno.ECONNRESET: "the connection was reset",
    errno.ECONNABORTED: "the connection was reset",
    errno.EPIPE: "the connection was reset",
    errno.ETIMEDOUT: "no answer in time",
    errno.EHOSTUNREACH: _ABSENT,
    errno.ENETUNREACH: _ABSENT,
    errno.ENETDOWN: _ABSENT,
    errno.EACCES: "no permission: for /dev/video*, the user must be in the group 'video'",
    errno.EPERM: "no permission: for /dev/video*, the user must be in the group 'video'",
    errno.EBUSY: "another program uses it",
    errno.ENODEV: _NO_SUCH_DEVICE,
    errno.ENXIO: _NO_SUCH_DEVICE,
    errno.ENOENT: _NO_SUCH_DEVICE,
    errno.ENOTTY: "it is no camera (V4L2)",
    errno.EMFILE: "this process has too many files open",
    errno.ENFILE: "too many files are open",
    errno.ENOMEM: "there is not enough memory",
    errno.ENOSPC: "the USB bus has no room for it: a smaller size, rate, or format=MJPG",
}
_CLASSES: tuple[tuple[type[BaseException], str], ...] = (
    (av_error.HTTPUnauthorizedError, "not authorised: check user name and password"),
    (av_error.HTTPForbiddenError, "access is forbidden: check user name and password"),
    (av_error.HTTPNotFoundError, "there is no such stream: check the path"),
    (av_error.HTTPServerError, "the server failed"),
    (av_error.HTTPClientError, "the server refused the request: check the path"),
    (av_error.InvalidDataError, "what it sends is no video that can be read"),
    (av_error.ExitError, "no answer in time"),
    (av_error.ProtocolNotFoundError, "this FFmpeg lacks the protocol, or may not use it"),
    (av_error.DecoderNotFoundError, "its codec is unknown"),
    (av_error.EOFError, "it closed the connection"),
    (MemoryError, "there is not enough memory"),
    (TimeoutError, "no answer in time"),
)  # fmt: skip
_KINDS: dict[tuple[Kind, int], str] = {
    ("device", errno.EINVAL): "it has no such size, rate or format",
    ("device", errno.EIO): _NO_SUCH_DEVICE,
    ("network", errno.EIO): _ABSENT,
    ("network", errno.ENOENT): "there is no such stream: check the path",
}


def words_for(error: BaseException, kind: Kind) -> str:
    """Return what went wrong. Nothing of the error's own text."""
    for known, words in _CLASSES:
        if isinstance(error, known):
            return words
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        words = _KINDS.get((kind, number)) or _NUMBERS.get(number)
        if words:
            return words
    return f"it cannot be read ({type(error).__name__})"
