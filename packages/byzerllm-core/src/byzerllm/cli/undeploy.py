"""`byzerllm undeploy`."""

from __future__ import annotations

from byzerllm.cli.i18n import _
from byzerllm.cli.options import address_option, model_option, option, verb
from byzerllm.cli.session import connect, session


@verb(
    "undeploy",
    help=_(
        "Take a model off the cluster and free what its workers reserved.\n\n"
        "Requests that run are finished first; new ones are refused at once."
    ),
    examples=(
        (_("let the running requests finish"), "byzerllm undeploy --model my_chat"),
        (_("at once"), "byzerllm undeploy --model my_chat --force"),
    ),
)
@model_option()
@option("--force", is_flag=True, help=_("Do not wait for running requests; they fail."))
@address_option()
def command(model: str, force: bool, ray_address: str) -> None:
    llm = connect(ray_address)
    with session.err.status(_("taking {model} off …").format(model=model)):
        llm.undeploy(model, force=force)
    session.out.print(_("{model} is undeployed").format(model=model), markup=False)
