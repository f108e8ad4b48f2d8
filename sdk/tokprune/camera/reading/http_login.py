"""Answers to a server that asks who is there: Basic (RFC 7617) and Digest (RFC 7616)."""

import hashlib
import secrets
from base64 import b64encode
from urllib.request import parse_http_list, parse_keqv_list

_HASHES = {"MD5": "md5", "SHA-256": "sha256"}


def authorization(challenges: list[str], login: tuple[str, str], method: str, uri: str) -> str:
    """Return the `Authorization` for the safest challenge that is known, empty if none is.

    Args:
        challenges: values of `WWW-Authenticate`, one scheme each.
        login: user name and password.
        method: of the request.
        uri: path and query of the request.
    """
    user, password = login
    kinds = [challenge.strip().partition(" ") for challenge in challenges]
    for name in ("SHA-256", "MD5"):
        for kind, _, rest in kinds:
            if kind.lower() == "digest":
                asked = {key.lower(): value for key, value in _pairs(rest).items()}
                if asked.get("algorithm", "MD5").upper() == name and "nonce" in asked:
                    return _digest(asked, user, password, method, uri)
    if any(kind.lower() == "basic" for kind, _, _ in kinds):
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return ""


def _pairs(text: str) -> dict[str, str]:
    return parse_keqv_list([part for part in parse_http_list(text) if "=" in part])


def _digest(asked: dict[str, str], user: str, password: str, method: str, uri: str) -> str:
    algorithm = asked.get("algorithm", "MD5").upper()

    def hashed(text: str) -> str:
        return hashlib.new(_HASHES[algorithm], text.encode(), usedforsecurity=False).hexdigest()

    realm, nonce = asked.get("realm", ""), asked["nonce"]
    who, what = hashed(f"{user}:{realm}:{password}"), hashed(f"{method}:{uri}")
    said = {"username": user, "realm": realm, "nonce": nonce, "uri": uri}
    plain = {"algorithm": algorithm}
    if "auth" in [each.strip() for each in asked.get("qop", "").split(",")]:
        count, own = "00000001", secrets.token_hex(8)
        said["response"] = hashed(f"{who}:{nonce}:{count}:{own}:auth:{what}")
        said["cnonce"] = own
        plain |= {"qop": "auth", "nc": count}
    else:
        said["response"] = hashed(f"{who}:{nonce}:{what}")
    if "opaque" in asked:
        said["opaque"] = asked["opaque"]
    quoted = [f'{key}="{_escaped(value)}"' for key, value in said.items()]
    return "Digest " + ", ".join(quoted + [f"{key}={value}" for key, value in plain.items()])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
