"""Checks of generation parameters that every engine of ours makes."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from byzerllm.errors import ParameterError
from byzerllm.requests import SamplingParams

S = TypeVar("S", bound=msgspec.Struct)


def parse_extra(kind: type[S], extra: dict[str, Any], *, where: str) -> S:
    """What only one engine knows (`SamplingParams.extra`) as its struct.

    Raises:
        ParameterError: a name or a value that the engine does not take.
    """
    for name in extra:
        if name not in kind.__struct_fields__:
            raise ParameterError.unknown(name, kind.__struct_fields__, where=where)
    try:
        return msgspec.convert(extra, kind, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        raise ParameterError.invalid(name, str(error).split(" - at ")[0], where=where) from None


def check_sampling(params: SamplingParams, *, where: str) -> None:
    """Refuse parameters that contradict each other, whatever engine runs them.

    Raises:
        ParameterError: names them.
    """
    if params.json_schema is not None and params.grammar is not None:
        raise ParameterError("give json_schema or grammar, not both")
    constrained = params.json_schema is not None or params.grammar is not None
    if constrained and params.ignore_eos:
        raise ParameterError(
            "ignore_eos cannot go with json_schema or grammar: an answer that is complete has no "
            "other token than the end"
        )
    if params.repetition_penalty == 0:
        raise ParameterError.invalid("repetition_penalty", "above 0; 1 is off", where=where)
    if "" in params.stop:
        raise ParameterError("stop holds an empty text, which would end every answer at once")
