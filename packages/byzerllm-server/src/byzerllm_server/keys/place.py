"""How `--keys` is written. Imports no database."""

from __future__ import annotations

from pathlib import Path

from byzerllm.errors import UsageError

DEFAULT_FILE = "~/.byzerllm/keys.db"


def read_place(given: str) -> str:
    """A URL as it is, a path absolute; `${NAME}` and `@FILE` stand for what they hold, so that a
    password is on no command line.

    Raises:
        UsageError: it is empty, or a variable or file is missing.
    """
    from byzerllm.cli.values import read_value

    place = read_value("--keys", given, "--keys").strip()
    if not place:
        raise UsageError("--keys is empty; name a database or a file")
    return place if "://" in place else str(Path(place).expanduser().absolute())
