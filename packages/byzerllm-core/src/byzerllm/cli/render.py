"""Tables, numbers and times as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.table import Table

UNKNOWN = "–"
STATE_STYLES = {
    "ready": "green",
    "ok": "green",
    "starting": "yellow",
    "degraded": "yellow",
    "draining": "yellow",
    "warn": "yellow",
    "disabled": "dim",
    "broken": "red",
    "fail": "red",
    "dead": "red",
}


def print_json(data: Any, *, indent: int | None = 2) -> None:
    """`data` on standard output, Chinese as it is."""
    click.echo(json.dumps(data, ensure_ascii=False, indent=indent, default=str))


def table(columns: Sequence[str], numbers: Iterable[str] = ()) -> Table:
    """An empty table; the columns named in `numbers` stand at the right."""
    right = frozenset(numbers)
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def key_values(pairs: Mapping[str, Any]) -> Table:
    """Two columns without a header."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for key, value in pairs.items():
        made.add_row(key, plain(value))
    return made


def plain(value: Any) -> str:
    """A value for a table cell, safe from markup."""
    if value is None or value == "":
        text = UNKNOWN
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, list | tuple):
        text = ", ".join(str(item) for item in value) or UNKNOWN
    elif isinstance(value, dict):
        text = " ".join(f"{key}={item}" for key, item in value.items()) or UNKNOWN
    else:
        text = str(value)
    return text.replace("[", r"\[")


def state(name: str) -> str:
    """A state in its colour."""
    style = STATE_STYLES.get(name)
    return f"[{style}]{name}[/]" if style else plain(name)


def seconds(value: float | None) -> str:
    """`850 ms`, `3.2 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = int(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(value: float | None) -> str:
    """Bytes as `512 B`, `20 KiB`, `3.5 GiB`."""
    if value is None:
        return UNKNOWN
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
