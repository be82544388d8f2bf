"""Options and value types that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import rich_click
from click.shell_completion import CompletionItem

from byzerllm.cli.command import PairsOption, Verb
from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.session import session
from byzerllm.cli.values import parse_amounts, parse_pairs
from byzerllm.errors import UsageError

if TYPE_CHECKING:
    # Generic since click 8.5 only.
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])


class Number(ParamType):
    """A whole number (`int`) or any number (`float`), at least `least` where that is given."""

    def __init__(self, kind: type[int] | type[float], least: float | None = None) -> None:
        self.kind = kind
        self.least = least
        self.name = "N" if kind is int else "X"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | int:
        try:
            number = self.kind(value)
        except ValueError:
            wanted = _("a whole number") if self.kind is int else _("a number")
            self.fail(_("takes {wanted}, got {value!r}").format(wanted=wanted, value=value), param)
        # The comparison is written so that nan is refused too.
        if self.least is not None and not number >= self.least:
            self.fail(
                _("takes at least {least:g}, got {value}").format(least=self.least, value=value),
                param,
            )
        return number

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name


class Registered(ParamType):
    """A name that plugins offer; completes from the registries, checked where it is used."""

    def __init__(self, *registries: str, extra: Iterable[str] = ()) -> None:
        self.registries = registries
        self.extra = tuple(extra)
        self.name = "NAME"

    def names(self) -> list[str]:
        """All names on offer."""
        from byzerllm.plugins import get_plugins

        offered = {name for kind in self.registries for name in getattr(get_plugins(), kind)}
        return sorted(offered | set(self.extra))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


class Chosen(Registered):
    """As `Registered`, refused at once when nobody offers the name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = self.names()
        if value not in names:
            self.fail(
                _("{value!r} is none{nearest}; allowed: {names}").format(
                    value=value, nearest=nearest(value, names), names=", ".join(names)
                ),
                param,
            )
        return str(value)


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """`rich_click.option` with its types kept."""
    return rich_click.option(*names, **settings)


def pairs_option(*names: str, amounts: bool = False, **settings: Any) -> Callable[[F], F]:
    """An option of `K=V` pairs whose value is a dict of texts, or of numbers with `amounts`."""
    parse: Callable[[Iterable[str], str], dict[str, Any]]
    parse = parse_amounts if amounts else parse_pairs

    def read(ctx: click.Context, param: click.Parameter, items: tuple[str, ...]) -> dict[str, Any]:
        try:
            return parse(items, names[0])
        except UsageError as error:
            raise click.UsageError(error.message, ctx) from None

    return option(*names, cls=PairsOption, callback=read, **settings)


def model_option(help: str = "", **settings: Any) -> Callable[[F], F]:
    """`--model`, required."""
    text = help or _("Name of the deployed model.")
    return option("--model", required=True, metavar="NAME", help=text, **settings)


def json_option() -> Callable[[F], F]:
    """`--json`."""
    return option("--json", "as_json", is_flag=True, help=_("Print JSON for programs."))


def _lasting(ctx: click.Context, param: click.Parameter, address: str) -> str:
    if address == "local":
        raise click.BadParameter(
            _("a local cluster ends with this command; use auto, and --start_ray with deploy"),
            ctx,
            param,
        )
    return address


def address_option() -> Callable[[F], F]:
    """`--ray_address`."""
    return option(
        "--ray_address",
        default="auto",
        show_default=True,
        envvar="BYZERLLM_RAY_ADDRESS",
        show_envvar=True,
        metavar="ADDRESS",
        callback=_lasting,
        help=_("Ray cluster: auto (the one on this machine), HOST:PORT or ray://HOST:10001."),
    )


def _remember(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if given and param.name:
        setattr(session, param.name, True)


def common_options() -> list[rich_click.RichOption]:
    """`-v` and `--debug`, which every verb has."""
    shared = functools.partial(
        rich_click.RichOption, is_flag=True, is_eager=True, expose_value=False, callback=_remember
    )
    return [
        shared(["-v", "--verbose"], help=_("Show Ray's and our own log messages.")),
        shared(["--debug"], help=_("Show tracebacks of errors.")),
    ]


def verb(
    name: str, help: str, examples: Iterable[tuple[str, str]] = ()
) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function the command `name`."""

    def decorate(function: Callable[..., Any]) -> Verb:
        command: Verb = click.command(name, cls=Verb, help=help, examples=tuple(examples))(function)
        command.params.extend(common_options())
        return command

    return decorate
