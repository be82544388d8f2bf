"""`byzerllm completion`."""

from __future__ import annotations

import click
import rich_click
from click.shell_completion import get_completion_class

from byzerllm.cli.i18n import _
from byzerllm.cli.options import verb

_INSTALL = {
    "bash": "echo 'eval \"$(byzerllm completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(byzerllm completion zsh)\"' >> ~/.zshrc",
    "fish": "byzerllm completion fish > ~/.config/fish/completions/byzerllm.fish",
}


@verb(
    "completion",
    help=_(
        "Print the script that makes the Tab key complete verbs, options, backends, balancers "
        "and templates."
    ),
    examples=[(_("install for {shell}").format(shell=s), line) for s, line in _INSTALL.items()],
)
@rich_click.argument("shell", type=click.Choice(list(_INSTALL)), help=_("Your shell."))
def command(shell: str) -> None:
    from byzerllm.cli.app import root
    from byzerllm.cli.program import COMPLETION_VARIABLE, PROGRAM

    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(_("# To have it in every shell: {command}").format(command=_INSTALL[shell]))
    click.echo(kind(root(), {}, PROGRAM, COMPLETION_VARIABLE).source())
