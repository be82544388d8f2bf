"""The circuit breaker of a hosted model.

A vendor that fails is left alone for a while: requests are refused at once instead of waiting for
the next failure, so that callers can turn to a fallback. When the pause is over one request is let
through as a probe; its success ends the cooldown, its failure begins a longer one. (M. Nygard,
"Release It!", chapter on stability patterns.)

Two things tell that a vendor fails: several failures in a row, or most requests of the last
seconds. Both want no fewer of them than requests were in flight lately. Failures come back sooner
than answers do, timeouts later, and what is asked again is what failed, so of a burst the first and
the last to be heard of are failures; and where hundreds of requests end each second, a vendor that
fails one in three does so five times in a row every few seconds, while its callers are served well
by retries.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    PermissionDeniedError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)

FAILURES = 5
"""In a row, and no fewer than were in flight with any that ended within the window."""
WINDOW_SECONDS = 10
WINDOW_REQUESTS = 20
"""That the window must have seen, and no fewer than were in flight."""
WINDOW_SHARE = 0.8
"""Of them that must have failed. With half of them failing, four tries answer 15 of 16 requests."""
FIRST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
PROBE_SECONDS = 120.0
_FAILED = (
    AuthenticationError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)
# A vendor that refuses one request as wrong is well.
_WELL = (
    BadRequestError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    PermissionDeniedError,
)


Entered = tuple[int, int]
"""The number of cooldowns before a request, and how many were in flight when it began."""


@dataclass(slots=True)
class Second:
    """What ended within one second of the clock, and the most that were in flight with any."""

    number: int
    requests: int = 0
    failures: int = 0
    in_flight: int = 0


class CircuitBreaker:
    """Counts what a vendor answers. Used on one event loop.

    Every `enter` is followed by at most one of `succeeded` and `failed`, and by `left`; all three
    are given what `enter` returned. Requests that entered before a cooldown began have no say in
    it: they neither end it nor make it longer.

    Args:
        model: the deployment's name, for errors.
        clock: seconds.
    """

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._round = 0
        self._in_flight = 0
        self._in_a_row = 0
        self._window: deque[Second] = deque()
        self._pause = 0.0
        self._until = 0.0
        self._probe_since: float | None = None
        self._reason = ""

    @property
    def cooldowns(self) -> int:
        """How many have begun."""
        return self._round

    @property
    def cooling(self) -> float:
        """Seconds until the next probe; 0 when requests go through."""
        return max(0.0, self._until - self._clock()) if self._pause else 0.0

    def check(self) -> None:
        """To be called before a request waits for its turn.

        Raises:
            ProviderUnavailableError: the vendor is left alone; `cooling` is true, `retry_after`
                says for how long.
        """
        if not self._pause:
            return
        now = self._clock()
        probing = self._probe_since is not None and now - self._probe_since < PROBE_SECONDS
        if now >= self._until and not probing:
            return
        wait = max(self._until - now, 1.0)
        raise ProviderUnavailableError(
            f"the vendor of {self._model!r} failed {self._reason}; it is left alone for "
            f"{wait:.0f} s",
            retryable=False,
            cooling=True,
            retry_after=round(wait, 1),
        )

    def enter(self) -> Entered:
        """To be called when a request is about to be sent.

        Raises:
            ProviderUnavailableError: as `check`.
        """
        self.check()
        if self._pause:
            self._probe_since = self._clock()
        self._in_flight += 1
        return self._round, self._in_flight

    def succeeded(self, entered: Entered) -> None:
        """The vendor answered."""
        if entered[0] != self._round:
            return
        self._in_a_row = 0
        if self._pause:
            self._pause = 0.0
            self._window.clear()
        self._note(entered, failed=False)

    def failed(self, entered: Entered, error: BaseException) -> None:
        """The request ended with an error; only failures that are the vendor's count."""
        if isinstance(error, _WELL):
            self.succeeded(entered)
            return
        if entered[0] != self._round or not isinstance(error, _FAILED):
            return
        if error.details.get("own_limit"):
            # The worker kept to saas.rpm or saas.tpm; the vendor was not asked.
            return
        self._in_a_row += 1
        self._note(entered, failed=True)
        found = self._found()
        if found:
            self._reason = f"{found}, last with {type(error).__name__}: {error}"
            self._open(float(error.details.get("retry_after") or 0.0))

    def left(self, entered: Entered) -> None:
        """The request is over, however it ended."""
        self._in_flight -= 1
        if entered[0] == self._round:
            self._probe_since = None

    def _note(self, entered: Entered, *, failed: bool) -> None:
        number = int(self._clock())
        window = self._window
        if not window or window[-1].number != number:
            window.append(Second(number))
            while window[0].number <= number - WINDOW_SECONDS:
                window.popleft()
        second = window[-1]
        second.requests += 1
        second.failures += failed
        second.in_flight = max(second.in_flight, entered[1], self._in_flight)

    def _found(self) -> str:
        """What tells that the vendor fails; empty when nothing does. Follows `_note`, which has
        dropped what is old."""
        window = self._window
        in_flight = max(second.in_flight for second in window)
        if self._pause or self._in_a_row >= max(FAILURES, in_flight):
            return f"{self._in_a_row} times in a row"
        requests = sum(second.requests for second in window)
        failures = sum(second.failures for second in window)
        if requests >= max(WINDOW_REQUESTS, in_flight) and failures >= WINDOW_SHARE * requests:
            return f"{failures} of its last {requests} requests"
        return ""

    def _open(self, wanted: float) -> None:
        self._round += 1
        self._probe_since = None
        longer = max(2 * self._pause, FIRST_SECONDS, wanted)
        self._pause = min(longer, LONGEST_SECONDS)
        self._until = self._clock() + self._pause
