"""`byzerllm logs`."""

from __future__ import annotations

import zlib

from byzerllm.cli.i18n import _
from byzerllm.cli.options import Number, address_option, model_option, option, verb
from byzerllm.cli.session import connect, session

# Ray's own marks between the lines of a worker.
_MARKS = (":job_id:", ":actor_name:", ":task_name:")
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


@verb(
    "logs",
    help=_("Show what a model's workers wrote, each line with its worker."),
    examples=(
        (_("the last 50 lines"), "byzerllm logs --model my_chat --lines 50"),
        (_("go on until Ctrl-C"), "byzerllm logs --model my_chat -f"),
    ),
)
@model_option()
@option("-f", "--follow", is_flag=True, help=_("Go on with new lines until Ctrl-C."))
@option(
    "--lines",
    type=Number(int, least=0),
    default=200,
    show_default=True,
    help=_("Lines per worker to begin with."),
)
@address_option()
def command(model: str, follow: bool, lines: int, ray_address: str) -> None:
    from rich.text import Text

    llm = connect(ray_address)
    for worker, line in llm.logs(model, follow=follow, lines=lines):
        if line.startswith(_MARKS):
            continue
        colour = _COLOURS[zlib.crc32(worker.encode()) % len(_COLOURS)]
        text = Text.assemble((f"{worker} ", colour), line)
        session.out.print(text, soft_wrap=True, highlight=False)
