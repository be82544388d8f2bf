"""The HTTP server of Byzer-LLM: the commands `byzerllm serve` and `byzerllm keys`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm import hookimpl

if TYPE_CHECKING:
    import click

__version__ = "0.2.0"


@hookimpl
def register_commands(cli: click.Group) -> None:
    from byzerllm_server.commands.keys import command as keys
    from byzerllm_server.commands.serve import command as serve

    cli.add_command(serve)
    cli.add_command(keys)
