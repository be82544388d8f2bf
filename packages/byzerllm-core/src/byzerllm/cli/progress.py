"""What the workers of a deployment are doing while one waits for them."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from byzerllm.cli.session import session

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
READY = "ready"


class WorkerProgress:
    """One moving line per worker on a terminal, one printed line per change elsewhere.

    Calling it is the `progress` callback of the client: the model itself is meant where the worker
    has no id yet. Used as a context manager.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._phases: dict[str, str] = {}
        self._tasks: dict[str, TaskID] = {}
        self._display: Progress | None = None
        if session.err.is_terminal:
            self._display = Progress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.fields[worker]}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=session.err,
            )

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            # The client returns before it hears of the last phase.
            for worker in self._phases:
                self(worker, READY)
        if self._display is not None:
            self._display.stop()

    def __call__(self, worker: str, phase: str) -> None:
        if self._phases.get(worker) == phase:
            return
        self._phases[worker] = phase
        if worker:
            self._forget_placeholder()
        if self._display is None:
            session.hint(f"{worker or self._model}: {phase}")
        else:
            self._show(self._display, worker, phase)

    def _forget_placeholder(self) -> None:
        self._phases.pop("", None)
        task = self._tasks.pop("", None)
        if task is not None and self._display is not None:
            self._display.remove_task(task)

    def _show(self, display: Progress, worker: str, phase: str) -> None:
        if worker not in self._tasks:
            self._tasks[worker] = display.add_task(phase, total=None, worker=worker or self._model)
        percent = _PERCENT.search(phase)
        if phase == READY:
            total, completed = 100.0, 100.0
        elif percent:
            total, completed = 100.0, float(percent[1])
        else:
            total, completed = None, 0.0
        display.update(self._tasks[worker], description=phase, total=total, completed=completed)
