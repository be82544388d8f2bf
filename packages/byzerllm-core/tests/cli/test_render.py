from io import StringIO

import pytest
from rich.console import Console

from byzerllm.cli.render import key_values, plain, seconds, size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.85, "850 ms"),
        (3.21, "3.2 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_seconds(value: float | None, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0, "0 B"), (20480, "20 KiB"), (3.5 * 1024**3, "3.5 GiB")],
)
def test_size(value: float | None, expected: str) -> None:
    assert size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (0.25, "0.25"),
        (["a", "b"], "a, b"),
        ([], "–"),
        ({"a": 1}, "a=1"),
        ("", "–"),
        (0, "0"),
    ],
)
def test_plain(value: object, expected: str) -> None:
    assert plain(value) == expected


def test_markup_in_values_is_shown_as_it_is() -> None:
    out = StringIO()
    Console(file=out, width=80).print(key_values({"name": "[red]x[/red] [/]"}))
    assert "[red]x[/red] [/]" in out.getvalue()
