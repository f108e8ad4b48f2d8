"""Picture files made by hand."""

import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"


def saved(picture: Image.Image, **options: Any) -> bytes:
    """Return what Pillow writes."""
    data = BytesIO()
    picture.save(data, **options)
    return data.getvalue()


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG file with this header, whatever its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pieces = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return PNG_START + b"".join(piece(kind, data) for kind, data in pieces)


def piece(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def webp(width: int, height: int, kind: str) -> bytes:
    """The start of a WebP file of this size."""
    if kind == "VP8X":
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        body = b"VP8X\x0a\0\0\0\0\0\0\0" + size
    elif kind == "VP8L":
        bits = (width - 1) | (height - 1) << 14
        body = b"VP8L\x20\0\0\0\x2f" + struct.pack("<I", bits) + bytes(27)
    else:
        frame = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
        body = b"VP8 \x20\0\0\0" + frame + bytes(22)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
