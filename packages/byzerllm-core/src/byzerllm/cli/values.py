"""Values that users type: `K=V` pairs, `${ENV}`, `@file`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from byzerllm.cli.i18n import _
from byzerllm.environment import expand
from byzerllm.errors import UsageError

_SECRET_FILE_LIMIT = 64 * 1024


def read_value(key: str, text: str, where: str) -> str:
    """The value of one pair: `@FILE` is that file's text, `@@…` a plain `@…`, else expanded.

    Raises:
        UsageError: the file cannot be read, a variable is missing, or a secret is empty.
    """
    from byzerllm.runtime.deployment import is_secret

    if text.startswith("@@"):
        value = text[1:]
    elif text.startswith("@"):
        value = _file_text(text[1:], where)
    else:
        value = expand(text, where)
    if not value and is_secret(key):
        raise UsageError(
            _("{where} is empty; was the variable that should hold it set in your shell?").format(
                where=where
            )
        )
    return value


def _file_text(name: str, where: str) -> str:
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > _SECRET_FILE_LIMIT:
            raise UsageError(
                _("{where}: {path} is larger than {limit} bytes; is it the right file?").format(
                    where=where, path=path, limit=_SECRET_FILE_LIMIT
                )
            )
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else _("it is no UTF-8 text")
        raise UsageError(
            _(
                "{where}: cannot read {path}: {reason} (a value that starts with @ names a file; "
                "write @@ for a plain @)"
            ).format(where=where, path=path, reason=reason)
        ) from None


def parse_pairs(items: Iterable[str], option: str) -> dict[str, str]:
    """`["a=1", "b=2"]` as a dict; values keep their text.

    Raises:
        UsageError: an item is no pair, a key comes twice, or a value cannot be read.
    """
    pairs: dict[str, str] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UsageError(
                _("{option} takes KEY=VALUE, got {item!r}").format(option=option, item=item)
            )
        if key in pairs:
            raise UsageError(_("{option} names {key!r} twice").format(option=option, key=key))
        pairs[key] = read_value(key, text, f"{option} {key}")
    return pairs


def parse_amounts(items: Iterable[str], option: str) -> dict[str, float]:
    """`["disk=1"]` as numbers.

    Raises:
        UsageError: as `parse_pairs`, or a value is no positive number.
    """
    amounts: dict[str, float] = {}
    for key, text in parse_pairs(items, option).items():
        try:
            amounts[key] = float(text)
        except ValueError:
            amounts[key] = -1
        if not 0 < amounts[key] < float("inf"):
            raise UsageError(
                _("{option} {key} takes a positive number, got {text!r}").format(
                    option=option, key=key, text=text
                )
            )
    return amounts


def spread(arguments: list[str], names: Iterable[str]) -> list[str]:
    """Repeat each of the options `names` before each of the values that follow it.

    `--infer_params a=1 b=2 --model m` becomes `--infer_params a=1 --infer_params b=2 --model m`.
    """
    wanted = frozenset(_plain_option(name) for name in names)
    spreaded: list[str] = []
    current = ""
    for position, argument in enumerate(arguments):
        if argument == "--":
            return spreaded + arguments[position:]
        if argument.startswith("-"):
            option = argument.split("=", 1)[0]
            current = option if _plain_option(option) in wanted else ""
        elif current and spreaded[-1] != current:
            spreaded.append(current)
        spreaded.append(argument)
    return spreaded


def _plain_option(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
