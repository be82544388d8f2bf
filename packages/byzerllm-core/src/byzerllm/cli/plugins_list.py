"""`byzerllm plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.options import json_option, option, verb
from byzerllm.cli.session import session
from byzerllm.errors import UsageError

if TYPE_CHECKING:
    from byzerllm.plugins import PluginRecord


@verb(
    "plugins",
    help=_(
        "List the plugins of this environment: what each brings, and why one does not work.\n\n"
        "BYZERLLM_DISABLED_PLUGINS=name,name leaves plugins out."
    ),
    examples=((_("why is it broken"), "byzerllm plugins --traceback my_plugin"),),
)
@option("--traceback", "traceback_of", metavar="NAME", help=_("Show how this plugin failed."))
@json_option()
def command(traceback_of: str | None, as_json: bool) -> None:
    from byzerllm.cli.render import print_json

    records = _records()
    if traceback_of is not None:
        _print_traceback(records, traceback_of)
    elif as_json:
        print_json([msgspec.to_builtins(record) for record in records])
    else:
        session.out.print(_table(records))
        for record in records:
            if record.state == "broken":
                session.hint(_("{name}: {reason}").format(name=record.name, reason=record.error))


def _records() -> list[PluginRecord]:
    from byzerllm.cli.app import root
    from byzerllm.cli.extensions import add_plugin_commands
    from byzerllm.plugins import get_plugins

    # A plugin can also fail when it is asked for its commands.
    cli = root()
    add_plugin_commands(cli, cli.entries, get_plugins())
    return get_plugins().records


def _table(records: list[PluginRecord]) -> Any:
    from byzerllm.cli.render import plain, state, table

    shown = table([_("plugin"), _("distribution"), _("version"), _("state"), _("hooks")])
    for record in records:
        shown.add_row(
            plain(record.name),
            plain(record.distribution),
            plain(record.version),
            state(record.state),
            plain(record.hooks),
        )
    return shown


def _print_traceback(records: list[PluginRecord], name: str) -> None:
    found = next((record for record in records if record.name == name), None)
    if found is None:
        raise UsageError(
            _("no plugin {name!r}{nearest}").format(
                name=name, nearest=nearest(name, [record.name for record in records])
            )
        )
    click.echo(found.traceback or _("{name} is {state}").format(name=name, state=found.state))
