"""Several streams as one, several calls side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")
MOST_WAITING = 64


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all calls, side by side. The first that fails ends the others."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The items of all streams as they come, each with its stream's number. The first stream that
    fails ends the others."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as items:
            async for item in items:
                yield 0, item
        return
    ready: asyncio.Queue[tuple[int, T | BaseException | None]] = asyncio.Queue(MOST_WAITING)

    async def pump(index: int) -> None:
        ended: BaseException | None = None
        try:
            async with aclosing(streams[index]) as items:
                async for item in items:
                    await ready.put((index, item))
        except Exception as error:
            ended = error
        await ready.put((index, ended))

    pumps = [asyncio.create_task(pump(index)) for index in range(len(streams))]
    running = len(pumps)
    try:
        while running:
            index, ready_item = await ready.get()
            if isinstance(ready_item, BaseException):
                raise ready_item
            if ready_item is None:
                running -= 1
            else:
                yield index, ready_item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.wait(pumps)
