"""Lets the requests of keys in, and counts what they use.

A request of a key in use costs a hash and two look-ups in memory: keys are read again in the
background, once a second, and usage is written there. Only keys with requests or tokens per minute
ask the database each time, and only where several servers share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.types import Scope

from byzerllm_server.auth import presented_key, wrong_key
from byzerllm_server.calls import Call, Principal
from byzerllm_server.edge import CALLER_LEFT
from byzerllm_server.errors import HTTPError
from byzerllm_server.keys.account import Account, Admission
from byzerllm_server.keys.database import FAILURES, TOTAL, WINDOW_SECONDS, Window, reason
from byzerllm_server.keys.ledger import Ledger
from byzerllm_server.keys.record import LONGEST_KEY, MARK, digest_of, month_of
from byzerllm_server.keys.store import Store
from byzerllm_server.operations import Context

logger = logging.getLogger("byzerllm.server")
TICK_SECONDS = 1.0
REFRESH_SECONDS = 1.5
"""The background task reads keys in use again when they are so old."""
FRESH_SECONDS = 4.0
"""A request waits for a key that was read longer ago: a revoked key is refused within 5 s."""
OUTAGE_SECONDS = 3600.0
"""While the database does not answer, keys that were read so long ago still hold."""
LOOKUP_SECONDS = 3.0
TAKE_SECONDS = 2.0
ALONE_SECONDS = 3.0
"""After a window could not be counted in the database, it is not tried again for so long."""
UNKNOWN_SECONDS = 1.0
MOST_UNKNOWN = 10_000
CLOSE_SECONDS = 10.0
IDLE_SECONDS = 600.0


class KeyGate:
    """A `Gate` and an `Observer`.

    Args:
        processes: how many processes of this server share the limits of concurrency; each lets its
            share in.
    """

    def __init__(self, store: Store, *, processes: int = 1) -> None:
        self._keys = store.keys
        self._database = store.database
        self._processes = processes
        self._server = uuid.uuid4().hex
        self._ledger = Ledger(store.database, self._server)
        # A file may serve several servers, too: `_write` finds out.
        self._always_shared = processes > 1 or not store.database.local
        self._shared = self._always_shared
        self._accounts: dict[str, Account] = {}
        self._lookups: dict[str, asyncio.Task[Account | None]] = {}
        self._unknown: dict[str, float] = {}
        self._down = False
        self._alone_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"KeyGate({self._database!r})"

    async def open(self) -> None:
        """Connect, and begin to read and write in the background.

        Raises:
            UsageError: the database cannot be used.
        """
        await self._database.open()
        if not await self._keys.keys():
            logger.warning("there are no keys yet, nobody can call; see: byzerllm keys create")
        await self._look_around()
        self._tasks = [
            asyncio.create_task(self._repeat("keys cannot be read", self._read)),
            asyncio.create_task(self._repeat("usage of keys cannot be written", self._write)),
        ]

    async def close(self) -> None:
        """Write what is left and disconnect."""
        for task in [*self._tasks, *self._lookups.values()]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._lookups.values(), return_exceptions=True)
        end = time.monotonic() + CLOSE_SECONDS
        while not self._ledger.empty and time.monotonic() < end:
            try:
                async with asyncio.timeout(max(0.1, end - time.monotonic())):
                    await self._ledger.flush()
            except FAILURES:
                await asyncio.sleep(0.2)
        self._ledger.give_up()
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(TAKE_SECONDS):
                await self._charge_windows()
                await self._database.left(self._server)
        await self._database.close()

    # The way in.

    async def authorize(self, context: Context) -> Principal:
        account = await self._account(presented_key(context))
        call = context.call
        # Known also where the request is refused below.
        call.principal = account.principal
        key = account.key
        if key.revoked is not None:
            raise wrong_key("the key was revoked")
        if key.expires is not None and key.expires <= time.time():
            raise wrong_key("the key has expired")
        if context.scope["method"] != "POST":
            # Nothing else reaches a model.
            return account.principal
        exhausted = account.exhausted()
        if exhausted:
            self._ledger.refused(key.id)
            raise HTTPError(
                429,
                f"the key has used up {exhausted}; ask the operator of this server for more",
                code="insufficient_quota",
            )
        if key.concurrency is not None and account.running >= self._share(key.concurrency):
            self._ledger.refused(key.id)
            raise HTTPError(
                429,
                f"the key has {account.running} requests at once here, which is its limit; wait "
                "for one to end",
                code="concurrency_limit_exceeded",
                retry_after=1.0,
            )
        if not key.limited:
            account.running += 1
            return account.admission
        return await self._within_rates(account)

    async def _within_rates(self, account: Account) -> Admission:
        account.running += 1
        try:
            window = await self._take(account)
        except BaseException:
            account.running -= 1
            raise
        headers = _rate_headers(account, window)
        if window.admitted:
            return Admission(
                name=account.principal.name,
                models=account.principal.models,
                headers=headers,
                account=account,
            )
        account.running -= 1
        self._ledger.refused(account.key.id)
        raise _over_rate(account, window, headers)

    def _share(self, concurrency: int) -> int:
        return max(1, math.ceil(concurrency / self._processes))

    async def _take(self, account: Account) -> Window:
        key = account.key
        limits = (key.requests_per_minute, key.tokens_per_minute)
        if self._shared and not self._down and time.monotonic() >= self._alone_until:
            try:
                async with asyncio.timeout(TAKE_SECONDS):
                    window = await self._take_shared(account, limits)
            except FAILURES as error:
                self._count_alone(error)
            else:
                account.window.follow(window)
                return window
        window = account.window.take(*limits)
        if self._shared and window.admitted:
            requests, tokens = account.uncharged
            account.uncharged = (requests + 1, tokens)
        return window

    async def _take_shared(self, account: Account, limits: tuple[int | None, int | None]) -> Window:
        if account.uncharged[0]:
            await self._charge(account)
        requests, tokens = account.uncharged
        account.uncharged = (requests, 0)
        admitted = False
        try:
            window = await self._database.take(account.key.id, *limits, tokens)
            admitted = window.admitted
        finally:
            if not admitted:
                requests, newer = account.uncharged
                account.uncharged = (requests, tokens + newer)
        return window

    def _count_alone(self, error: BaseException) -> None:
        now = time.monotonic()
        if now - self._alone_until > ALONE_SECONDS:
            logger.error(
                "the database cannot count the requests of keys: %s; this process counts its own "
                "until it can",
                reason(error),
            )
        self._alone_until = now + ALONE_SECONDS

    async def _account(self, presented: str) -> Account:
        # Header values are bytes; the server reads them as Latin-1.
        key = presented.encode("latin-1", "replace")
        if len(key) > LONGEST_KEY or not presented.startswith(MARK):
            raise wrong_key()
        digest = digest_of(key)
        account = self._accounts.get(digest)
        if account is not None:
            account.used = True
            age = time.monotonic() - account.loaded
            if age < FRESH_SECONDS or (self._down and age < OUTAGE_SECONDS):
                return account
        elif self._unknown.get(digest, 0.0) > time.monotonic():
            raise wrong_key()
        found = await self._looked_up(digest, account)
        if found is None:
            raise wrong_key()
        return found

    async def _looked_up(self, digest: str, known: Account | None) -> Account | None:
        lookup = self._lookups.get(digest)
        if lookup is None:
            lookup = self._lookups[digest] = asyncio.create_task(self._look_up(digest))
            lookup.add_done_callback(lambda task: self._lookup_ended(digest, task))
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                return await asyncio.shield(lookup)
        except FAILURES as error:
            self._failed("keys cannot be read", error)
        if known is not None and time.monotonic() - known.loaded < OUTAGE_SECONDS:
            return known
        raise HTTPError(
            503,
            "keys cannot be checked: their database does not answer; try again",
            code="keys_unavailable",
            retry_after=2.0,
        )

    def _lookup_ended(self, digest: str, task: asyncio.Task[Account | None]) -> None:
        self._lookups.pop(digest, None)
        if not task.cancelled():
            # Read here, for who waited may be gone.
            task.exception()

    async def _look_up(self, digest: str) -> Account | None:
        key = await self._keys.find(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            self._accounts.pop(digest, None)
            if len(self._unknown) >= MOST_UNKNOWN:
                self._unknown.clear()
            self._unknown[digest] = time.monotonic() + UNKNOWN_SECONDS
            return None
        spent = await self._database.spent([key.id], _periods())
        account = self._accounts.get(digest)
        if account is None:
            account = self._accounts[digest] = Account(key)
        account.load(key, spent)
        account.used = True
        return account

    # The way out.

    def began(self, call: Call) -> None:
        """Nothing is known yet."""

    def ended(self, call: Call, scope: Scope, status: int, seconds: float) -> None:
        admission = call.principal
        if type(admission) is not Admission:
            return
        account = admission.account
        account.running -= 1
        usage = call.usage
        prompt = usage.prompt_tokens if usage else 0
        completion = usage.completion_tokens if usage else 0
        tokens = prompt + completion
        if tokens:
            account.spend(tokens)
            if account.key.limited:
                account.window.charge(tokens)
                if self._shared:
                    requests, before = account.uncharged
                    account.uncharged = (requests, before + tokens)
        self._ledger.ended(
            account.key.id,
            _model(call, status),
            failed=_has_failed(call, status),
            prompt=prompt,
            completion=completion,
        )

    # The background.

    async def _repeat(self, failing: str, action: Callable[[], Awaitable[None]]) -> None:
        failed = False
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await action()
            except FAILURES as error:
                if not failed:
                    logger.error("%s: %s; it is tried again", failing, reason(error))
                failed = True
            except Exception:
                logger.exception("%s", failing)
            else:
                if failed:
                    logger.warning("the database of keys answers again")
                failed = False

    def _failed(self, what: str, error: BaseException) -> None:
        if not self._down:
            logger.error(
                "%s: %s; those that were read before hold on, and this process counts their "
                "requests alone until the database answers",
                what,
                reason(error),
            )
        self._down = True

    async def _read(self) -> None:
        """Read keys in use again; forget others."""
        now = time.monotonic()
        due: dict[str, Account] = {}
        for digest, account in list(self._accounts.items()):
            age = now - account.loaded
            if account.used and age >= REFRESH_SECONDS:
                due[account.key.id] = account
            elif age > IDLE_SECONDS and account.idle and not self._down:
                del self._accounts[digest]
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                if self._down:
                    await self._database.ping()
                if due:
                    await self._reload(due)
        except FAILURES as error:
            self._failed("keys cannot be read", error)
            raise
        self._down = False

    async def _reload(self, due: dict[str, Account]) -> None:
        found = {key.id: key for key in await self._keys.keys(due)}
        with_budget = [
            key.id
            for key in found.values()
            if key.token_budget is not None or key.monthly_token_budget is not None
        ]
        spent = await self._database.spent(with_budget, _periods()) if with_budget else {}
        for key_id, account in due.items():
            key = found.get(key_id)
            if key is None:
                self._accounts.pop(account.key.digest, None)
            else:
                account.load(key, spent)

    async def _write(self) -> None:
        await self._ledger.flush()
        await self._charge_windows()
        await self._look_around()

    async def _charge_windows(self) -> None:
        for account in [a for a in self._accounts.values() if a.uncharged != (0, 0)]:
            await self._charge(account)

    async def _charge(self, account: Account) -> None:
        requests, tokens = account.uncharged
        if not requests and not tokens:
            return
        account.uncharged = (0, 0)
        try:
            await self._database.charge([(account.key.id, requests, tokens)])
        except BaseException:
            newer = account.uncharged
            account.uncharged = (requests + newer[0], tokens + newer[1])
            raise

    async def _look_around(self) -> None:
        """Find out whether other servers use this database: then windows are counted in it."""
        if self._always_shared:
            return
        shared = await self._database.seen(self._server)
        if shared and not self._shared:
            for account in self._accounts.values():
                if not account.window.over:
                    account.uncharged = (account.window.requests, account.window.tokens)
        self._shared = shared


def _periods() -> list[str]:
    return [TOTAL, month_of(time.time())]


def _model(call: Call, status: int) -> str:
    """The model in usage rows: only of requests that reached one, for callers may name any."""
    reached = call.sent and status != 404 and call.error != "ModelNotFoundError"
    return call.asked if reached else ""


def _has_failed(call: Call, status: int) -> bool:
    """Whether the request failed; a caller that leaves is no failure."""
    if call.error:
        return call.error != "ClientDisconnect"
    return status >= 400 and status != CALLER_LEFT


def _rate_headers(account: Account, window: Window) -> tuple[tuple[bytes, bytes], ...]:
    """OpenAI's headers of what is left in this minute."""
    key = account.key
    reset = f"{_seconds_left(window):.0f}s"
    headers: list[tuple[bytes, bytes]] = []
    for kind, limit, counted in (
        (b"requests", key.requests_per_minute, window.requests),
        (b"tokens", key.tokens_per_minute, window.tokens),
    ):
        if limit is not None:
            headers += [
                (b"x-ratelimit-limit-" + kind, str(limit).encode()),
                (b"x-ratelimit-remaining-" + kind, str(max(0, limit - counted)).encode()),
                (b"x-ratelimit-reset-" + kind, reset.encode()),
            ]
    return tuple(headers)


def _seconds_left(window: Window) -> float:
    return max(1.0, math.ceil(window.started + WINDOW_SECONDS - window.now))


def _over_rate(
    account: Account, window: Window, headers: tuple[tuple[bytes, bytes], ...]
) -> HTTPError:
    key = account.key
    over_requests = (
        key.requests_per_minute is not None and window.requests >= key.requests_per_minute
    )
    limit = (
        f"{key.requests_per_minute} requests"
        if over_requests
        else f"{key.tokens_per_minute} tokens"
    )
    left = _seconds_left(window)
    return HTTPError(
        429,
        f"the key may use {limit} per minute, which are used up; the next minute begins in "
        f"{left:.0f} s",
        code="rate_limit_exceeded",
        retry_after=left,
        headers={name.decode(): value.decode() for name, value in headers},
    )
