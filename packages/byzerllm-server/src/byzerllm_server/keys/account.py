"""What one server process knows of a key that is in use."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from byzerllm_server.calls import Principal
from byzerllm_server.keys.database import TOTAL, WINDOW_SECONDS, Window
from byzerllm_server.keys.record import Key, month_of


@dataclass(frozen=True, kw_only=True)
class Admission(Principal):
    """A request that counts towards the limits of its key until it has ended."""

    account: Account = field(repr=False, compare=False)


class LocalWindow:
    """The window of a key in this process. A minute begins with the first request after the last
    minute was over."""

    __slots__ = ("requests", "started", "tokens")

    def __init__(self) -> None:
        self.started = 0.0
        self.requests = 0
        self.tokens = 0

    def take(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> Window:
        """Count one request, unless the window is full."""
        now = time.time()
        self._begin(now)
        full = (requests_per_minute is not None and self.requests >= requests_per_minute) or (
            tokens_per_minute is not None and self.tokens >= tokens_per_minute
        )
        if not full:
            self.requests += 1
        return Window(self.started, self.requests, self.tokens, now, not full)

    def charge(self, tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        self._begin(time.time())
        self.tokens += tokens

    def follow(self, window: Window) -> None:
        """Take over what the database counts."""
        self.started = time.time() - (window.now - window.started)
        self.requests = window.requests
        self.tokens = window.tokens

    @property
    def over(self) -> bool:
        return self.started <= time.time() - WINDOW_SECONDS

    def _begin(self, now: float) -> None:
        # A clock that was set back must not stretch the minute.
        if self.started <= now - WINDOW_SECONDS or self.started > now:
            self.started = now
            self.requests = self.tokens = 0


class Account:
    """See the module.

    Attributes:
        key: as it was read last.
        principal: who calls, for requests that do not count.
        admission: the same, for requests that do.
        loaded: when it was read, on the clock of `time.monotonic`.
        used: it was asked for since it was read.
        running: requests of it that are being answered here.
        window: what it asked in this minute, as far as this process knows.
        uncharged: requests and tokens that the window in the database has yet to hear of.
    """

    __slots__ = (
        "_month",
        "_spent",
        "_spent_this_month",
        "admission",
        "key",
        "loaded",
        "principal",
        "running",
        "uncharged",
        "used",
        "window",
    )

    def __init__(self, key: Key) -> None:
        self.running = 0
        self.window = LocalWindow()
        self.uncharged = (0, 0)
        self._month = ""
        self._spent = 0
        self._spent_this_month = 0
        self.load(key, {})

    def load(self, key: Key, spent: dict[tuple[str, str], int]) -> None:
        """Take over what the database says; what was spent never sinks by it, for it may not have
        heard of the last requests."""
        self.key = key
        self.loaded = time.monotonic()
        self.used = False
        models = None if key.models is None else frozenset(key.models)
        self.principal = Principal(name=key.name, models=models)
        self.admission = Admission(name=key.name, models=models, account=self)
        self._turn_month()
        self._spent = max(self._spent, spent.get((key.id, TOTAL), 0))
        self._spent_this_month = max(self._spent_this_month, spent.get((key.id, self._month), 0))

    @property
    def idle(self) -> bool:
        """Nothing would be lost by forgetting it."""
        return not self.running and self.uncharged == (0, 0) and self.window.over

    def spend(self, tokens: int) -> None:
        """Count tokens towards the budgets."""
        self._turn_month()
        self._spent += tokens
        self._spent_this_month += tokens

    def exhausted(self) -> str:
        """The budget that is used up, in words; empty while there is some left."""
        key = self.key
        if key.token_budget is not None and self._spent >= key.token_budget:
            return f"its budget of {key.token_budget} tokens"
        if key.monthly_token_budget is not None:
            self._turn_month()
            if self._spent_this_month >= key.monthly_token_budget:
                return f"its budget of {key.monthly_token_budget} tokens for {self._month} (UTC)"
        return ""

    def _turn_month(self) -> None:
        month = month_of(time.time())
        if month != self._month:
            self._month = month
            self._spent_this_month = 0
