"""The root command: which verbs there are, and where they live."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import rich_click
from rich_click import RichCommandPanel

import byzerllm
from byzerllm.cli.command import context_settings, write_examples, write_usage
from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.options import common_options, option

if TYPE_CHECKING:
    from rich_click import RichContext
    from rich_click.rich_help_formatter import RichHelpFormatter


@dataclass(frozen=True)
class Entry:
    """A verb that is imported when it is used: the module `byzerllm.cli.<module>`."""

    name: str
    summary: str
    module: str = ""

    def load(self) -> click.Command:
        module = importlib.import_module(f"byzerllm.cli.{self.module or self.name}")
        command: click.Command = module.command
        return command


def sections() -> dict[str, list[Entry]]:
    """All verbs of core, in the order of the help page."""
    return {
        _("Models"): [
            Entry("deploy", _("Deploy a model on the cluster.")),
            Entry("undeploy", _("Take a model off the cluster.")),
            Entry("scale", _("Change the number of a model's workers.")),
            Entry("models", _("List the deployed models.")),
            Entry("stat", _("Show what the workers are doing.")),
            Entry("logs", _("Show a model's log.")),
        ],
        _("Talking to models"): [
            Entry("query", _("Ask a model one question.")),
            Entry("chat", _("Have a conversation in the terminal.")),
        ],
        _("Deployments from a file"): [
            Entry("up", _("Bring the cluster to what a file says.")),
            Entry("down", _("Take a file's models off the cluster.")),
        ],
        _("This machine"): [
            Entry("quickstart", _("Try it all with a small model; nothing stays.")),
            Entry("doctor", _("Check this machine and say what to do.")),
            Entry("providers", _("List the vendors of hosted models.")),
            Entry("plugins", _("List the plugins."), module="plugins_list"),
            Entry("completion", _("Print the script for tab completion.")),
        ],
    }


class Root(rich_click.RichGroup):
    """`byzerllm`: core's verbs by name, plugins' commands beside them."""

    def __init__(self, **settings: Any) -> None:
        grouped = sections()
        super().__init__(
            **settings,
            panels=[
                RichCommandPanel(title, commands=[e.name for e in entries])
                for title, entries in grouped.items()
            ],
        )
        self.entries = {entry.name: entry for entries in grouped.values() for entry in entries}
        self.options_metavar = _("[OPTIONS]")
        self.subcommand_metavar = _("COMMAND [ARGUMENTS]…")
        self._extended = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._extend()
        return [*self.entries, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Only name and summary of core's verbs, which is what a help page shows."""
        if cmd_name in self.entries:
            return click.Command(cmd_name, help=self.entries[cmd_name].summary)
        self._extend()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.entries:
            return name, self.entries[name].load(), args[1:]
        self._extend()
        found = super().get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            raise click.UsageError(
                _("no command {name!r}{nearest}").format(name=name, nearest=nearest(name, known)),
                ctx,
            )
        return name if found else None, found, args[1:]

    def _extend(self) -> None:
        if not self._extended:
            self._extended = True
            from byzerllm.cli.extensions import add_plugin_commands
            from byzerllm.plugins import Plugins

            plugins = Plugins()
            plugins.discover(hook="register_commands")
            add_plugin_commands(self, self.entries, plugins)

    def get_help_option(self, ctx: RichContext) -> click.Option | None:  # type: ignore[override]
        help_option = super().get_help_option(ctx)
        if help_option is not None:
            help_option.help = _("Show this help and leave.")
        return help_option

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_usage(self, ctx, formatter)

    def format_epilog(self, ctx: RichContext, formatter: RichHelpFormatter) -> None:  # type: ignore[override]
        write_examples(
            [
                (
                    _("deploy a GGUF file, ask it, and take it off again"),
                    "byzerllm deploy --model_path /models/llama.gguf --model my_chat\n"
                    "byzerllm query --model my_chat --query 'Hello'\n"
                    "byzerllm undeploy --model my_chat",
                ),
                (_("what a verb takes"), "byzerllm deploy --help"),
            ],
            formatter,
        )


def _show_version(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        click.echo(f"byzerllm {byzerllm.__version__}")
        ctx.exit()


def root() -> Root:
    """A fresh root command."""

    @option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help=_("Show the version and leave."),
    )
    def byzerllm_command() -> None:
        """Nothing but the options; the verbs do the work."""

    command: Root = click.command(
        "byzerllm",
        cls=Root,
        context_settings=context_settings(),
        help=_("Deploy, call and serve large language models on Ray."),
        no_args_is_help=True,
    )(byzerllm_command)
    command.params.extend(common_options())
    return command
