"""`byzerllm models`."""

from __future__ import annotations

import time
from typing import Any

from byzerllm.cli.i18n import _
from byzerllm.cli.options import address_option, json_option, verb
from byzerllm.cli.session import connect, session


@verb(
    "models",
    help=_("List the deployed models and what was asked for them; secrets are masked."),
    examples=(
        (_("as a table"), "byzerllm models"),
        (_("names only, for a script"), "byzerllm models --json | jq -r '.[].model'"),
    ),
)
@address_option()
@json_option()
def command(ray_address: str, as_json: bool) -> None:
    from byzerllm.cli.render import print_json

    models = connect(ray_address).models()
    if as_json:
        print_json(models)
    elif not models:
        session.hint(
            _("nothing is deployed; see: {command}").format(command="byzerllm deploy --help")
        )
    else:
        session.out.print(_table(models))


def _table(models: list[dict[str, Any]]) -> Any:
    from byzerllm.cli.render import plain, seconds, state, table

    workers, age = _("workers"), _("age")
    shown = table(
        [_("model"), _("state"), _("backend"), workers, _("path or type"), _("project"), age],
        numbers=[workers, age],
    )
    now = time.time()
    for model in models:
        shown.add_row(
            plain(model["model"]),
            state(model["state"]),
            plain(model.get("backend")),
            f"{model['ready_workers']}/{model.get('num_workers', 1)}",
            plain(model.get("model_path") or model.get("model_type", "custom/auto")),
            plain(model.get("project")),
            seconds(max(0.0, now - model["created"])),
        )
    return shown
