"""Runs one command line and turns how it ends into an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click

from byzerllm.cli import failures, i18n, interrupts
from byzerllm.cli.session import session
from byzerllm.errors import ByzerLLMError

PROGRAM = "byzerllm"
COMPLETION_VARIABLE = "_BYZERLLM_COMPLETE"
BROKEN_PIPE = 141
"""128 + SIGPIPE, as a shell reports it."""


def run(arguments: Sequence[str]) -> int:
    """The exit code: 0, 1 (failed), 2 (wrong usage), 130 (Ctrl-C)."""
    session.verbose = False
    session.debug = os.environ.get("BYZERLLM_DEBUG", "0") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show Chinese shows question marks, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    interrupts.install()
    try:
        i18n.language()
    except ByzerLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return failures.USAGE
    try:
        code = _guarded(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(file=sys.stderr)
        return interrupts.EXIT_CODE
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        _silence_output()
        return BROKEN_PIPE


def _guarded(arguments: Sequence[str]) -> int:
    try:
        return _dispatch(arguments)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message, err=True)
        return failures.USAGE
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        return failures.show_usage_error(error)
    except ByzerLLMError as error:
        return failures.show_error(error)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        return failures.show_bug(error)
    except Exception as error:
        return failures.show_bug(error)


def _dispatch(arguments: Sequence[str]) -> int:
    from byzerllm.cli.app import root

    cli = root()
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    with cli.make_context(PROGRAM, list(arguments)) as context:
        outcome = cli.invoke(context)
    return outcome if isinstance(outcome, int) else 0


def _silence_output() -> None:
    # The interpreter flushes both at exit and would complain once more.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
