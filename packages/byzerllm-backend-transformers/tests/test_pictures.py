"""Pictures out of requests: what is read, what is refused, and that nothing else is touched."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from byzerllm.errors import ParameterError
from byzerllm_backend_transformers import pictures
from byzerllm_backend_transformers.pictures import FORMATS, Picture, SentPicture, read_pictures


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(*urls: str) -> list[Picture]:
    return read_pictures(SentPicture(url, f"message {i}") for i, url in enumerate(urls))


RED = Image.new("RGB", (12, 8), "red")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    (picture,) = read(f"data:image/{kind.lower()};base64,{base64_of(file_of(RED, kind))}")
    assert picture.image.mode == "RGB"
    assert picture.image.size == (12, 8)
    red, green, blue = picture.image.getpixel((3, 3))
    assert red > 240
    assert green < 20
    assert blue < 20
    assert picture.name.endswith(f".{kind.lower()}")


def test_bare_base64_and_base64_of_several_lines_are_read() -> None:
    data = file_of(RED)
    lines = base64.encodebytes(data).decode()
    assert "\n" in lines.strip()
    one, other = read(base64_of(data), lines)
    assert one.name == other.name


def test_a_name_is_that_of_a_file() -> None:
    one, same, other = read(*map(base64_of, (file_of(RED), file_of(RED), file_of(RED, "BMP"))))
    assert one.name == same.name != other.name


def test_transparency_is_white() -> None:
    for image in (
        Image.new("RGBA", (4, 4), (0, 0, 0, 0)),
        Image.new("LA", (4, 4), (0, 0)),
        Image.new("P", (4, 4), 0),
    ):
        options = {"transparency": 0} if image.mode == "P" else {}
        (picture,) = read(base64_of(file_of(image, **options)))
        assert picture.image.getpixel((1, 1)) == (255, 255, 255), image.mode


def test_a_photo_stands_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (picture,) = read(base64_of(file_of(RED, "JPEG", exif=turned)))
    assert picture.image.size == (8, 12)


@pytest.mark.parametrize("url", ["http://localhost/a.png", "https://example.com/a.png"])
def test_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(ParameterError, match=r"message 0.*data URL") as raised:
        read(url)
    assert raised.value.parameter == "image_url"


@pytest.mark.parametrize("scheme", ["", "file://", "data:image/png,"])
def test_no_file_is_opened(tmp_path: Path, scheme: str) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(file_of(RED))
    with pytest.raises(ParameterError, match="image_url"):
        read(f"{scheme}{file}")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture at all",
        file_of(RED)[:40],
        file_of(Image.effect_noise((64, 64), 90), "JPEG")[:300],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "a format that runs programs"],
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ParameterError, match=r"message 1.*PNG, JPEG"):
        read(base64_of(file_of(RED)), base64_of(data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is as large as that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 11_000, 50_000, 2**31 - 1])
def test_bombs_are_not_unpacked(side: int) -> None:
    assert len(bomb(side, side)) < 300
    with pytest.raises(ParameterError, match="50,000,000 pixels"):
        read(base64_of(bomb(side, side)))


def test_many_pictures_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2 * 12 * 8)
    url = base64_of(file_of(RED))
    assert len(read(url, url)) == 2
    with pytest.raises(ParameterError, match="message 2"):
        read(url, url, url)


def test_files_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 2**20)
    with pytest.raises(ParameterError, match="1 MiB"):
        read("A" * (2**21))
