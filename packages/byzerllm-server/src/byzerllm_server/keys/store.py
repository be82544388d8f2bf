"""What `--keys` names: a database, or a file of keys with a database for what they used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy.engine import URL

from byzerllm.errors import UsageError
from byzerllm_server.keys.database import Database, database_url, make_folder
from byzerllm_server.keys.file import SUFFIXES, KeyFile
from byzerllm_server.keys.record import Key


class Keys(Protocol):
    """Where keys are found."""

    async def find(self, digest: str) -> Key | None: ...

    async def keys(self, ids: Iterable[str] | None = None) -> list[Key]: ...

    async def add(self, key: Key) -> None: ...

    async def revoke(self, name: str) -> bool: ...


@dataclass(frozen=True)
class Store:
    """Keys, and the database of windows and usage; for a database of keys these are one."""

    keys: Keys
    database: Database


def open_store(place: str, *, create: bool) -> Store:
    """The store that `--keys` names; `Database.open` has yet to be called.

    Args:
        place: a URL, or a path; `.yaml` and `.yml` are files of keys, other paths SQLite's.
        create: make a file that is missing.

    Raises:
        UsageError: there is nothing at this path, or what is there cannot be used.
    """
    path = Path(place).expanduser().absolute()
    if "://" not in place and path.suffix.lower() in SUFFIXES:
        file = KeyFile(path)
        if path.is_file() or not create:
            file.load()
        url = database_url(file.usage)
        make_folder(url)
        return Store(file, Database(url))
    url = database_url(place)
    _check_file(url, create=create)
    database = Database(url)
    return Store(database, database)


def _check_file(url: URL, *, create: bool) -> None:
    if url.get_backend_name() != "sqlite":
        return
    if not url.database or url.database == ":memory:":
        raise UsageError("--keys: a database in memory has no keys; name a file")
    path = Path(url.database)
    if path.is_dir():
        raise UsageError(f"--keys: {path} is a folder")
    if not create and not path.is_file():
        raise UsageError(
            f"--keys: no file {path}; `byzerllm keys create NAME --keys {path}` makes it"
        )
    make_folder(url)
