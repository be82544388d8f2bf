"""`byzerllm doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from byzerllm.cli.i18n import _
from byzerllm.cli.options import address_option, json_option, verb
from byzerllm.cli.session import session

if TYPE_CHECKING:
    from byzerllm.cli.checks import Finding


@verb(
    "doctor",
    help=_(
        "Check Python, packages, Ray, token, GPUs, plugins and free room on this machine, and say "
        "what to do about what is wrong. Exit code 1 when something fails."
    ),
    examples=(
        (_("this machine"), "byzerllm doctor"),
        (_("can this machine reach that cluster"), "byzerllm doctor --ray_address 10.0.0.5:6379"),
    ),
)
@address_option()
@json_option()
def command(ray_address: str, as_json: bool) -> int:
    from byzerllm.cli.checks import LOCAL_CHECKS, check_cluster
    from byzerllm.cli.render import print_json

    found: list[Finding] = []
    with session.err.status(_("looking around …")):
        for check in LOCAL_CHECKS:
            found += check()
        found += check_cluster(ray_address)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _show(found)
    return 1 if any(finding.verdict == "fail" for finding in found) else 0


def _show(found: list[Finding]) -> None:
    from byzerllm.cli.render import plain, state, table

    shown = table([_("verdict"), _("what"), _("found")])
    for finding in found:
        shown.add_row(state(finding.verdict), plain(finding.subject), plain(finding.text))
        if finding.todo:
            shown.add_row("", "", f"[cyan]→ {plain(finding.todo)}[/]")
    session.out.print(shown)
