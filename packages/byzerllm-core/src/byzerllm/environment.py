"""`${NAME}` in texts, taken from the environment of the process that deploys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from byzerllm.errors import ParameterError

_REFERENCE = re.compile(r"\$(?P<escaped>\$)?\{(?P<inside>[^}]*)\}")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)


def expand(text: str, where: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace `${NAME}` and `${NAME:-default}` by environment variables; `$${` is a plain `${`.

    Args:
        where: what the text belongs to, for the error.
        environment: defaults to this process's.

    Raises:
        ParameterError: a variable is not set and has no default, or the reference is malformed.
    """
    variables = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return match[0][1:]
        reference = _VARIABLE.fullmatch(match["inside"])
        if reference is None:
            raise ParameterError(
                f"{where}: {match[0]} is no environment variable; write ${{NAME}} or "
                "${NAME:-default}, and $${ for a plain ${"
            )
        name, default = reference["name"], reference["default"]
        found = variables.get(name)
        if default is not None:
            return found or default.removeprefix(":-")
        if found is None:
            raise ParameterError(
                f"{where}: the environment variable {name} is not set; set it or write "
                f"${{{name}:-default}}"
            )
        return found

    return _REFERENCE.sub(value, text)


def expand_all(value: Any, where: str) -> Any:
    """`expand` for every text in lists and dicts."""
    if isinstance(value, str):
        return expand(value, where)
    if isinstance(value, Mapping):
        return {key: expand_all(item, f"{where} {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expand_all(item, where) for item in value]
    return value
