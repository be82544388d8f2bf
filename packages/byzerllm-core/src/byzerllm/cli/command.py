"""The classes that all verbs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import rich_click
from rich_click import RichContext, RichHelpConfiguration

from byzerllm.cli.i18n import _
from byzerllm.cli.values import spread

if TYPE_CHECKING:
    from rich_click.rich_help_formatter import RichHelpFormatter

ALIASES = {
    "gpu_gpus_per_worker": "gpus_per_worker",
    "model_type": "pretrained_model_type",
}
"""Spellings that the seed's commands use beside the option's own."""


def normalize(name: str) -> str:
    """An option's name as it is declared: dashes and underscores are the same."""
    name = name.replace("-", "_")
    return ALIASES.get(name, name)


def context_settings() -> dict[str, Any]:
    """Settings of the root command, which all others inherit."""
    return {
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": normalize,
        "rich_help_config": RichHelpConfiguration(
            options_panel_title=_("Options"),
            commands_panel_title=_("Commands"),
            arguments_panel_title=_("Arguments"),
            default_string=_(r"\[default: {}]"),
            envvar_string=_(r"\[environment: {}]"),
            required_long_string=_(r"\[required]"),
            commands_before_options=True,
            text_paragraph_linebreaks="\n\n",
        ),
    }


class PairsOption(rich_click.RichOption):
    """An option that takes several `K=V` after it, and can be repeated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, multiple=True, metavar="K=V [K=V …]", **kwargs)


class Verb(rich_click.RichCommand):
    """A command with examples; options take underscores and dashes alike.

    Args:
        examples: pairs of what one wants and the command line that does it.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.options_metavar = _("[OPTIONS]")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = [n for p in self.params if isinstance(p, PairsOption) for n in p.opts]
        try:
            return super().parse_args(ctx, spread(args, names))
        except click.UsageError as error:
            # The option parser knows no context; the error's hint needs it.
            error.ctx = error.ctx or ctx
            raise

    def get_help_option(self, ctx: RichContext) -> click.Option | None:  # type: ignore[override]
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = _("Show this help and leave.")
        return option

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_usage(self, ctx, formatter)

    def format_epilog(self, ctx: RichContext, formatter: RichHelpFormatter) -> None:  # type: ignore[override]
        write_examples(self.examples, formatter)


def write_usage(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The usage line in the user's language."""
    pieces = command.collect_usage_pieces(ctx)
    formatter.write_usage(ctx.command_path, " ".join(pieces), prefix=_("Usage:"))


def write_examples(examples: Sequence[tuple[str, str]], formatter: RichHelpFormatter) -> None:
    """A section of commented command lines under the options."""
    if not examples:
        return
    from rich.padding import Padding
    from rich.text import Text

    text = Text(_("Examples"), style="bold")
    for purpose, line in examples:
        text.append(f"\n\n# {purpose}\n", style="dim")
        text.append(line, style="cyan")
    formatter.write(Padding(text, (0, 1, 1, 1)))
