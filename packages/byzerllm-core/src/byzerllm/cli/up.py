"""`byzerllm up`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from byzerllm.cli.i18n import _
from byzerllm.cli.options import F, address_option, option, verb
from byzerllm.cli.session import can_ask, confirm, connect, session
from byzerllm.errors import ByzerLLMError, UsageError

if TYPE_CHECKING:
    from byzerllm.cli.plan import Step
    from byzerllm.client import ByzerLLM

_FILE_EXAMPLE = """\
version: 1
project: demo
models:
  my_chat:
    model_path: /models/llama.gguf
    num_workers: 2
  gpt:
    pretrained_model_type: saas/openai
    infer_params: {saas.model: gpt-4o, saas.api_key: '${OPENAI_KEY}'}"""
_STYLES = {"add": "green", "change": "yellow", "scale": "yellow", "remove": "red", "keep": "dim"}


def file_option() -> Callable[[F], F]:
    """`-f FILE`."""
    return option(
        "-f",
        "--file",
        "file",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("byzerllm.yaml"),
        show_default=True,
        metavar="FILE",
        help=_("The file that says what runs."),
    )


@verb(
    "up",
    help=_(
        "Bring the cluster to what a file says: add, change, scale and remove models.\n\n"
        "Only models of the file's project are removed. A changed model answers until its "
        "successor is ready."
    ),
    examples=(
        (_("a file; keys of a model are the options of deploy"), _FILE_EXAMPLE),
        (_("see what would happen"), "byzerllm up -f byzerllm.yaml --dry_run"),
        (_("do it without being asked"), "byzerllm up -f byzerllm.yaml --yes"),
    ),
)
@file_option()
@option("--dry_run", is_flag=True, help=_("Show the plan and change nothing."))
@option("--yes", is_flag=True, help=_("Do not ask before models are removed or taken over."))
@option("--start_ray", is_flag=True, help=_("Start a Ray head that stays if none runs here."))
@address_option()
def command(file: Path, dry_run: bool, yes: bool, start_ray: bool, ray_address: str) -> int:
    from byzerllm.cli.plan import make_plan
    from byzerllm.cli.upfile import read_up_file

    wanted = read_up_file(file)
    llm = connect(ray_address, start_ray=start_ray, offer_ray=not dry_run)
    plan = make_plan(wanted.project, wanted.specs, llm.models())
    show_plan(wanted.project, plan)
    if dry_run:
        return 0
    _ask(plan, yes)
    failed = [step.model for step in plan if not carry_out(llm, step)]
    if failed:
        session.hint(_("failed: {models}").format(models=", ".join(failed)))
    return 1 if failed else 0


def show_plan(project: str, plan: list[Step]) -> None:
    """The plan as a table."""
    from byzerllm.cli.render import plain, table

    actions = {
        "add": _("add"),
        "change": _("change"),
        "scale": _("scale"),
        "remove": _("remove"),
        "keep": _("keep"),
    }
    session.out.print(_("project {name}").format(name=project), style="bold", markup=False)
    if not plan:
        session.out.print(_("nothing to do"))
        return
    shown = table([_("action"), _("model"), _("why")])
    for step in plan:
        style = _STYLES[step.action]
        shown.add_row(f"[{style}]{actions[step.action]}[/]", plain(step.model), plain(step.reason))
    session.out.print(shown)


def _ask(plan: list[Step], yes: bool) -> None:
    touched = [step.model for step in plan if step.action == "remove" or step.takes_over]
    if not touched or yes:
        return
    question = _("Remove or take over {models}?").format(models=", ".join(touched))
    if not can_ask():
        raise UsageError(
            _("{question} Nobody can be asked here; pass --yes").format(question=question)
        )
    if not confirm(question):
        raise UsageError(_("nothing was changed"))


def carry_out(llm: ByzerLLM, step: Step) -> bool:
    """Do one step; its error is shown and the others go on."""
    from byzerllm.cli.failures import show_error
    from byzerllm.cli.progress import WorkerProgress

    try:
        with WorkerProgress(step.model) as progress:
            if step.action == "remove":
                llm.undeploy(step.model)
            elif step.action == "scale" and step.spec is not None:
                llm.scale(step.model, step.spec.num_workers, progress=progress)
            elif step.action in ("add", "change") and step.spec is not None:
                replace = step.action == "change"
                llm.deploy_spec(step.spec, replace=replace, progress=progress)
    except ByzerLLMError as error:
        show_error(error)
        return False
    if step.action != "keep":
        session.out.print(_("{model}: done").format(model=step.model), markup=False)
    return True
