"""`byzerllm scale`."""

from __future__ import annotations

from byzerllm.cli.i18n import _
from byzerllm.cli.options import Number, address_option, model_option, option, verb
from byzerllm.cli.session import connect, session


@verb(
    "scale",
    help=_(
        "Change the number of a model's workers.\n\n"
        "More: returns when the new ones are ready. Fewer: those that leave finish their requests."
    ),
    examples=((_("three workers from now on"), "byzerllm scale --model my_chat --num_workers 3"),),
)
@model_option()
@option(
    "--num_workers",
    type=Number(int, least=1),
    required=True,
    help=_("Workers that the model has afterwards, at least 1."),
)
@address_option()
def command(model: str, num_workers: int, ray_address: str) -> None:
    from byzerllm.cli.progress import WorkerProgress

    llm = connect(ray_address)
    with WorkerProgress(model) as progress:
        llm.scale(model, num_workers, progress=progress)
    session.out.print(
        _("{model}: {count} worker(s)").format(model=model, count=num_workers), markup=False
    )
