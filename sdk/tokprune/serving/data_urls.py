"""Pictures that stand in the request itself. Nothing is ever fetched, from anywhere."""

import re
from base64 import b64decode

from tokprune.errors import PictureInvalid
from tokprune.pictures import MAX_PIXELS, load_picture
from tokprune.types import Image

_HEAD = re.compile(r"data:[^,;]{0,100}(;[^,;]{0,100}){0,8};base64", re.IGNORECASE)
_EXPECTED = "expected a data URL: data:image/jpeg;base64,... (or png, webp)"


class PictureReader:
    """Reads the pictures of one request, which may have so many pixels together."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels
        self._left = max_pixels

    def read(self, url: str, where: str) -> Image:
        """Return the picture of a data URL (RFC 2397). `where` names it in errors.

        Raises:
            PictureInvalid: it is no data URL with a JPEG, PNG or WebP, or too large.
        """
        try:
            picture = load_picture(_data(url), max_pixels=self._max_pixels)
        except PictureInvalid as error:
            raise PictureInvalid(f"{where}: {error}") from None
        self._left -= picture.shape[0] * picture.shape[1]
        if self._left < 0:
            raise PictureInvalid(
                f"{where}: the pictures of this request have more than {self._max_pixels} pixels "
                "together: make them smaller, or send fewer"
            )
        return picture


def _data(url: str) -> bytes:
    head, comma, text = url.partition(",")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}:", url)
    if scheme and scheme[0].lower() != "data:":  # no more of it: an address may hold a password
        raise PictureInvalid(f"{scheme[0]} addresses are not fetched here, {_EXPECTED}")
    if not comma or not _HEAD.fullmatch(head):
        raise PictureInvalid(f"This is no data URL in base64, {_EXPECTED}")
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise PictureInvalid(f"The base64 of the data URL is damaged: {error!s:.100}") from None
