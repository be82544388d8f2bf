"""The database of keys, windows and usage: SQLite, or PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    event,
    extract,
    func,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from byzerllm.errors import NotInstalledError, UsageError
from byzerllm_server.keys.record import Key

WINDOW_SECONDS = 60.0
HOUR = 3600
BUSY_SECONDS = 5.0
"""So long a statement waits for a database that others write to, or for an answer."""
SERVER_SECONDS = 10.0
"""A server that was not seen for so long is gone."""
IN_ONE_QUERY = 500
POOL_SIZE = 5
SCHEMA_VERSION = 1
TOTAL = "total"
"""The period of `spending` that never ends; the others are months."""
FAILURES = (SQLAlchemyError, OSError, TimeoutError)
"""What a database that cannot be reached raises."""

_metadata = MetaData()
_schema = Table("byzerllm_schema", _metadata, Column("version", Integer, primary_key=True))
_keys = Table(
    "byzerllm_keys",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("prefix", String(32), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
    Column("revoked", Float(53)),
    Column("models", Text),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrency", BigInteger),
    Column("token_budget", BigInteger),
    Column("monthly_token_budget", BigInteger),
)
# Names are free again once their key is revoked.
Index(
    "byzerllm_keys_name",
    _keys.c.name,
    unique=True,
    sqlite_where=_keys.c.revoked.is_(None),
    postgresql_where=_keys.c.revoked.is_(None),
)
_windows = Table(
    "byzerllm_windows",
    _metadata,
    Column("key_id", String(32), primary_key=True),
    Column("started", Float(53), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
_usage = Table(
    "byzerllm_usage",
    _metadata,
    Column("key_id", String(32), primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)
_spending = Table(
    "byzerllm_spending",
    _metadata,
    Column("key_id", String(32), primary_key=True),
    Column("period", String(7), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
)
_servers = Table(
    "byzerllm_servers",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("seen", Float(53), nullable=False),
    # The number of the last batch of usage that it wrote: a batch whose commit was lost on the way
    # is not written twice.
    Column("batch", BigInteger, nullable=False),
)
COUNTS = ("requests", "errors", "refused", "prompt_tokens", "completion_tokens")


class UsageRow(Struct, kw_only=True):
    """What one key used of one model within an hour.

    Attributes:
        hour: its beginning, in seconds since the epoch.
        model: as served; empty for requests that reached none.
        requests: admitted ones, the failed ones among them.
        errors: of those, answered with an error, or broken off by an error.
        refused: over a limit of the key; not among `requests`.
    """

    key_id: str
    hour: int
    model: str
    requests: int = 0
    errors: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Window:
    """The minute that a key is in: when it began, and what was counted since."""

    started: float
    requests: int
    tokens: int
    now: float
    admitted: bool


def database_url(text: str) -> URL:
    """The URL of a database, or of the SQLite file at a path, for its asynchronous driver.

    Raises:
        UsageError: it is no URL, or one of another database.
    """
    if "://" not in text:
        path = Path(text).expanduser().absolute()
        return URL.create("sqlite+aiosqlite", database=str(path))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The text may have a password in it: it is not repeated.
        raise UsageError(
            "--keys: this is no URL of a database; write postgresql://USER:PASSWORD@HOST/DATABASE "
            "or the path of a file"
        ) from None
    kind = url.get_backend_name()
    if kind == "sqlite":
        return url.set(drivername="sqlite+aiosqlite")
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise UsageError(f"--keys: {kind!r} is no database for keys; allowed: sqlite, postgresql")


class Database:
    """Everything that is asked of the database; each method is one transaction.

    All of them raise one of `FAILURES` where the database does not answer.

    Args:
        url: of `database_url`.

    Attributes:
        local: a file of this machine.
    """

    def __init__(self, url: URL) -> None:
        self._shown = url.render_as_string(hide_password=True)
        self.local = url.get_backend_name() == "sqlite"
        self._insert: Any = sqlite.insert if self.local else postgresql.insert
        self._engine = self._made(url)
        # Clocks of several machines differ; the database has one.
        self._now: Any = (
            bindparam("now", type_=Float)
            if self.local
            else cast(extract("epoch", func.clock_timestamp()), Float(53))
        )
        self._take = self._take_statement()
        self._charge = self._charge_statement()
        columns = (_windows.c.started, _windows.c.requests, _windows.c.tokens)
        self._window = select(*columns, self._now.label("now")).where(
            _windows.c.key_id == bindparam("key_id")
        )
        # SQLite has one writer; who must wait for it does so here, not in its busy loop.
        self._turn = asyncio.Semaphore(1 if self.local else POOL_SIZE)

    def __repr__(self) -> str:
        return f"Database({self._shown})"

    def _made(self, url: URL) -> AsyncEngine:
        options: dict[str, Any] = {
            "hide_parameters": True,
            "pool_size": POOL_SIZE,
            "pool_timeout": BUSY_SECONDS,
        }
        if self.local:
            options["connect_args"] = {"timeout": BUSY_SECONDS}
        else:
            # asyncpg's: seconds to connect, and for each statement.
            options["connect_args"] = {"timeout": BUSY_SECONDS, "command_timeout": BUSY_SECONDS}
        try:
            engine = create_async_engine(url, **options)
        except ModuleNotFoundError:
            raise NotInstalledError(
                "keys in PostgreSQL need asyncpg: pip install 'byzerllm-server[postgres]'"
            ) from None
        if self.local:
            event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        return engine

    async def open(self) -> None:
        """Make the tables where they are missing.

        Raises:
            UsageError: the database cannot be reached, or was made by a newer version.
        """
        for attempt in range(5):
            try:
                await self._open()
                return
            except FAILURES as error:
                # Another process makes the same tables at this moment.
                if attempt == 4 or not isinstance(
                    error, ProgrammingError | OperationalError | IntegrityError
                ):
                    raise UsageError(
                        f"the database of keys at {self._shown} cannot be used: {reason(error)}"
                    ) from None
                await asyncio.sleep(0.1 * (attempt + 1))

    async def _open(self) -> None:
        async with self._transaction() as connection:
            await connection.run_sync(_metadata.create_all)
            version = (await connection.execute(select(_schema.c.version))).scalar()
            if version is None:
                await connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise UsageError(
                    f"the database of keys at {self._shown} was made by a newer byzerllm-server "
                    f"(version {version}, this one knows {SCHEMA_VERSION}); upgrade this one"
                )

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[AsyncConnection, None]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except Exception as error:
            # While it connects, the driver raises errors of its own.
            if type(error).__module__.startswith("asyncpg"):
                raise ConnectionError(reason(error)) from None
            raise

    async def ping(self) -> None:
        """Ask for nothing; fails where the database does not answer."""
        async with self._transaction() as connection:
            await connection.execute(select(1))

    # Keys.

    async def add(self, key: Key) -> None:
        """Store a key.

        Raises:
            UsageError: there is an active one of this name.
        """
        row = {**msgspec.structs.asdict(key), "models": _encoded(key.models)}
        try:
            async with self._transaction() as connection:
                await connection.execute(_keys.insert().values(row))
        except IntegrityError:
            raise UsageError(
                f"there is a key {key.name!r} already; choose another name, or revoke it first"
            ) from None

    async def find(self, digest: str) -> Key | None:
        """The key with this hash."""
        async with self._transaction() as connection:
            found = await connection.execute(select(_keys).where(_keys.c.digest == digest))
            row = found.mappings().first()
        return _key(row) if row is not None else None

    async def keys(self, ids: Iterable[str] | None = None) -> list[Key]:
        """The keys with these ids, or all of them, the oldest first."""
        rows: list[Any] = []
        async with self._transaction() as connection:
            if ids is None:
                rows += (
                    await connection.execute(select(_keys).order_by(_keys.c.created))
                ).mappings()
            else:
                for some in _in_pieces(list(ids)):
                    query = select(_keys).where(_keys.c.id.in_(some))
                    rows += (await connection.execute(query)).mappings()
        return [_key(row) for row in rows]

    async def revoke(self, name: str) -> bool:
        """End the active key of this name; False where there is none."""
        statement = (
            _keys.update()
            .where(_keys.c.name == name, _keys.c.revoked.is_(None))
            .values(revoked=time.time())
        )
        async with self._transaction() as connection:
            return bool((await connection.execute(statement)).rowcount)

    # Windows.

    async def take(
        self,
        key_id: str,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        tokens: int = 0,
    ) -> Window:
        """Count one request in the window of a key, and `tokens` of those before it, unless the
        window is full with them; then nothing is counted."""
        values = {
            "key_id": key_id,
            "rpm": -1 if requests_per_minute is None else requests_per_minute,
            "tpm": -1 if tokens_per_minute is None else tokens_per_minute,
            "tokens": tokens,
        }
        if self.local:
            values["now"] = time.time()
        async with self._turn, self._transaction() as connection:
            row = (await connection.execute(self._take, values)).first()
            admitted = row is not None
            if row is None:
                row = (await connection.execute(self._window, values)).one()
        counted = row[2] if admitted else row[2] + tokens
        return Window(float(row[0]), row[1], counted, float(row[3]), admitted)

    def _take_statement(self) -> Any:
        # One statement, so that of many at once exactly as many pass as there is room for.
        tokens = bindparam("tokens", type_=BigInteger)
        made = self._insert(_windows).values(
            key_id=bindparam("key_id"), started=self._now, requests=1, tokens=tokens
        )
        old = _windows.c
        over = old.started <= self._now - WINDOW_SECONDS
        rpm, tpm = bindparam("rpm", type_=BigInteger), bindparam("tpm", type_=BigInteger)
        return made.on_conflict_do_update(
            index_elements=[old.key_id],
            set_={
                "started": case((over, self._now), else_=old.started),
                "requests": case((over, 1), else_=old.requests + 1),
                "tokens": case((over, tokens), else_=old.tokens + tokens),
            },
            where=or_(
                over,
                and_(or_(rpm < 0, old.requests < rpm), or_(tpm < 0, old.tokens + tokens < tpm)),
            ),
        ).returning(old.started, old.requests, old.tokens, self._now.label("now"))

    async def charge(self, amounts: Sequence[tuple[str, int, int]]) -> None:
        """Add requests and tokens to the windows of keys: rows of id, requests, tokens."""
        now = {"now": time.time()} if self.local else {}
        # In one order, so that servers that charge the same keys do not wait for each other.
        rows = [
            {"key_id": key_id, "requests": requests, "tokens": tokens, **now}
            for key_id, requests, tokens in sorted(amounts)
        ]
        async with self._turn, self._transaction() as connection:
            for row in rows:
                await connection.execute(self._charge, row)

    def _charge_statement(self) -> Any:
        requests = bindparam("requests", type_=BigInteger)
        tokens = bindparam("tokens", type_=BigInteger)
        made = self._insert(_windows).values(
            key_id=bindparam("key_id"), started=self._now, requests=requests, tokens=tokens
        )
        old = _windows.c
        over = old.started <= self._now - WINDOW_SECONDS
        return made.on_conflict_do_update(
            index_elements=[old.key_id],
            set_={
                "started": case((over, self._now), else_=old.started),
                "requests": case((over, requests), else_=old.requests + requests),
                "tokens": case((over, tokens), else_=old.tokens + tokens),
            },
        )

    # Usage.

    async def record(
        self, server: str, batch: int, rows: Sequence[UsageRow], spent: dict[tuple[str, str], int]
    ) -> None:
        """Add to usage and spending.

        Args:
            server, batch: a batch of a server that was written before is not written again.
            spent: tokens by key and period.
        """
        usage = self._insert(_usage)
        usage = usage.on_conflict_do_update(
            index_elements=[_usage.c.key_id, _usage.c.hour, _usage.c.model],
            set_={name: _usage.c[name] + usage.excluded[name] for name in COUNTS},
        )
        spending = self._insert(_spending)
        spending = spending.on_conflict_do_update(
            index_elements=[_spending.c.key_id, _spending.c.period],
            set_={"tokens": _spending.c.tokens + spending.excluded.tokens},
        )
        async with self._turn, self._transaction() as connection:
            if not await self._is_new(connection, server, batch):
                return
            for row in sorted(rows, key=lambda row: (row.key_id, row.hour, row.model)):
                await connection.execute(usage, msgspec.structs.asdict(row))
            for (key_id, period), tokens in sorted(spent.items()):
                await connection.execute(
                    spending, {"key_id": key_id, "period": period, "tokens": tokens}
                )

    async def _is_new(self, connection: AsyncConnection, server: str, batch: int) -> bool:
        made = self._insert(_servers).values(id=server, seen=time.time(), batch=batch)
        made = made.on_conflict_do_update(
            index_elements=[_servers.c.id],
            set_={"seen": made.excluded.seen, "batch": made.excluded.batch},
            where=_servers.c.batch < made.excluded.batch,
        ).returning(_servers.c.id)
        return (await connection.execute(made)).first() is not None

    async def spent(self, ids: Iterable[str], periods: Sequence[str]) -> dict[tuple[str, str], int]:
        """Tokens that keys have used up, by key and period; without those that used none."""
        found: dict[tuple[str, str], int] = {}
        async with self._transaction() as connection:
            for some in _in_pieces(list(ids)):
                query = select(_spending).where(
                    _spending.c.key_id.in_(some), _spending.c.period.in_(periods)
                )
                for row in await connection.execute(query):
                    found[row.key_id, row.period] = row.tokens
        return found

    async def usage(
        self, *, since: float = 0.0, ids: Iterable[str] | None = None
    ) -> list[UsageRow]:
        """What keys used, by hour, the oldest first."""
        query = select(_usage).where(_usage.c.hour > since - HOUR)
        if ids is not None:
            query = query.where(_usage.c.key_id.in_(list(ids)))
        query = query.order_by(_usage.c.hour, _usage.c.key_id, _usage.c.model)
        async with self._transaction() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [UsageRow(**row) for row in rows]

    # Servers.

    async def seen(self, server: str) -> bool:
        """Say that a server runs; returns whether others do."""
        now = time.time()
        made = self._insert(_servers).values(id=server, seen=now, batch=0)
        made = made.on_conflict_do_update(index_elements=[_servers.c.id], set_={"seen": now})
        others = select(_servers.c.id).where(
            _servers.c.id != server, _servers.c.seen > now - SERVER_SECONDS
        )
        async with self._turn, self._transaction() as connection:
            await connection.execute(made)
            return (await connection.execute(others.limit(1))).first() is not None

    async def left(self, server: str) -> None:
        """Say that a server has ended, and forget those that ended long ago."""
        now = time.time()
        gone = or_(_servers.c.id == server, _servers.c.seen < now - 86400)
        async with self._turn, self._transaction() as connection:
            await connection.execute(_servers.delete().where(gone))


def reason(error: BaseException) -> str:
    """The driver's own words, without SQLAlchemy's statement around them."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(cause).strip().splitlines()
    return text[0] if text else type(cause).__name__


def make_folder(url: URL) -> None:
    """The folder of a SQLite file, and the file, for its owner only."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise UsageError(
            f"the database of keys {path} cannot be written: {error.strerror}"
        ) from None


def _set_up_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    # Readers do not wait for the writer; a crash of the machine costs the last second of usage.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _in_pieces(ids: list[str]) -> Iterable[list[str]]:
    return (ids[start : start + IN_ONE_QUERY] for start in range(0, len(ids), IN_ONE_QUERY))


def _encoded(models: tuple[str, ...] | None) -> str | None:
    return None if models is None else msgspec.json.encode(models).decode()


def _key(row: Any) -> Key:
    fields = dict(row)
    if fields["models"] is not None:
        fields["models"] = tuple(msgspec.json.decode(fields["models"]))
    return Key(**fields)
