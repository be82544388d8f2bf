"""Pydantic answers: from a model's text to an instance.

Where the model's decoding can be constrained, the answer is JSON of the class by construction;
elsewhere the model is asked for it in words. Either way the text is parsed as leniently as is safe
and then checked by pydantic; an answer that does not fit is asked for once more, with the
complaint.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Generator, Iterator
from typing import Any

import json_repair
import pydantic

from byzerllm.client.exchange import Conversation, Exchange
from byzerllm.client.formats import (
    response_class_format,
    response_class_format_after_chat,
    retry_format,
)
from byzerllm.client.schema import class_schema, explain, type_adapter
from byzerllm.client.types import LLMClassResponse, LLMResponse, Metadata
from byzerllm.errors import ParameterError
from byzerllm.messages import Message
from byzerllm.requests import GenerateRequest, GenerateResult

ASKS = 2
WRAPPER = "value"
_MAX_PIECES = 20
_FENCE = "```"


class AnswerError(ValueError):
    """A text that does not hold the value that was asked for; says why, in a line."""


def parse_json(text: str) -> Any:
    """The JSON value in a model's answer.

    Survives fenced blocks, text before and after, and small damage: single quotes, missing
    commas and brackets, comments, an end that is cut off.

    Raises:
        AnswerError: there is none.
    """
    return next(iter(_values(text)))


def parse_answer(text: str, response_class: Any) -> Any:
    """The instance in a model's answer.

    Raises:
        AnswerError: no JSON, or none that fits; says which fields.
    """
    adapter = type_adapter(response_class)
    reason = ""
    for value in _values(text):
        for candidate in _unwrapped(value):
            try:
                return adapter.validate_python(candidate)
            except pydantic.ValidationError as error:
                reason = reason or explain(error)
            except RecursionError:
                reason = reason or "it is nested too deeply"
    raise AnswerError(reason or "it holds no JSON value")


def _values(text: str) -> Iterator[Any]:
    """Candidates for the value, the likeliest first. Raises AnswerError when there are none."""
    found = False
    seen: set[str] = set()
    for piece in _pieces(text):
        if piece in seen:
            continue
        seen.add(piece)
        try:
            value = json.loads(piece, strict=False)
        except (ValueError, RecursionError):
            continue
        found = True
        yield value
    for piece in seen:
        if piece[:1] not in "{[":
            continue
        try:
            value = json_repair.loads(piece, skip_json_loads=True)
        except (ValueError, RecursionError, IndexError, TypeError):
            continue
        if value != "" and value is not None:
            found = True
            yield value
    if not found:
        raise AnswerError("it holds no JSON value")


def _pieces(text: str) -> Iterator[str]:
    """Parts of the text that may be the JSON value."""
    text = text.strip()
    yield text
    blocks = text.split(_FENCE)
    for block in blocks[1::2]:
        head, _, body = block.partition("\n")
        yield (body if head.strip().isalnum() or not head.strip() else block).strip()
    count = 0
    position = 0
    while count < _MAX_PIECES:
        starts = [i for i in (text.find("{", position), text.find("[", position)) if i >= 0]
        if not starts:
            return
        start = min(starts)
        end = _balanced_end(text, start)
        yield text[start:end]
        position = max(end, start + 1)
        count += 1


def _balanced_end(text: str, start: int) -> int:
    """Where the brackets opened at `start` are closed again, strings left out; else the end."""
    depth = 0
    in_string = escaped = False
    for index in range(start, len(text)):
        character = text[index]
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if depth == 0:
                return index + 1
    return len(text)


def _unwrapped(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict) and len(value) == 1:
        (inner,) = value.values()
        yield inner


def answer_schema(response_class: Any) -> dict[str, Any]:
    """The schema that constrains the answer; made once, do not change it.

    It is always an object, as vendors want it: what is none is put under `value`, and
    `parse_answer` takes it out again. Objects are closed unless their class allows more: pydantic
    would ignore what stands beside the fields, and a small model left to itself goes on writing
    properties until its limit.
    """
    try:
        return _answer_schema(response_class)
    except TypeError:
        return _new_answer_schema(response_class)


def _new_answer_schema(response_class: Any) -> dict[str, Any]:
    schema: dict[str, Any] = closed(class_schema(response_class))
    if _is_object(schema):
        return schema
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    wrapped: dict[str, Any] = {
        "type": "object",
        "properties": {WRAPPER: inner},
        "required": [WRAPPER],
        "additionalProperties": False,
    }
    return {**wrapped, "$defs": schema["$defs"]} if "$defs" in schema else wrapped


_answer_schema = functools.lru_cache(maxsize=512)(_new_answer_schema)


def closed(node: Any, *, names: bool = False) -> Any:
    """`node` with `additionalProperties: false` where properties are listed and nothing is said of
    others. `names`: the keys of `node` are names of properties or definitions."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    listing = ("properties", "$defs")
    made = {key: closed(value, names=not names and key in listing) for key, value in node.items()}
    if not names and "properties" in node:
        made.setdefault("additionalProperties", False)
    return made


def _is_object(schema: dict[str, Any]) -> bool:
    reference = schema.get("$ref", "")
    if reference.startswith("#/$defs/"):
        schema = schema["$defs"][reference.removeprefix("#/$defs/")]
    return schema.get("type") == "object"


def structured_exchange(
    conversation: Conversation, response_class: Any, *, after_chat: bool = False
) -> Exchange:
    """The chat behind `response_class`.

    Args:
        after_chat: let the model answer in words first and put that answer into the class then;
            the words stand in the metadata under `text`.
    """
    messages = conversation.messages
    total = Totals()
    if after_chat:
        request = conversation.request()
        text = total.add(conversation.response(request, (yield request))).output
        custom = conversation.settings.formats.get("response_class_after_chat")
        prompt = (custom or response_class_format_after_chat)(response_class)
        messages = [*messages, _said(text), {"role": "user", "content": prompt}]
        total.noted["text"] = text
    else:
        messages = _asking(conversation, response_class)
    schema = answer_schema(response_class)
    reason = ""
    for _ in range(ASKS):
        request, result = yield from ask_constrained(conversation, messages, schema, total)
        response = total.add(conversation.response(request, result))
        try:
            value = parse_answer(response.output, response_class)
        except AnswerError as error:
            reason = str(error)
        else:
            return [LLMClassResponse(response, value, total.metadata(response))]
        if result.finish_reason == "length":
            reason = f"the answer was cut off by the token limit (max_length): {reason}"
            break
        retry = retry_format(conversation.question, reason)
        messages = [*messages, _said(response.output), {"role": "user", "content": retry}]
    return [LLMClassResponse(response, None, total.metadata(response, reason))]


def _asking(conversation: Conversation, response_class: Any) -> list[Message]:
    custom = conversation.settings.formats.get("response_class")
    if custom is None and conversation.meta.constrained and _is_hosted(conversation):
        # The vendor puts the schema before the model in its own way.
        return conversation.messages
    prompt = (custom or response_class_format)(conversation.question, response_class)
    return conversation.asking(prompt)


def _is_hosted(conversation: Conversation) -> bool:
    return conversation.meta.model_deploy_type == "saas"


def ask_constrained(
    conversation: Conversation, messages: list[Message], schema: dict[str, Any], total: Totals
) -> Generator[GenerateRequest, GenerateResult, tuple[GenerateRequest, GenerateResult]]:
    """One step, constrained where that works. A schema that the engine cannot make a grammar of is
    left to the prompt and to pydantic."""
    make = conversation.request if not total.responses else conversation.again
    request = make(messages, json_schema=schema)
    try:
        return request, (yield request)
    except ParameterError as error:
        if request.sampling.json_schema is None or error.details.get("parameter") != "json_schema":
            raise
    request = conversation.again(messages)
    return request, (yield request)


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text or " "}


class Totals:
    """What the steps of one chat cost together."""

    def __init__(self) -> None:
        self.responses: list[LLMResponse] = []
        self.noted: dict[str, Any] = {}

    def add(self, response: LLMResponse) -> LLMResponse:
        self.responses.append(response)
        return response

    def metadata(self, last: LLMResponse, reason: str = "") -> Metadata:
        """The last answer's metadata with counts and seconds of all; `reason` (and `resason`, as
        the seed spells it) says why there is no value."""
        metadata = Metadata(last.metadata)
        for key in ("input_tokens_count", "generated_tokens_count", "time_cost"):
            metadata[key] = sum(response.metadata[key] for response in self.responses)
        metadata["steps"] = len(self.responses)
        metadata.update(self.noted)
        if reason:
            metadata["reason"] = metadata["resason"] = reason
        return metadata
