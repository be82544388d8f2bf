"""Conversations and generation parameters for vendors whose wire has less than OpenAI's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from byzerllm.errors import CapabilityError, ParameterError
from byzerllm.messages import text_of
from byzerllm.requests import SamplingParams
from byzerllm_saas.sampling import given

if TYPE_CHECKING:
    from byzerllm_saas.provider import Provider

Message = dict[str, Any]


def plain_text(provider: Provider, message: Mapping[str, Any]) -> str:
    """The text of a message for a model that reads nothing else.

    Raises:
        CapabilityError: the message has an image, a sound or a file.
    """
    content = message.get("content")
    if not isinstance(content, str):
        others = sorted({part["type"] for part in content or ()} - {"text", "refusal"})
        if others:
            raise CapabilityError(
                f"model {provider.model!r} of {provider.spec.name} reads text, no {others[0]}; "
                "use a model that does",
                vendor=provider.spec.name,
                vendor_model=provider.model,
            )
    return text_of(content)


def without_system(provider: Provider, messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """What the system messages say, in paragraphs, and the other messages."""
    system = [m for m in messages if m["role"] in ("system", "developer")]
    rest = [m for m in messages if m["role"] not in ("system", "developer")]
    if not rest:
        raise ParameterError("the conversation has system messages alone; add a user message")
    return "\n\n".join(plain_text(provider, message) for message in system), rest


def function_names(messages: Sequence[Message]) -> dict[str, str]:
    """The name of the function that each tool call, by its id, was for."""
    return {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls") or ()
    }


def one_call(provider: Provider, message: Mapping[str, Any]) -> dict[str, str] | None:
    """The function call of an assistant's message, `name` and `arguments`; None where it has none.

    Raises:
        ParameterError: it has several, and the vendor's messages hold one.
    """
    calls = message.get("tool_calls") or ()
    if len(calls) > 1:
        raise ParameterError(
            f"a message of {provider.spec.name} holds one function call (got {len(calls)}); "
            "put each call and its result into messages of their own",
            parameter="conversations",
        )
    if not calls:
        return None
    function = calls[0]["function"]
    return {"name": function["name"], "arguments": function["arguments"]}


def new_call_id() -> str:
    """An id for a call of a vendor whose calls have none."""
    return f"call_{uuid.uuid4().hex[:16]}"


def functions_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's `tools` as its older `functions`, all three fields there."""
    return [
        {
            "name": tool["function"]["name"],
            "description": tool["function"].get("description") or tool["function"]["name"],
            "parameters": tool["function"].get("parameters")
            or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]


def sampling_given(
    provider: Provider, sampling: SamplingParams, names: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """The generation parameters of a request under the vendor's names.

    Args:
        names: the vendor's name of each common parameter that it takes.

    Raises:
        ParameterError: one that it does not take.
    """
    for name, value in given(sampling):
        if name not in names:
            raise provider.unsupported(name, names)
        yield names[name], value
