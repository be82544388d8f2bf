"""The key-value cache of all growing answers: one buffer per layer, one row per answer.

Rows end in the same column, so that one forward pass adds a column to all of them; a shorter row
begins further to the right, and the attention mask hides what lies before it. Joining and leaving
copy one row; nothing is copied while answers grow, which transformers' `DynamicCache` does at each
token.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

_COLUMNS = 256
"""Columns that are added at a time, at least."""


class CacheLostError(Exception):
    """There was no memory to move the rows; all of them are gone."""


class BatchCache(Cache):  # type: ignore[misc]
    """transformers' cache interface over rows that come and go.

    Attributes:
        starts: first column of each row.
        end: first free column of all.
    """

    layers: list[Any]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.starts: list[int] = []
        self.end = 0
        self._capacity = (0, 0)

    @property
    def begin(self) -> int:
        """First column that any row uses."""
        return min(self.starts, default=self.end)

    @property
    def ragged(self) -> bool:
        """Whether some row begins later than others."""
        return len(set(self.starts)) > 1

    def mask(self) -> torch.Tensor:
        """For the next column: 1 where a row has something, in shape (rows, columns + 1)."""
        columns = torch.arange(self.begin, self.end + 1)
        return (columns[None, :] >= torch.tensor(self.starts)[:, None]).long()

    def join(self, prompt: DynamicCache) -> None:
        """Add a row with the layers of a prompt that was computed alone."""
        if not self.layers:
            self.layers = [BatchLayer(self) for _ in prompt.layers]
        length = prompt.get_seq_length()
        row = len(self.starts)
        shift = max(length - self.end, 0)
        self._fit(row + 1, self.end + shift, shift)
        self.starts.append(self.end - length)
        for layer, given in zip(self.layers, prompt.layers, strict=True):
            if given.is_initialized:
                layer.put(row, given.keys, given.values)

    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its number. Without rows no memory is held."""
        last = len(self.starts) - 1
        if row != last:
            for layer in self.layers:
                layer.move(last, row, self.starts[last])
            self.starts[row] = self.starts[last]
        self.starts.pop()
        if not self.starts:
            self._clear()

    def make_room(self) -> None:
        """Have a free column for the next token."""
        columns = self._capacity[1]
        if self.end == columns:
            wasted = self.begin if self.begin > columns // 4 else 0
            self._fit(len(self.starts), self.end - wasted + 1, -wasted)

    def grow(self) -> None:
        """The free column was filled."""
        self.end += 1

    def _clear(self) -> None:
        self.layers, self.starts, self.end, self._capacity = [], [], 0, (0, 0)

    def _fit(self, rows: int, columns: int, shift: int) -> None:
        """Have at least `rows` and `columns`, what is there moved to the right by `shift`."""
        had_rows, had_columns = self._capacity
        if rows <= had_rows and columns <= had_columns and not shift:
            return
        if rows > had_rows:
            rows = max(rows, 2 * had_rows)
        if columns > had_columns:
            columns = max(columns + _COLUMNS, had_columns * 5 // 4)
        self._capacity = (max(rows, had_rows), max(columns, had_columns))
        try:
            for layer in self.layers:
                layer.resize(self._capacity, len(self.starts), (self.begin, self.end), shift)
        except (RuntimeError, MemoryError) as error:
            # Some layers have moved and others not.
            self._clear()
            raise CacheLostError(str(error)) from error
        self.starts = [start + shift for start in self.starts]
        self.end += shift


class BatchLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `BatchCache`: keys and values in shape (rows, heads, columns, head size)."""

    is_sliding = False
    is_initialized: bool
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, cache: BatchCache) -> None:
        super().__init__()
        self._cache = cache

    def put(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the row of a prompt, in shape (1, heads, tokens, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        begin, end = self._cache.starts[row], self._cache.end
        self.keys[row, :, begin:end] = keys[0]
        self.values[row, :, begin:end] = values[0]

    def move(self, source: int, target: int, begin: int) -> None:
        if self.is_initialized:
            end = self._cache.end
            self.keys[target, :, begin:end] = self.keys[source, :, begin:end]
            self.values[target, :, begin:end] = self.values[source, :, begin:end]

    def resize(
        self, capacity: tuple[int, int], rows: int, columns: tuple[int, int], shift: int
    ) -> None:
        """Move what lies in `columns` by `shift`, into buffers of `capacity` rows and columns."""
        if self.is_initialized:
            self.keys = _moved(self.keys, capacity, rows, columns, shift)
            self.values = _moved(self.values, capacity, rows, columns, shift)

    # What transformers asks for.

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, columns = self._cache._capacity
        self.keys = key_states.new_zeros((rows, key_states.shape[1], columns, key_states.shape[3]))
        self.values = value_states.new_zeros(
            (rows, value_states.shape[1], columns, value_states.shape[3])
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *ignored: object, **more: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cache = self._cache
        rows, begin, end = len(cache.starts), cache.begin, cache.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, begin : end + 1], self.values[:rows, :, begin : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.end - self._cache.begin

    def get_max_length(self) -> int:
        return -1


def _moved(
    old: torch.Tensor, capacity: tuple[int, int], rows: int, columns: tuple[int, int], shift: int
) -> torch.Tensor:
    begin, end = columns
    new = old.new_zeros((capacity[0], old.shape[1], capacity[1], old.shape[3]))
    new[:rows, :, begin + shift : end + shift] = old[:rows, :, begin:end]
    return new
