"""`byzerllm down`."""

from __future__ import annotations

from pathlib import Path

from byzerllm.cli.i18n import _
from byzerllm.cli.options import address_option, option, verb
from byzerllm.cli.session import connect, session
from byzerllm.cli.up import file_option
from byzerllm.errors import ByzerLLMError


@verb(
    "down",
    help=_(
        "Take all models of a file's project off the cluster, also those that the file no longer "
        "names. Models of others stay."
    ),
    examples=(
        (_("what byzerllm up made"), "byzerllm down -f byzerllm.yaml"),
        (_("without the file"), "byzerllm down --project demo"),
    ),
)
@file_option()
@option("--project", metavar="NAME", help=_("The project, when the file is not at hand."))
@option("--force", is_flag=True, help=_("Do not wait for running requests; they fail."))
@address_option()
def command(file: Path, project: str | None, force: bool, ray_address: str) -> int:
    from byzerllm.cli.failures import show_error
    from byzerllm.cli.upfile import read_up_file

    name = project or read_up_file(file, models=False).project
    llm = connect(ray_address)
    ours = [entry["model"] for entry in llm.models() if entry.get("project") == name]
    if not ours:
        session.hint(_("project {name} has no models on this cluster").format(name=name))
    failed = False
    for model in ours:
        try:
            with session.err.status(_("taking {model} off …").format(model=model)):
                llm.undeploy(model, force=force)
        except ByzerLLMError as error:
            show_error(error)
            failed = True
        else:
            session.out.print(_("{model} is undeployed").format(model=model), markup=False)
    return 1 if failed else 0
