import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from counts import CHUNKS, share
from picture_files import piece, png, saved, webp
from PIL import Image
from programs import run_program

from tokprune.errors import PictureInvalid
from tokprune.pictures import load_picture

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (6, 9, 3)).astype(np.uint8)
RGB = Image.fromarray(PIXELS)


@pytest.mark.parametrize("kind", ["VP8X", "VP8L", "VP8 "])
def test_the_size_of_a_webp_is_known_before_it_is_opened(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(PictureInvalid, match="9001 x 8002 pixels"):
        load_picture(webp(9001, 8002, kind))


def test_webp_sizes_of_real_files_are_read_right() -> None:
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}):
        data = saved(RGB, format="WEBP", **options)
        with pytest.raises(PictureInvalid, match="9 x 6 pixels"):
            load_picture(data, max_pixels=53)
        assert load_picture(data, max_pixels=54).shape == (6, 9, 3)


def test_a_large_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PictureInvalid, match=r"7072 x 7071 pixels, more than max_pixels=50000000"):
        load_picture(png(7072, 7071))
    jpeg = saved(RGB, format="JPEG").replace(
        struct.pack(">HH", 6, 9), struct.pack(">HH", 8000, 8000)
    )
    with pytest.raises(PictureInvalid, match="8000 x 8000"):
        load_picture(jpeg)


@pytest.mark.parametrize("side", [10_000, 50_000, 2_000_000_000])
def test_bombs_are_refused(side: int) -> None:
    with pytest.raises(PictureInvalid):
        load_picture(png(side, side))


def test_bombs_in_metadata_are_refused() -> None:
    bomb = b"comment\0\0" + zlib.compress(bytes(200 << 20))
    data = saved(RGB, format="PNG")
    with pytest.raises(PictureInvalid, match="cannot be opened"):
        load_picture(data[:33] + piece(b"zTXt", bomb) + data[33:])


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = saved(RGB, format="JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(PictureInvalid, match="more than 64 JPEG scans"):
        load_picture(data[:-2] + scan * 100 + data[-2:])


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture.png"  # whatever their names say
    path.write_bytes(saved(RGB, format=form))
    with pytest.raises(PictureInvalid, match="is no JPEG, PNG or WebP"):
        load_picture(path)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_refused(form: str) -> None:
    data = saved(RGB, format=form, save_all=True, append_images=[RGB.rotate(180)])
    with pytest.raises(PictureInvalid, match="animation of 2 frames: pass one frame"):
        load_picture(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(form: str) -> None:
    data = saved(
        Image.fromarray(CHANCE.integers(0, 256, (64, 64, 3)).astype(np.uint8)), format=form
    )
    for size in (0, 1, 8, 20, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(PictureInvalid):
            load_picture(data[:size])


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode: str) -> None:
    with pytest.raises(PictureInvalid, match="32-bit pixels"):
        load_picture(Image.new(mode, (4, 4)))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (PIXELS / 255, r"float64.*\(array \* 255\)"),
        (PIXELS.astype(np.float16), "float16"),
        (PIXELS.astype(np.uint16), "uint16.*scale it"),
        (PIXELS > 3, "bool"),
        (PIXELS[..., 0], r"grey \(6, 9\).*np.stack"),
        (np.zeros((6, 9, 4), np.uint8), r"four channels.*array\[..., :3\]"),
        (PIXELS.transpose(2, 0, 1), r"channels first.*transpose\(1, 2, 0\)"),
        (PIXELS[..., :1], r"shape \(6, 9, 1\)"),
        (PIXELS[None], r"shape \(1, 6, 9, 3\)"),
        (np.array(3, np.uint8), r"shape \(\)"),
        (PIXELS[:0], "empty: 9 x 0"),
        (PIXELS[:, :0], "empty: 0 x 6"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.dtype}{value.shape}",
)
def test_an_array_of_another_kind_is_refused_with_the_cure(array: np.ndarray, match: str) -> None:
    with pytest.raises(PictureInvalid, match=match):
        load_picture(array)


def test_an_array_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(PictureInvalid, match="9 x 6 pixels, more than max_pixels=53"):
        load_picture(PIXELS, max_pixels=53)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("none.png", "No such file"),
        ("", "No such file"),
        ("~/picture.png", "'~' is not expanded"),
        ("nul\0.png", "null"),
        ("/", "Is a directory|is a folder"),
        ("/dev/zero", "a pipe or a device"),
        ("http://127.0.0.1/picture.png", "nothing is fetched"),
        ("https://host/picture.png", "nothing is fetched"),
        ("file:///picture.png", "nothing is fetched"),
        ("data:image/png;base64,AAAA", "nothing is fetched"),
        ("\ud800.png", "cannot be read"),
    ],
)
def test_what_is_no_file_is_refused(path: str, match: str) -> None:
    with pytest.raises(PictureInvalid, match=match):
        load_picture(path)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PictureInvalid, match="a pipe"):
        load_picture(tmp_path / "pipe")


def test_a_file_that_no_picture_needs_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "picture.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PictureInvalid, match="has more than 1049376 bytes"):
        load_picture(tmp_path / "picture.png", max_pixels=100)


def test_other_objects_are_refused() -> None:
    program = """
from tokprune import PictureInvalid
from tokprune.pictures import load_picture
for source in (None, 3, [1, 2], bytearray(b"x"), object()):
    try:
        load_picture(source)
    except PictureInvalid as error:
        assert f"cannot be read from {type(source).__name__}" in str(error)
    else:
        raise AssertionError(source)
"""  # outside of pytest, where types are not checked before the function runs
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_the_state_of_pillow_is_left_alone() -> None:
    before = (Image.MAX_IMAGE_PIXELS, dict(Image.OPEN))
    load_picture(saved(RGB, format="PNG"))
    assert (Image.MAX_IMAGE_PIXELS, dict(Image.OPEN)) == before


@pytest.mark.parametrize("chunk", CHUNKS)
def test_damaged_pictures_are_read_or_refused(chunk: int) -> None:
    found = run_program("picture_mutants.py", str(chunk), str(share(10_000)))
    assert found["crashed"] == []
    assert found["hung"] == []
    assert found["tried"] == share(10_000) == sum(found["codes"].values())
    assert set(found["codes"]) == {"refused", "read"}
