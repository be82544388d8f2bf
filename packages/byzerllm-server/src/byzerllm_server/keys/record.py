"""A key as it is stored: a hash and its limits, never the key."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from byzerllm.errors import UsageError

MARK = "sk-bz-"
RANDOM_BYTES = 32
PREFIX_LENGTH = len(MARK) + 6
LONGEST_KEY = 256
"""Longer texts are no keys, and are not hashed."""
_NAME = re.compile(r"[\w.@+:-][\w.@+: -]{0,99}")
_SPAN = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Key(Struct, kw_only=True, frozen=True):
    """One key. Times in seconds since the epoch; None where there is no limit.

    Attributes:
        id: the first half of the hash; usage rows have it.
        digest: the SHA-256 of the key, as hexadecimal digits.
        name: unique among the keys that are not revoked.
        prefix: the beginning of the key, to recognise it by.
        models: names, as served, that it may use; None for all.
        requests_per_minute, tokens_per_minute: how much it may ask in a minute, over all servers
            of one database. Tokens are those of questions and answers.
        concurrency: requests at once.
        token_budget: tokens in all.
        monthly_token_budget: tokens in a calendar month, UTC.
    """

    id: str
    digest: str
    name: str
    prefix: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    token_budget: int | None = None
    monthly_token_budget: int | None = None

    @property
    def limited(self) -> bool:
        """Whether its requests or tokens per minute are counted."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "token_budget",
    "monthly_token_budget",
)
"""The limits of a key that are numbers."""


def new_key() -> str:
    """A new random key of 256 bits."""
    return MARK + secrets.token_urlsafe(RANDOM_BYTES)


def digest_of(key: bytes) -> str:
    """What is stored of a key.

    One round of SHA-256 is enough: slow, salted hashes protect passwords, which people choose and
    others can guess. A random key of 256 bits cannot be guessed, however fast the hash is; and the
    hash is computed for each request.
    """
    return hashlib.sha256(key).hexdigest()


def id_of(digest: str) -> str:
    """The id of the key with this hash."""
    return digest[:32]


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        UsageError: it is empty, too long, looks like a key, or would break a table.
    """
    if not _NAME.fullmatch(name) or name.startswith(MARK):
        raise UsageError(
            f"{name[:40]!r} is no name of a key: up to 100 letters, digits, spaces and . @ + : _ -"
        )
    return name


def parse_expiry(text: str) -> float:
    """When a key ends: `30d` from now (s, m, h, d, w), or a date as `2027-01-31[T12:00+08:00]`,
    UTC where it names no zone.

    Raises:
        UsageError: it is neither, or in the past.
    """
    moment = _moment(text, forward=True)
    if moment <= time.time():
        raise UsageError(f"{text!r} is in the past")
    return moment


def parse_since(text: str) -> float:
    """The time so long ago, or a date; as `parse_expiry`."""
    return _moment(text, forward=False)


def _moment(text: str, *, forward: bool) -> float:
    span = _SPAN.fullmatch(text.strip().lower())
    try:
        if span:
            length = timedelta(seconds=int(span[1]) * _UNITS[span[2]])
            now = datetime.now(UTC)
            return (now + length if forward else now - length).timestamp()
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time: write a span as 12h, 30d or 8w, or a date as 2027-01-31"
        ) from None


def month_of(moment: float) -> str:
    """`2026-11`, UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m")
