"""The circuit breaker of a hosted model.

A vendor that has failed several times in a row is left alone for a while: requests are refused at
once instead of waiting for the next failure, so that callers can turn to a fallback. When the pause
is over one request is let through as a probe; its success ends the cooldown, its failure begins a
longer one. (M. Nygard, "Release It!", chapter on stability patterns.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

from byzerllm.errors import (
    AuthenticationError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)

FAILURES = 5
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
PROBE_SECONDS = 120.0
_COUNTED = (
    AuthenticationError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)


class CircuitBreaker:
    """Counts what a vendor answers. Used on one event loop.

    Args:
        model: the deployment's name, for errors.
        clock: seconds.
    """

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._failures = 0
        self._pause = 0.0
        self._until = 0.0
        self._probe_since: float | None = None
        self._last = ""

    @property
    def cooling(self) -> float:
        """Seconds until the next probe; 0 when requests go through."""
        return max(0.0, self._until - self._clock()) if self._pause else 0.0

    def enter(self) -> None:
        """To be called before a request.

        Raises:
            ProviderUnavailableError: the vendor is left alone; `cooling` is true, `retry_after`
                says for how long.
        """
        if not self._pause:
            return
        now = self._clock()
        probing = self._probe_since is not None and now - self._probe_since < PROBE_SECONDS
        if now >= self._until and not probing:
            self._probe_since = now
            return
        wait = max(self._until - now, 1.0)
        raise ProviderUnavailableError(
            f"the vendor of {self._model!r} failed {self._failures} times in a row and is left "
            f"alone for {wait:.0f} s; the last failure: {self._last}",
            retryable=False,
            cooling=True,
            retry_after=round(wait, 1),
        )

    def succeeded(self) -> None:
        self._failures = 0
        self._pause = 0.0
        self._probe_since = None

    def failed(self, error: BaseException) -> None:
        """What a request ended with: only failures that are the vendor's count; a vendor that
        refuses one request as wrong is well."""
        self._probe_since = None
        if getattr(error, "details", {}).get("own_limit"):
            # The worker kept to saas.rpm or saas.tpm; the vendor was not asked.
            return
        if not isinstance(error, _COUNTED):
            if isinstance(error, ProviderError):
                self.succeeded()
            return
        self._failures += 1
        self._last = f"{type(error).__name__}: {error}"
        if self._failures < FAILURES:
            return
        wanted = error.details.get("retry_after") or 0.0
        longer = min(max(2 * self._pause, FIRST_SECONDS), LONGEST_SECONDS)
        self._pause = min(max(longer, float(wanted)), LONGEST_SECONDS)
        self._until = self._clock() + self._pause
