"""Keys in a YAML file, for small teams: names, hashes and limits, never keys."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from byzerllm.errors import UsageError
from byzerllm_server.keys.record import LIMITS, MARK, Key, check_name, id_of, parse_since

logger = logging.getLogger("byzerllm.server")
SUFFIXES = (".yaml", ".yml")
HEADER = "# Keys of byzerllm serve, as hashes. `byzerllm keys create|revoke` rewrite this file.\n"
_TOP = ("version", "usage", "keys")
_TIMES = ("created", "expires", "revoked")
_FIELDS = ("name", "sha256", "prefix", *_TIMES, "models", *LIMITS)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class _Read:
    keys: dict[str, Key]
    usage: str


class KeyFile:
    """The keys of a file; read again when the file has changed.

    A file that is broken after a change is told of in the log, and the keys that were read before
    it hold on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._read = _Read({}, "")

    def __repr__(self) -> str:
        return f"KeyFile({str(self.path)!r})"

    @property
    def usage(self) -> str:
        """Where usage is written: `usage` of the file, else a database beside it."""
        return self._read.usage or str(self.path.with_suffix(".usage.db"))

    def load(self) -> None:
        """Read the file. Raises UsageError: it cannot be read, or is not as it must be."""
        self._read = _parsed(self.path)
        self._stamp = self._stamp_now()

    async def find(self, digest: str) -> Key | None:
        """The key with this hash."""
        await asyncio.to_thread(self._reload)
        return self._read.keys.get(digest)

    async def keys(self, ids: Iterable[str] | None = None) -> list[Key]:
        """The keys with these ids, or all of them."""
        await asyncio.to_thread(self._reload)
        wanted = None if ids is None else set(ids)
        return [key for key in self._read.keys.values() if wanted is None or key.id in wanted]

    async def add(self, key: Key) -> None:
        """Write a key into the file. Raises UsageError: there is one of this name."""
        if any(known.name == key.name for known in self._active()):
            raise UsageError(
                f"there is a key {key.name!r} already; choose another name, or revoke it first"
            )
        self._write({**self._read.keys, key.digest: key})

    async def revoke(self, name: str) -> bool:
        """End the active key of this name; False where there is none."""
        for key in self._active():
            if key.name == name:
                ended = msgspec.structs.replace(key, revoked=time.time())
                self._write({**self._read.keys, key.digest: ended})
                return True
        return False

    def _active(self) -> list[Key]:
        return [key for key in self._read.keys.values() if key.revoked is None]

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _reload(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._read = _parsed(self.path)
        except UsageError as error:
            logger.error("the keys read before hold on: %s", error.message)

    def _write(self, keys: Mapping[str, Key]) -> None:
        content: dict[str, Any] = {"version": 1}
        if self._read.usage:
            content["usage"] = self._read.usage
        content["keys"] = [_entry(key) for key in keys.values()]
        text = HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Who reads the file meanwhile reads the old one whole, or the new one.
            handle, name = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                Path(name).replace(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from None
        self.load()


def _parsed(path: Path) -> _Read:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        # The parser's own text quotes lines of the file.
        raise UsageError(f"{path}{line}: this is no YAML") from None
    if not isinstance(content, dict) or content.get("version") != 1:
        raise UsageError(f"{path}: a keys file begins with 'version: 1'")
    _only(content, _TOP, str(path))
    entries = content.get("keys") or []
    if not isinstance(entries, list):
        raise UsageError(f"{path}: keys must be a list")
    keys: dict[str, Key] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):
        key = _key(entry, f"{path}: key {number}")
        if key.digest in keys or (key.revoked is None and key.name in names):
            raise UsageError(f"{path}: key {number}: {key.name!r} is there twice")
        if key.revoked is None:
            names.add(key.name)
        keys[key.digest] = key
    usage = content.get("usage") or ""
    if not isinstance(usage, str):
        raise UsageError(f"{path}: usage must be a path, or a URL of a database")
    return _Read(keys, usage)


def _only(entry: Mapping[Any, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = [name for name in entry if name not in allowed]
    if unknown:
        # It may be a key itself that somebody wrote there.
        name = str(unknown[0])
        shown = "a key itself" if MARK in name else repr(name[:40])
        raise UsageError(f"{where}: {shown} is not known; allowed: {', '.join(allowed)}")


def _key(entry: Any, where: str) -> Key:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: must have name and sha256")
    _only(entry, _FIELDS, where)
    digest = entry.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise UsageError(
            f"{where}: sha256 must be the 64 hexadecimal digits of `byzerllm keys create`; "
            "a key itself never stands here"
        )
    name, prefix = entry.get("name"), entry.get("prefix", "")
    if not isinstance(name, str):
        raise UsageError(f"{where}: name is missing")
    if not isinstance(prefix, str) or len(prefix) > 16:
        raise UsageError(f"{where}: prefix must be the first letters of the key only")
    models = entry.get("models")
    if models is not None and not (
        isinstance(models, list) and all(isinstance(model, str) for model in models)
    ):
        raise UsageError(f"{where}: models must be a list of names")
    times = {field: _time(entry.get(field), f"{where}: {field}") for field in _TIMES}
    return Key(
        id=id_of(digest),
        digest=digest,
        name=check_name(name),
        prefix=prefix,
        created=times["created"] or 0.0,
        expires=times["expires"],
        revoked=times["revoked"],
        models=None if models is None else tuple(models),
        **{field: _limit(entry.get(field), f"{where}: {field}") for field in LIMITS},
    )


def _limit(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{where} must be a whole number from 1 up; leave it out for no limit")
    return value


def _time(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        return parse_since(str(value))
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}") from None


def _entry(key: Key) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": key.name, "sha256": key.digest, "prefix": key.prefix}
    for field in _TIMES:
        moment = getattr(key, field)
        if moment:
            entry[field] = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    if key.models is not None:
        entry["models"] = list(key.models)
    for field in LIMITS:
        if getattr(key, field) is not None:
            entry[field] = getattr(key, field)
    return entry
