"""`byzerllm providers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from byzerllm.cli.i18n import _
from byzerllm.cli.options import json_option, verb
from byzerllm.cli.session import session

if TYPE_CHECKING:
    from byzerllm.backend import BackendSpec


@verb(
    "providers",
    help=_(
        "List the vendors of hosted models that this environment can reach, or one vendor's "
        "parameters."
    ),
    examples=(
        (_("what does it take"), "byzerllm providers openai"),
        (_("names only, for a script"), "byzerllm providers --json | jq -r '.[].name'"),
    ),
)
@click.argument("name", required=False, metavar="[NAME]")
@json_option()
def command(name: str | None, as_json: bool) -> None:
    from byzerllm.cli.render import print_json
    from byzerllm.plugins import get_plugins

    providers = get_plugins().providers
    if name is not None:
        spec = providers.get(name.removeprefix("saas/"))
        if as_json:
            print_json(_described(spec))
        else:
            _show(spec)
    elif as_json:
        print_json([_described(spec) for spec in providers.values()])
    elif not list(providers):
        session.hint(
            _("no provider is installed; run: {line}").format(
                line="pip install 'byzerllm-core[saas]'"
            )
        )
    else:
        session.out.print(_table(providers.values()))
        session.hint(_("next: {command}").format(command="byzerllm providers NAME"))


def _described(spec: BackendSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "type": f"saas/{spec.name}",
        "description": spec.description,
        "capabilities": sorted(spec.capabilities),
        "install": spec.install,
        "concurrency": spec.default_concurrency,
        "generation": sorted(spec.extra_parameters),
        "parameters": spec.parameters.described(),
    }


def _table(specs: list[BackendSpec]) -> Any:
    from byzerllm.cli.render import plain, table

    shown = table([_("type"), _("models"), _("capabilities"), _("install")])
    for spec in specs:
        shown.add_row(
            plain(f"saas/{spec.name}"),
            plain(spec.description),
            plain(sorted(spec.capabilities)),
            plain(spec.install.removeprefix("pip install ")),
        )
    return shown


def _show(spec: BackendSpec) -> None:
    from byzerllm.cli.render import key_values, plain, table

    about = _described(spec)
    session.out.print(
        key_values(
            {
                _("type"): about["type"],
                _("models"): about["description"],
                _("capabilities"): about["capabilities"],
                _("install"): about["install"],
                _("requests at once"): about["concurrency"],
                _("generation parameters of its own"): about["generation"],
            }
        )
    )
    shown = table([_("parameter"), _("kind"), _("default"), _("meaning")])
    for parameter in about["parameters"]:
        default = _("must be given") if parameter["required"] else plain(parameter["default"])
        shown.add_row(
            plain(parameter["name"]),
            plain(parameter["type"]),
            default,
            plain(parameter["description"]),
        )
    session.out.print()
    session.out.print(shown)
