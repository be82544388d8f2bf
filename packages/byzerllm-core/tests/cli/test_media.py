import base64
import json
from pathlib import Path

import pytest

from byzerllm.cli.media import Media, decode, image_part, write_answer
from byzerllm.errors import UsageError

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels" * 20
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\0" * 60


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (encoded(PNG), [Media(PNG, "image/png")]),
        (encoded(WAV), [Media(WAV, "audio/wav")]),
        (base64.encodebytes(PNG).decode(), [Media(PNG, "image/png")]),
        (f"data:image/webp;base64,{encoded(b'any')}", [Media(b"any", "image/webp")]),
        (json.dumps([{"img64": encoded(PNG)}] * 2), [Media(PNG, "image/png")] * 2),
        (b"ID3sound", [Media(b"ID3sound", "audio/mpeg")]),
        (b"odd", [Media(b"odd", "application/octet-stream")]),
        ("Paris is the capital of France.", []),
        ("YES", []),
        ("iVBORw0KGgo", []),
        ("word" * 100, []),
        ('{"a": 1}', []),
        ("[not json", []),
        ("", []),
    ],
)
def test_decode(answer: str | bytes, expected: list[Media]) -> None:
    assert decode(answer) == expected


def test_texts_are_written_as_they_are(tmp_path: Path) -> None:
    assert write_answer("你好\n", tmp_path / "a.txt") == [tmp_path / "a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "你好\n"


def test_media_are_decoded(tmp_path: Path) -> None:
    write_answer(encoded(PNG), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == PNG


def test_several_pictures_are_numbered(tmp_path: Path) -> None:
    answer = json.dumps([{"img64": encoded(PNG)}, {"img64": encoded(PNG + b"2")}])
    names = write_answer(answer, tmp_path / "a.png")
    assert [name.name for name in names] == ["a-1.png", "a-2.png"]
    assert names[1].read_bytes() == PNG + b"2"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*/nope/a.txt: No such file"):
        write_answer("x", tmp_path / "nope" / "a.txt")


def test_image_parts(tmp_path: Path) -> None:
    url = "https://example.org/a.jpg"
    assert image_part(url) == {"type": "image_url", "image_url": {"url": url}}
    (tmp_path / "picture").write_bytes(PNG)
    part = image_part(str(tmp_path / "picture"))
    assert part["image_url"]["url"] == f"data:image/png;base64,{encoded(PNG)}"


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"a\.txt is no picture"):
        image_part(str(tmp_path / "a.txt"))
    with pytest.raises(UsageError, match=r"cannot read .*nope.png: No such file"):
        image_part(str(tmp_path / "nope.png"))
