"""Commands that plugins add to the command line."""

from __future__ import annotations

import traceback
from collections.abc import Container

import rich_click

from byzerllm.cli.command import Verb
from byzerllm.cli.i18n import _
from byzerllm.cli.session import session
from byzerllm.errors import DuplicateNameError
from byzerllm.plugins import PluginRecord, Plugins


def add_plugin_commands(cli: rich_click.RichGroup, taken: Container[str], plugins: Plugins) -> None:
    """Ask each plugin for its commands, each alone; one that fails is recorded as broken.

    Args:
        cli: gets the commands.
        taken: core's own verbs, which no plugin may replace.
        plugins: those that are asked.
    """
    owners: dict[str, str] = {}
    hook = plugins.hooks.hook.register_commands
    for implementation in hook.get_hookimpls():
        name = implementation.plugin_name
        others = [p for p in plugins.hooks.get_plugins() if p is not implementation.plugin]
        offered = rich_click.RichGroup(name="byzerllm")
        offered.command_class = Verb
        try:
            plugins.hooks.subset_hook_caller("register_commands", others)(cli=offered)
            for command in offered.commands:
                if command in taken or command in owners:
                    owner = owners.get(command, "byzerllm-core")
                    raise DuplicateNameError(
                        f"command {command!r} of plugin {name!r} is already offered by {owner!r}"
                    )
        except (Exception, SystemExit) as error:
            _record(plugins.records, name, error)
            continue
        for command, implemented in offered.commands.items():
            owners[command] = name
            cli.add_command(implemented, command)


def _record(records: list[PluginRecord], name: str, error: BaseException) -> None:
    for record in records:
        if record.name == name:
            record.state = "broken"
            record.error = f"{type(error).__name__}: {error}"
            record.traceback = traceback.format_exc()
    session.hint(
        _("plugin {name!r} could not add its commands; see: byzerllm plugins").format(name=name)
    )
