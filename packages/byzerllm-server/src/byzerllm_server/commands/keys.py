"""`byzerllm keys`: create, list, revoke and count the keys of `byzerllm serve --keys`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import rich_click

from byzerllm.cli.command import write_examples, write_usage
from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.options import F, Number, common_options, json_option, option, verb
from byzerllm.cli.session import session
from byzerllm.errors import UsageError
from byzerllm_server.keys.place import DEFAULT_FILE, read_place

if TYPE_CHECKING:
    from rich_click import RichContext
    from rich_click.rich_help_formatter import RichHelpFormatter

    from byzerllm_server.keys.database import UsageRow
    from byzerllm_server.keys.record import Key
    from byzerllm_server.keys.store import Store

T = TypeVar("T")
_PERIODS = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}


class Keys(rich_click.RichGroup):
    """The group; its texts as those of the verbs."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.options_metavar = _("[OPTIONS]")
        self.subcommand_metavar = _("COMMAND [ARGUMENTS]…")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise click.UsageError(
                _("no command {name!r}{nearest}").format(
                    name=args[0], nearest=nearest(args[0], self.commands)
                ),
                ctx,
            )
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: RichContext) -> click.Option | None:  # type: ignore[override]
        found = super().get_help_option(ctx)
        if found is not None:
            found.help = _("Show this help and leave.")
        return found

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_usage(self, ctx, formatter)

    def format_epilog(self, ctx: RichContext, formatter: RichHelpFormatter) -> None:  # type: ignore[override]
        write_examples(
            [
                (_("a key for Alice, into a file"), "byzerllm keys create alice > alice.key"),
                (_("serve for those who have keys"), f"byzerllm serve --keys {DEFAULT_FILE}"),
                (_("what everybody used this month"), "byzerllm keys usage --by month"),
            ],
            formatter,
        )


command = Keys(
    name="keys",
    help=_(
        "Manage the keys of a server: who may call, which models, how much.\n\n"
        "Keys are stored as hashes, in SQLite, PostgreSQL or a YAML file. A running server notices "
        "every change within 5 seconds."
    ),
)
command.params.extend(common_options())


def keys_option() -> Callable[[F], F]:
    """`--keys`."""
    return option(
        "--keys",
        "place",
        default=DEFAULT_FILE,
        show_default=True,
        metavar="URL_OR_FILE",
        help=_(
            "Where the keys are: a SQLite file, a .yaml file, or postgresql://USER:PASSWORD@HOST/"
            "DATABASE; ${NAME} or @FILE hide it from the command line."
        ),
    )


def limit_option(name: str, text: str) -> Callable[[F], F]:
    """An option for a limit that is a number from 1 up."""
    return option(name, type=Number(int, least=1), help=text)


@verb(
    "create",
    help=_(
        "Create a key. It is shown once, alone on standard output; only its hash is stored.\n\n"
        "Without options it may use all models, without limits, for ever."
    ),
    examples=(
        (_("a key without limits, into a file"), "byzerllm keys create alice > alice.key"),
        (
            _("one model, 60 requests and 100,000 tokens a minute, for 90 days"),
            "byzerllm keys create bob --models my_chat --requests_per_minute 60 "
            "--tokens_per_minute 100000 --expires 90d",
        ),
        (
            _("in PostgreSQL, with a budget that begins anew each month"),
            "byzerllm keys create ci --keys '${KEYS_URL}' --monthly_token_budget 5000000",
        ),
    ),
)
@click.argument("name")
@option("--models", multiple=True, metavar="MODEL[,MODEL…]",
        help=_("Models that it may use, by the names that they are served by."))  # fmt: skip
@limit_option("--requests_per_minute", _("Requests that it may begin in a minute."))
@limit_option("--tokens_per_minute", _("Tokens that it may use in a minute."))
@limit_option("--concurrency", _("Requests that it may have at once."))
@limit_option("--token_budget", _("Tokens that it may use in all."))
@limit_option("--monthly_token_budget", _("Tokens that it may use in a month (UTC)."))
@option("--expires", metavar=_("TIME"),
        help=_("When it ends: 12h, 30d, 8w from now, or a date as 2027-01-31 (UTC)."))  # fmt: skip
@keys_option()
@json_option()
def create(name: str, models: tuple[str, ...], place: str, as_json: bool, **given: Any) -> None:
    from byzerllm.cli.render import print_json
    from byzerllm_server.keys import record

    plain = record.new_key()
    digest = record.digest_of(plain.encode())
    allowed = tuple(part.strip() for item in models for part in item.split(",") if part.strip())
    expires = given.pop("expires")
    key = record.Key(
        id=record.id_of(digest),
        digest=digest,
        name=record.check_name(name),
        prefix=plain[: record.PREFIX_LENGTH],
        created=time.time(),
        expires=record.parse_expiry(expires) if expires else None,
        models=allowed or None,
        **given,
    )
    _with_store(place, lambda store: store.keys.add(key), create=True)
    if as_json:
        print_json({"key": plain, **_shown(key)})
        return
    session.hint(_("the key of {name}; it is not shown again:").format(name=name))
    click.echo(plain)


@verb(
    "list",
    help=_("List the keys: what they may use, and what they have used."),
    examples=(
        (_("as a table"), "byzerllm keys list"),
        (
            _("names of those that have expired"),
            "byzerllm keys list --json | jq -r '.[] | select(.state == \"expired\").name'",
        ),
    ),
)
@option("--all", "everything", is_flag=True, help=_("Revoked ones, too."))
@keys_option()
@json_option()
def list_keys(everything: bool, place: str, as_json: bool) -> None:
    from byzerllm.cli.render import plain, print_json, table
    from byzerllm_server.keys.database import TOTAL
    from byzerllm_server.keys.record import month_of

    month = month_of(time.time())

    async def read(store: Store) -> tuple[list[Key], dict[tuple[str, str], int]]:
        found = await store.keys.keys()
        return found, await store.database.spent([key.id for key in found], [TOTAL, month])

    keys, spent = _with_store(place, read)
    rows = [
        {
            **_shown(key),
            "tokens": spent.get((key.id, TOTAL), 0),
            "tokens_this_month": spent.get((key.id, month), 0),
        }
        for key in keys
        if everything or key.revoked is None
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        session.hint(_("there are no keys; see: {command}").format(
            command="byzerllm keys create --help"))  # fmt: skip
        return
    numbers = [_("requests/min"), _("tokens/min"), _("at once"), _("tokens used")]
    shown = table(
        [_("name"), _("key"), _("state"), _("models"), *numbers, _("expires")], numbers=numbers
    )
    for row in rows:
        shown.add_row(
            plain(row["name"]),
            plain(row["prefix"] + "…"),
            _state(row["state"]),
            plain(row["models"]) if row["models"] is not None else _("all"),
            plain(row["requests_per_minute"]),
            plain(row["tokens_per_minute"]),
            plain(row["concurrency"]),
            _of_budget(row),
            plain(row["expires"]),
        )
    session.out.print(shown)


@verb(
    "revoke",
    help=_("End a key. A running server refuses it within 5 seconds; its usage is kept."),
    examples=((_("by name"), "byzerllm keys revoke alice"),),
)
@click.argument("name")
@keys_option()
def revoke(name: str, place: str) -> None:
    async def end(store: Store) -> None:
        if not await store.keys.revoke(name):
            names = sorted(key.name for key in await store.keys.keys() if key.revoked is None)
            raise UsageError(
                _("no active key {name!r}{nearest}; there are: {names}").format(
                    name=name, nearest=nearest(name, names), names=", ".join(names) or "–"
                )
            )

    _with_store(place, end)
    session.hint(_("{name} is revoked").format(name=name))


@verb(
    "usage",
    help=_(
        "Show what keys used: requests, those that failed or were over a limit, and tokens, by "
        "model.\n\n"
        "Figures are written once a second by the servers. Times are UTC."
    ),
    examples=(
        (_("the last 30 days, by day"), "byzerllm keys usage"),
        (_("Alice's last day, by hour"), "byzerllm keys usage --name alice --by hour --since 24h"),
        (
            _("as CSV, for a bill"),
            "byzerllm keys usage --by month --since 365d --json | jq -r "
            "'.[] | [.time, .name, .model, .prompt_tokens, .completion_tokens] | @csv'",
        ),
    ),
)
@option("--name", metavar="NAME", help=_("Only this key."))
@option("--by", type=click.Choice(list(_PERIODS)), default="day", show_default=True,
        help=_("Length of the periods."))  # fmt: skip
@option("--since", default="30d", show_default=True, metavar=_("TIME"),
        help=_("How far back: 24h, 30d, 8w, or a date as 2026-01-31 (UTC)."))  # fmt: skip
@keys_option()
@json_option()
def usage(name: str | None, by: str, since: str, place: str, as_json: bool) -> None:
    from byzerllm.cli.render import plain, print_json, table
    from byzerllm_server.keys.database import COUNTS
    from byzerllm_server.keys.record import parse_since

    start = parse_since(since)

    async def read(store: Store) -> tuple[list[Key], list[UsageRow]]:
        found = await store.keys.keys()
        if name is None:
            return found, await store.database.usage(since=start)
        ids = [key.id for key in found if key.name == name]
        if not ids:
            names = sorted({key.name for key in found})
            raise UsageError(
                _("no key {name!r}{nearest}; there are: {names}").format(
                    name=name, nearest=nearest(name, names), names=", ".join(names) or "–"
                )
            )
        return found, await store.database.usage(since=start, ids=ids)

    rows = _summed(*_with_store(place, read), by)
    if as_json:
        print_json(rows)
        return
    if not rows:
        session.hint(_("nothing was used since {since}").format(since=since))
        return
    numbers = [_("requests"), _("failed"), _("refused"), _("prompt tokens"), _("completion tokens")]
    shown = table([_("time (UTC)"), _("name"), _("key"), _("model"), *numbers], numbers=numbers)
    for row in rows:
        texts = [row["time"], row["name"], row["prefix"] + "…", row["model"]]
        shown.add_row(*(plain(text) for text in texts), *(f"{row[count]:,}" for count in COUNTS))
    session.out.print(shown)


for _made in (create, list_keys, revoke, usage):
    command.add_command(_made)


def _summed(keys: list[Key], rows: list[UsageRow], by: str) -> list[dict[str, Any]]:
    from datetime import UTC, datetime

    from byzerllm_server.keys.database import COUNTS

    by_id = {key.id: key for key in keys}
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        period = datetime.fromtimestamp(row.hour, UTC).strftime(_PERIODS[by])
        key = by_id.get(row.key_id)
        summed = sums.setdefault(
            (period, row.key_id, row.model),
            {
                "time": period,
                "name": key.name if key else row.key_id,
                "prefix": key.prefix if key else "",
                "model": row.model,
                **dict.fromkeys(COUNTS, 0),
            },
        )
        for count in COUNTS:
            summed[count] += getattr(row, count)
    return sorted(sums.values(), key=lambda row: (row["time"], row["name"], row["model"]))


def _shown(key: Key) -> dict[str, Any]:
    from datetime import UTC, datetime

    from byzerllm_server.keys.record import LIMITS

    def moment(value: float | None) -> str | None:
        if value is None:
            return None
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    return {
        "name": key.name,
        "prefix": key.prefix,
        "state": key.state(time.time()),
        "created": moment(key.created),
        "expires": moment(key.expires),
        "revoked": moment(key.revoked),
        "models": None if key.models is None else list(key.models),
        **{limit: getattr(key, limit) for limit in LIMITS},
    }


def _of_budget(row: dict[str, Any]) -> str:
    shown = f"{row['tokens']:,}"
    if row["token_budget"] is not None:
        shown += f" / {row['token_budget']:,}"
    if row["monthly_token_budget"] is not None:
        monthly = f"{row['tokens_this_month']:,} / {row['monthly_token_budget']:,}"
        shown += " " + _("({monthly} this month)").format(monthly=monthly)
    return shown


def _state(name: str) -> str:
    styles = {"active": "green", "expired": "yellow", "revoked": "red"}
    words = {"active": _("active"), "expired": _("expired"), "revoked": _("revoked")}
    return f"[{styles[name]}]{words[name]}[/]"


def _with_store(place: str, ask: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """What `ask` finds out."""
    from byzerllm_server.keys.database import FAILURES, reason
    from byzerllm_server.keys.store import open_store

    async def run() -> T:
        store = open_store(read_place(place), create=create)
        try:
            await store.database.open()
            return await ask(store)
        finally:
            await store.database.close()

    try:
        return asyncio.run(run())
    except FAILURES as error:
        raise UsageError(
            _("the database of keys cannot be used: {reason}").format(reason=reason(error))
        ) from None
