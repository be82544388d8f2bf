"""Requests and tokens per minute, as the vendor allows them, kept on our side."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from byzerllm.errors import RateLimitedError

MINUTE = 60.0


@dataclass(eq=False, slots=True)
class Share:
    """What one request takes of a window, from the time on at which it may start."""

    at: float
    amount: int


class Window:
    """At most so much in any minute. Shares may lie in the future; they keep their order.

    Attributes:
        limit: what fits into the window, at least 1.
    """

    def __init__(self, per_minute: float) -> None:
        self._shares: deque[Share] = deque()
        self._total = 0
        self.set_rate(per_minute)

    def set_rate(self, per_minute: float) -> None:
        """Less than one a minute, and fractions, are kept by a window of another length."""
        self.limit = max(1, int(per_minute))
        self._seconds = MINUTE * self.limit / per_minute

    def earliest(self, amount: int, now: float) -> float:
        """When a share of this amount may start."""
        shares = self._shares
        while shares and shares[0].at <= now - self._seconds:
            self._total -= shares.popleft().amount
        at, total = now, self._total
        for share in shares:
            if total + amount <= self.limit:
                break
            total -= share.amount
            at = share.at + self._seconds
        return max(at, shares[-1].at) if shares else at

    def take(self, amount: int, at: float) -> Share:
        share = Share(at, amount)
        self._shares.append(share)
        self._total += amount
        return share

    def correct(self, share: Share, amount: int) -> None:
        """The real amount of a share, once it is known."""
        if share in self._shares:
            self._total += amount - share.amount
        share.amount = amount


class Ticket:
    """One request's place in the windows."""

    def __init__(self, tokens: Window | None, share: Share | None) -> None:
        self._tokens = tokens
        self._share = share

    def used(self, tokens: int) -> None:
        """Replace the estimate of the request's tokens by their real number."""
        if self._tokens is not None and self._share is not None and tokens:
            self._tokens.correct(self._share, min(tokens, self._tokens.limit))


_FREE = Ticket(None, None)


class RateLimit:
    """Lets requests through at the pace of `rpm` and `tpm`, first come first served.

    Args:
        rpm, tpm: requests and tokens of the deployment in any minute; 0 is no limit.
        longest: seconds that a request may wait for its turn; one that would wait longer is
            refused at once and takes nothing.
    """

    def __init__(
        self,
        rpm: int,
        tpm: int,
        *,
        longest: float = MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = (rpm, tpm)
        self._requests = Window(rpm) if rpm else None
        self._tokens = Window(tpm) if tpm else None
        self._longest = longest
        self._clock = clock

    def set_share(self, share: float) -> None:
        """This worker's part of the limits, above 0 to 1."""
        for window, rate in zip((self._requests, self._tokens), self._rates, strict=True):
            if window is not None:
                window.set_rate(rate * max(share, 1e-6))

    @property
    def limited(self) -> bool:
        return self._requests is not None or self._tokens is not None

    async def enter(self, tokens: int = 0) -> Ticket:
        """Wait for the turn of a request of about so many tokens.

        Raises:
            RateLimitedError: its turn is too far away; `retry_after` says how far.
        """
        if not self.limited:
            return _FREE
        now = self._clock()
        amount = min(max(tokens, 1), self._tokens.limit) if self._tokens else 0
        at = now
        if self._requests is not None:
            at = self._requests.earliest(1, now)
        if self._tokens is not None:
            at = max(at, self._tokens.earliest(amount, now))
        wait = at - now
        if wait > self._longest:
            raise self._refusal(wait)
        shares = [
            (window, window.take(size, at))
            for window, size in ((self._requests, 1), (self._tokens, amount))
            if window is not None
        ]
        try:
            if wait > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            for window, share in shares:
                window.correct(share, 0)
            raise
        return Ticket(self._tokens, shares[-1][1]) if self._tokens is not None else _FREE

    def _refusal(self, wait: float) -> RateLimitedError:
        names = zip(("rpm", "tpm"), self._rates, strict=True)
        limits = [f"saas.{name}={rate}" for name, rate in names if rate]
        return RateLimitedError(
            f"the deployment's own limit ({', '.join(limits)}) lets the next request through in "
            f"{wait:.1f} s, which is over saas.rate_wait={self._longest:g}; try again later or "
            "raise the limits",
            retry_after=round(wait, 2),
            retryable=True,
            own_limit=True,
        )
