"""The keys of one deployment, used in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from byzerllm.errors import (
    AuthenticationError,
    ByzerLLMError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitedError,
)

RATE_LIMITED_SECONDS = 10.0
REFUSED_SECONDS = 300.0
_OF_THE_KEY = (AuthenticationError, PermissionDeniedError, QuotaExceededError, RateLimitedError)


@dataclass(eq=False, slots=True)
class _Key:
    text: str
    rests_until: float = 0.0


class KeyRing:
    """Hands out keys in turn; one that the vendor refused rests for a while.

    A single key is always handed out: whether it works again is the vendor's to say.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [_Key(text) for text in keys]
        self._next = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"

    def texts(self) -> list[str]:
        return [key.text for key in self._keys]

    def pick(self) -> str:
        """The next key that does not rest, else the one that rests the shortest; '' of none."""
        if len(self._keys) < 2:
            return self._keys[0].text if self._keys else ""
        now = time.monotonic()
        count = len(self._keys)
        turns = [self._keys[(self._next + step) % count] for step in range(count)]
        chosen = next((key for key in turns if key.rests_until <= now), None)
        chosen = chosen or min(turns, key=lambda key: key.rests_until)
        self._next = (self._keys.index(chosen) + 1) % count
        return chosen.text

    def failed(self, text: str, error: ByzerLLMError) -> bool:
        """Let a key rest when the error is about it; whether another one is ready."""
        if len(self._keys) < 2 or not isinstance(error, _OF_THE_KEY):
            return False
        now = time.monotonic()
        seconds = REFUSED_SECONDS
        if isinstance(error, RateLimitedError):
            seconds = error.details.get("retry_after") or RATE_LIMITED_SECONDS
        for key in self._keys:
            if key.text == text:
                key.rests_until = now + seconds
        return any(key.rests_until <= now for key in self._keys)
