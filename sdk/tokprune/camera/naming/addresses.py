"""Addresses of network cameras: what of them may be shown, and how FFmpeg is to get them.

A password may hold any character, and people paste it as it is. Where the address could then be
read in two ways it is refused, and no part of it is shown beyond the scheme: what is taken for the
host may be half of the password, and would be looked up in the network.
"""

import re
from typing import NamedTuple, NoReturn
from urllib.parse import quote

from tokprune.camera.naming.redaction import HIDDEN
from tokprune.errors import RequestInvalid

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_V6 = r"\[[0-9A-Fa-f:.]{2,45}(?:%(?:25)?[A-Za-z0-9_.-]{1,16})?\]"
_PLACE = re.compile(rf"(?P<host>{_LABEL}(?:\.{_LABEL})*\.?|{_V6})(?::(?P<port>[0-9]{{1,5}}))?")
_ENDS = re.compile(r"[/?#\\]")
_KEPT = "%/?:!$&'()*+,;=~[]-._"  # in paths and queries; `#` ends them
_MOST_CHARACTERS = 1900  # FFmpeg's buffers have 2048, 1024 of a path
_MOST_OF_A_LOGIN = 127  # FFmpeg cuts the rest off
_ENCODE = (
    "write the characters / ? # @ : % of a user name or password as %2F %3F %23 %40 %3A %25 "
    "(rtsp://USER:PASSWORD@HOST:PORT/PATH)"
)


class Address(NamedTuple):
    """An address of the network, told apart."""

    shown: str  # safe to show
    host: str  # safe too
    wire: str  # the whole, for the library that opens it


def read_address(scheme: str, rest: str) -> Address:
    """Tell an address apart; `rest` is what stands after `scheme://`.

    Raises:
        RequestInvalid: nothing can be reached by it. The message shows no part but the scheme.
    """
    hidden = f"{scheme}://{HIDDEN}"
    if len(rest) > _MOST_CHARACTERS:
        _refuse(f"The address {hidden} has {len(rest)} characters, at most {_MOST_CHARACTERS}")
    end = _ENDS.search(rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    login, _, place = authority.rpartition("@")
    found = _PLACE.fullmatch(place)
    if not place:
        _refuse(f"The address {hidden} names no host, expected HOST or HOST:PORT: {_ENCODE}")
    if not found or int(found["port"] or 1) not in range(1, 65536):
        _refuse(
            f"In the address {hidden} no HOST or HOST:PORT stands where one is expected: {_ENCODE}"
        )
    if len(login) > _MOST_OF_A_LOGIN and scheme.startswith("rtsp"):
        _refuse(f"The user name and password of {hidden} have more than {_MOST_OF_A_LOGIN} bytes")
    if "@" in tail or "\\" in tail:
        _refuse(
            f"An '@' or '\\' stands behind the host of {hidden} (in a path they are %40 and %5C): "
            f"{_ENCODE}"
        )
    encoded = quote(login, safe="%:!$&'()*+,;=~")
    wire = (
        f"{scheme}://{encoded}{'@' if login else ''}{place}{quote(tail.partition('#')[0], _KEPT)}"
    )
    return Address(f"{scheme}://{place}", found["host"], wire)


def _refuse(message: str) -> NoReturn:
    raise RequestInvalid(message)
