"""Writes down what keys used, in batches."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from byzerllm_server.keys.database import HOUR, TOTAL, Database, UsageRow
from byzerllm_server.keys.record import month_of

logger = logging.getLogger("byzerllm.server")


@dataclass
class _Batch:
    rows: dict[tuple[str, int, str], UsageRow] = field(default_factory=dict)
    spent: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))


class Ledger:
    """Collects usage in memory; `flush` writes it.

    A batch that could not be written is kept and written again under its number, so that one whose
    commit was lost on the way is counted once.

    Args:
        server: an id of this process that no other had.
    """

    def __init__(self, database: Database, server: str) -> None:
        self._database = database
        self._server = server
        self._number = 0
        self._batch = _Batch()
        self._sending: _Batch | None = None

    @property
    def empty(self) -> bool:
        """Everything is written."""
        return self._sending is None and not self._batch.rows

    def refused(self, key_id: str) -> None:
        """A request was over a limit."""
        self._row(key_id, "", time.time()).refused += 1

    def ended(self, key_id: str, model: str, *, failed: bool, prompt: int, completion: int) -> None:
        """A request has ended; `prompt` and `completion` are its tokens."""
        now = time.time()
        row = self._row(key_id, model, now)
        row.requests += 1
        row.errors += failed
        row.prompt_tokens += prompt
        row.completion_tokens += completion
        if prompt or completion:
            spent = self._batch.spent
            spent[key_id, TOTAL] += prompt + completion
            spent[key_id, month_of(now)] += prompt + completion

    def _row(self, key_id: str, model: str, now: float) -> UsageRow:
        hour = int(now) // HOUR * HOUR
        row = self._batch.rows.get((key_id, hour, model))
        if row is None:
            row = UsageRow(key_id=key_id, hour=hour, model=model)
            self._batch.rows[key_id, hour, model] = row
        return row

    async def flush(self) -> None:
        """Write what was collected. Raises one of `FAILURES`: it is kept."""
        if self._sending is None:
            if not self._batch.rows:
                return
            self._number += 1
            self._sending, self._batch = self._batch, _Batch()
        sending = self._sending
        await self._database.record(
            self._server, self._number, list(sending.rows.values()), dict(sending.spent)
        )
        self._sending = None

    def give_up(self) -> None:
        """Put what could not be written into the log, from where it can be added by hand."""
        batches = [self._batch] if self._sending is None else [self._sending, self._batch]
        rows = [row for batch in batches for row in batch.rows.values()]
        if rows:
            logger.error(
                "usage of keys could not be written to the database: %s",
                msgspec.json.encode(rows).decode(),
            )
