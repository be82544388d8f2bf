"""What one run of the command line knows: its switches, its consoles, its cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import click

from byzerllm.cli.i18n import _

if TYPE_CHECKING:
    from rich.console import Console

    from byzerllm.client import ByzerLLM

_PIPE_WIDTH = 10_000
"""Columns of a table that no terminal shows, so that no cell is cut."""


@dataclass
class Session:
    """Switches that hold for the whole run.

    Attributes:
        debug: show tracebacks.
        verbose: show Ray's and our own log messages.
    """

    debug: bool = False
    verbose: bool = False

    @cached_property
    def out(self) -> Console:
        """Standard output."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """Standard error: progress, hints and errors."""
        return _console(stderr=True)

    def hint(self, text: str) -> None:
        """A dim line on standard error."""
        self.err.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


session = Session()


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH)


def connect(address: str, *, start_ray: bool = False, offer_ray: bool = False) -> ByzerLLM:
    """Join the cluster at `address`.

    Args:
        start_ray: start a head that stays when `address` is `auto` and none runs.
        offer_ray: ask on a terminal whether to do so.

    Raises:
        ClusterNotFoundError, ClusterAuthenticationError: as `byzerllm.connect_cluster`.
        ClusterError: the head did not start.
    """
    import byzerllm
    from byzerllm.errors import ClusterNotFoundError

    try:
        join(address)
    except ClusterNotFoundError:
        asked_elsewhere = address != "auto" or os.environ.get("RAY_ADDRESS")
        if asked_elsewhere or not (start_ray or (offer_ray and _wants_head())):
            raise
        join(_start_head())
    return byzerllm.ByzerLLM()


def join(address: str) -> None:
    """`byzerllm.connect_cluster` with all messages off the terminal unless `-v` was given."""
    import byzerllm

    if session.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        byzerllm.connect_cluster(address)
        return
    warnings.simplefilter("ignore")
    logging.getLogger("byzerllm").setLevel(logging.ERROR)
    # It repeats, with a traceback, what a cancelled request was cancelled for.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with _without_native_messages():
        byzerllm.connect_cluster(address, log_to_driver=False, logging_level=logging.ERROR)


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    # Ray's C++ half writes to file descriptor 2 whatever Python's logging says.
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _wants_head() -> bool:
    return can_ask() and confirm(_("No Ray cluster runs on this machine. Start one that stays?"))


def can_ask() -> bool:
    """Whether somebody sits at a terminal who reads a question and can answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Ask yes or no on the terminal; Enter is yes."""
    answer = click.prompt(f"{question} [Y/n]", default="y", show_default=False, err=True, type=str)
    return str(answer).strip().lower() in ("y", "yes", "是", "好")


def _start_head() -> str:
    from byzerllm.runtime.cluster import start_head

    with session.err.status(_("starting a Ray head on this machine …")):
        address = start_head()
    session.hint(
        _("a Ray head runs at {address} and stays; `ray stop` ends it").format(address=address)
    )
    return address
