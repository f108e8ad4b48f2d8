"""What FFmpeg is told of live sources. Pure: nothing is opened here."""

from typing import Final, NamedTuple

from tokprune.camera.naming.options import CameraOptions
from tokprune.pictures import MAX_PIXELS

CODECS: Final = {
    "h264": "H.264", "hevc": "H.265", "mjpeg": "Motion JPEG", "rawvideo": "raw video",
    "vp8": "VP8", "vp9": "VP9", "libdav1d": "AV1",
}  # fmt: skip
CONTAINERS: Final = "mpjpeg,mpegts,mov,mp4,matroska,webm,flv"  # over HTTP
_MAX_PIXELS: Final = {"max_pixels": str(MAX_PIXELS * 5 // 4)}  # decoders count whole blocks
_PROBE: Final = {"analyzeduration": "1000000", "probesize": "1000000", "fpsprobesize": "0"}
_NONBLOCK: Final = "+4"  # AVFMT_FLAG_NONBLOCK; it has no name among the options


class Opening(NamedTuple):
    """Arguments of `av.open`."""

    format: str | None
    options: dict[str, str]
    container_options: dict[str, str]


def rtsp_opening() -> Opening:
    """Return what an RTSP camera is opened with: TCP, as UDP loses packets, and video alone.

    FFmpeg's `nobuffer` is left out. It throws away what was read to learn about the stream, and
    with it the first key frame: the first picture would come one group of pictures later. What is
    kept is decoded at once, so nothing stays behind.
    """
    low = {"rtsp_transport": "tcp", "allowed_media_types": "video", "reorder_queue_size": "0"}
    options = {**_MAX_PIXELS, **_PROBE, **low, "max_delay": "0"}
    return Opening("rtsp", options, _allowed("rtsp", "rtsp,rtp,tcp,tls,crypto"))


def http_opening(content_type: str) -> Opening:
    """Return what the body of a HTTP answer is read with. It names nothing that is opened."""
    known = "mpjpeg" if content_type.startswith("multipart/") else None
    return Opening(known, {**_MAX_PIXELS, **_PROBE}, _allowed(CONTAINERS, "none"))


def device_opening(options: CameraOptions) -> Opening:
    """Return what a V4L2 camera is opened with. Not blocking: its driver's waits have no end."""
    wanted = {**_MAX_PIXELS, **_PROBE, "fflags": _NONBLOCK}
    if options.width is not None:
        wanted["video_size"] = f"{options.width}x{options.height}"
    if options.fps is not None:
        wanted["framerate"] = f"{options.fps:g}"
    if options.format is not None:
        wanted["input_format"] = options.format
    return Opening("v4l2", wanted, _allowed("video4linux2,v4l2", "none"))


def codec_options(codec: str) -> dict[str, str]:
    """Return what a decoder is opened with.

    H.264 and its kin say which pictures are damaged; in `explode` they would refuse streams for
    trifles. Motion JPEG says nothing, and fills what is missing with grey, unless it is strict.
    """
    strict = {"err_detect": "explode"} if codec == "mjpeg" else {}
    return {**_MAX_PIXELS, **strict, "flags": "low_delay"}


def _allowed(formats: str, protocols: str) -> dict[str, str]:
    return {
        "format_whitelist": formats,
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": protocols,
    }
