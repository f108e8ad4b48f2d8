"""Which reader opens a source, and whether it can here."""

from functools import partial

from tokprune.camera.naming.sources import Source
from tokprune.camera.reading.fake import fake_opener, fake_settings
from tokprune.camera.reading.picture_files import PictureReader, picture_paths
from tokprune.camera.reading.reader import Opener
from tokprune.errors import BackendUnavailable, RequestInvalid

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0


def opener_of(
    source: Source,
    *,
    open_timeout_s: float = OPEN_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Opener:
    """Return what opens a source, again and again. The library for it is imported here.

    Raises:
        BackendUnavailable: that library is not installed.
        RequestInvalid: a folder or pattern has no picture.
    """
    if source.kind == "pictures":
        if not picture_paths(source):
            raise RequestInvalid(
                f"The source {source.shown} has no picture: JPEG, PNG and WebP files are read"
            )
        return partial(PictureReader, source)
    if source.kind == "csi":
        from tokprune.camera.reading.gstreamer import open_csi, require_gstreamer

        require_gstreamer()
        return partial(open_csi, source, open_timeout_s, read_timeout_s)
    if source.kind == "fake":
        return fake_opener(fake_settings(source.address.reveal()))
    _require_pyav(source)
    if source.kind == "file":
        from tokprune.camera.reading.av_files import open_file

        return partial(open_file, source)
    from tokprune.camera.reading.av_live import open_live

    return partial(open_live, source, open_timeout_s, read_timeout_s)


def _require_pyav(source: Source) -> None:
    try:
        import av as av
    except ImportError as error:
        reason = str(error)
    else:
        return
    raise BackendUnavailable(
        f"Reading {source.shown} needs PyAV ({reason}): pip install 'tokprune[camera]'"
    )
