"""`byzerllm stat`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from byzerllm.cli.i18n import _
from byzerllm.cli.options import Number, address_option, json_option, option, verb
from byzerllm.cli.session import connect, session

if TYPE_CHECKING:
    from rich.console import RenderableType


@verb(
    "stat",
    help=_(
        "Show what the workers are doing: requests that run and wait, tokens, times, memory.\n\n"
        "TTFT is the time to the first token, the median of the last requests."
    ),
    examples=(
        (_("once"), "byzerllm stat"),
        (_("again every two seconds until Ctrl-C"), "byzerllm stat --model my_chat --interval 2"),
    ),
)
@option("--model", metavar="NAME", help=_("Only this model."))
@option(
    "--interval",
    type=Number(float, least=0.1),
    metavar=_("SECONDS"),
    help=_("Show it again every so many seconds until Ctrl-C."),
)
@address_option()
@json_option()
def command(model: str | None, interval: float | None, ray_address: str, as_json: bool) -> None:
    from byzerllm.cli.render import print_json

    llm = connect(ray_address)
    if as_json and interval is None:
        print_json(llm.stat(model))
    elif as_json and interval is not None:
        while True:
            print_json(llm.stat(model), indent=None)
            time.sleep(interval)
    elif interval is None or not session.out.is_terminal:
        _print_tables(llm.stat(model), lambda: llm.stat(model), interval)
    else:
        from rich.live import Live

        with Live(stat_view(llm.stat(model)), console=session.out, screen=False) as live:
            while True:
                time.sleep(interval)
                live.update(stat_view(llm.stat(model)), refresh=True)


def _print_tables(models: list[dict[str, Any]], again: Any, interval: float | None) -> None:
    session.out.print(stat_view(models))
    while interval is not None:
        time.sleep(interval)
        session.out.print(stat_view(again()))


def stat_view(models: list[dict[str, Any]]) -> RenderableType:
    """The table of all workers of `models`, as `ByzerLLM.stat` returns them."""
    from byzerllm.cli.render import UNKNOWN, plain, seconds, size, state, table

    if not models:
        return _("nothing is deployed")
    numbers = [
        _("running"),
        _("waiting"),
        _("done"),
        _("failed"),
        _("refused"),
        _("tokens/s"),
        _("TTFT"),
        _("up"),
        _("memory"),
    ]
    shown = table([_("model"), _("state"), _("worker"), _("node"), *numbers], numbers=numbers)
    for model in models:
        name = f"{plain(model['model'])} ({plain(model['backend'])})"
        for worker in model["workers"]:
            speed = worker.get("tokens_per_second")
            shown.add_row(
                name,
                _worker_state(worker),
                plain(f"{worker['id']} ({worker['pid']})"),
                plain(worker.get("node")),
                f"{worker['running']}/{worker['concurrency']}",
                f"{worker['queued']}/{worker['max_queue']}",
                plain(worker["done"]),
                plain(worker["failed"]),
                plain(worker["refused"]),
                UNKNOWN if speed is None else f"{speed:.1f}",
                seconds(worker.get("ttft_p50")),
                seconds(worker.get("uptime")),
                size(worker.get("rss")),
            )
            name = ""
        if not model["workers"]:
            shown.add_row(name, state(model["state"]))
    return shown


def _worker_state(worker: dict[str, Any]) -> str:
    """The state; of a worker that leaves its vendor alone, how long it will."""
    from byzerllm.cli.render import seconds, state

    cooling = worker.get("cooling")
    return f"[yellow]cooling {seconds(cooling)}[/]" if cooling else state(worker["state"])
