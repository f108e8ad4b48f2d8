"""Camera addresses that hold a secret, in every shape that people write, and what leaks of it."""

from itertools import product
from urllib.parse import quote

CLOSED = "127.0.0.1:9"  # nobody listens at the discard port
PASSWORDS = (
    "Zq7aHunterX", "Zq7a/Wj5b/Vk3c", "Zq7a@Wj5b@Vk3c", "Zq7a#Wj5b#Vk3c", "Zq7a?Wj5b=Vk3c",
    "Zq7a:Wj5b:Vk3c", "Zq7a%41Wj5b%", "Zq7a Wj5b Vk3c", "Zq7aäWj5bö", "Zq7a[Wj5b]Vk3c",
    "Zq7a\\Wj5b\\Vk3c", "Zq7a&amp;Wj5b", "Zq7a'Wj5b\"Vk3c", "Zq7a{Wj5b}%s", "Zq7aパスワード",
    "Zq7a$Wj5b!", "Zq7a/@Wj5b?Vk3c#", "Zq7a@Wj5b/Vk3c", "Zq7a@Wj5b#Vk3c@",
)  # fmt: skip
SCHEMES = ("rtsp", "RTSP", "rtsps", "http", "https", "HtTp")
HOSTS = (CLOSED, "localhost:9", "[::1]:9", "127.0.0.2:9", "")
SECRET = "Zq7TopSecretToken"
OTHERS = (  # without a password where one belongs
    f"rtsp://{SECRET}@{CLOSED}/live",
    f"rtsp://{SECRET}:@{CLOSED}/live",
    f"rtsp://:{SECRET}@{CLOSED}/live",
    f"rtsp://{CLOSED}/user=admin&password={SECRET}&channel=1",
    f"rtsp://{CLOSED}/user=admin_password={SECRET}_channel=0.sdp?real_stream",
    f"rtsp://{CLOSED}/cam?user=admin&pwd={SECRET}",
    f"rtsp://{CLOSED}/cam#{SECRET}",
    f"rtsp://{CLOSED}/{SECRET}/live",
    f"rtsp://{CLOSED}?{SECRET}",
    f"rtsp://a:b@{CLOSED}/x@{SECRET}",
    f"rtsp://admin:{SECRET}",
    f"rtsp://admin:{SECRET}@",
    f"rtsp://admin:{SECRET}@/live",
    f"rtsp://admin:{SECRET}@:554/live",
    f"rtsp://admin:{SECRET}@host name/live",
    f"rtsp://admin:{SECRET}@{CLOSED}:554:554/live",
    f"rtsp://admin:{SECRET}@127.0.0.1:99999/live",
    f"rtsp://admin:{SECRET}@127.0.0.1:port/live",
    f"rtsp://admin@{SECRET}@{CLOSED}/live",
    f"rtsp:/admin:{SECRET}@{CLOSED}/live",
    f"rtsp:admin:{SECRET}@{CLOSED}/live",
    f"rtsp:///admin:{SECRET}@{CLOSED}/live",
    f"rtsp//admin:{SECRET}@{CLOSED}/live",
    f"admin:{SECRET}@{CLOSED}/live",
    f"//admin:{SECRET}@{CLOSED}/live",
    f"{CLOSED}/live?password={SECRET}",
    f"rtps://admin:{SECRET}@{CLOSED}/live",
    f"rtmp://admin:{SECRET}@{CLOSED}/live",
    f"srt://{CLOSED}?passphrase={SECRET}",
    f"webrtc://{SECRET}@{CLOSED}/",
    f"http://{CLOSED}/video.mjpg?token={SECRET}",
    f"http://{CLOSED}/video.mjpg?access_token={SECRET}&x=1",
    f"https://{CLOSED}/{SECRET}.mjpg",
    f"http://{CLOSED}/v;jsessionid={SECRET}",
    f"http://admin:{SECRET}@{CLOSED}/video?x=http://u:{SECRET}@h/",
    f"http://{CLOSED}\\@{SECRET}/",
    f"http://{CLOSED}/%40{SECRET}",
    f"HTTP://admin:{SECRET}@[fe80::1%25lo]:9/",
    f"http://admin:{SECRET}@[::1:9/",
    f"  rtsp://admin:{SECRET}@{CLOSED}/live \n",
    f"rtsp://admin:{SECRET}@{CLOSED}/li\nve",
    f"rtsp://admin:{SECRET}\x00@{CLOSED}/live",
    f"rtsp://admin:{SECRET}\r\nX: y@{CLOSED}/live",
    f"v4l2://admin:{SECRET}@/dev/video0",
    f"csi://{SECRET}",
    f"fake://{SECRET}@scenes",
    f"file://admin:{SECRET}@{CLOSED}/film.mp4",
    f"env:rtsp://admin:{SECRET}@{CLOSED}/",
    f"rtsp://{'u' * 90}:{SECRET}{'p' * 90}@{CLOSED}/",
    f"rtsp://admin:{SECRET}@{CLOSED}/{'long/' * 600}",
)


def shapes() -> list[tuple[str, list[str]]]:
    """Return addresses, each with the pieces of text that nothing may show.

    None of them can be reached. Some are refused, others are opened in vain.
    """
    found: list[tuple[str, list[str]]] = []
    for number, (password, scheme) in enumerate(product(PASSWORDS, SCHEMES)):
        host = HOSTS[number % len(HOSTS)] or CLOSED
        found.append((f"{scheme}://admin:{password}@{host}/live?ch=1", pieces(password)))
        encoded = quote(password, safe="")
        found.append((f"{scheme}://admin:{encoded}@{host}/live", pieces(password, encoded)))
    found += [(url, [SECRET]) for url in OTHERS]
    return found


def pieces(*passwords: str) -> list[str]:
    """Return what would tell a password: itself, encoded, and every longer part of it."""
    parts: set[str] = set()
    for password in passwords:
        parts |= {password, quote(password), quote(password, safe=""), repr(password)[1:-1]}
        text = password
        for mark in "/@#?:% [\\]&'\"{}$!;=":
            text = text.replace(mark, "\n")
        parts |= {part for part in text.split("\n") if len(part) > 3}
    return sorted(parts)


def leaks(text: str | bytes, secrets: list[str]) -> list[str]:
    """Return which secrets a text shows."""
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return [secret for secret in secrets if secret in shown]
