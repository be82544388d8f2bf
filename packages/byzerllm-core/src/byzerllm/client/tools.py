"""Function calling: which tools a model is offered, what it calls, and the calls themselves.

A model whose engine or vendor has tools of its own gets them in OpenAI's shape; any other is asked
in words for JSON, which constrained decoding keeps to the tools' schemas where the engine has it.
"""

from __future__ import annotations

import functools
import inspect
import json
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from byzerllm.client.exchange import Conversation, Exchange, Run
from byzerllm.client.formats import function_calling_format, retry_format
from byzerllm.client.schema import FunctionSchema, function_schema
from byzerllm.client.structured import (
    ASKS,
    AnswerError,
    Totals,
    ask_constrained,
    closed,
    parse_json,
)
from byzerllm.client.types import FunctionCall, LLMFunctionCallResponse, LLMResponse
from byzerllm.errors import ParameterError, did_you_mean, listed
from byzerllm.messages import Message, text_of
from byzerllm.requests import GenerateResult

MOST_CALLS = 8
_CALLS = "tool_calls"
_ANSWER = "answer"


@dataclass(frozen=True)
class Tool:
    """One function that the model may call; `function` is None for a schema alone."""

    schema: FunctionSchema
    function: Callable[..., Any] | None


@dataclass(frozen=True)
class Toolbox:
    """The tools of one call.

    Attributes:
        tools: by name.
        choice: `auto`, `required`, `none`, or the name of the tool that must be called.
        offered: as the caller gave them, for prompt formats.
        bound: parameters that the caller filled in.
    """

    tools: Mapping[str, Tool]
    choice: str
    offered: Sequence[Any]
    bound: Mapping[str, Any]

    @classmethod
    def of(
        cls, tools: Sequence[Any], tool_choice: Any, func_params: Mapping[str, Any] | None
    ) -> Toolbox:
        """Check what the caller passed.

        Raises:
            ParameterError: a tool that is none, two of one name, an unknown `tool_choice`, or
                `func_params` that no tool has.
        """
        bound = dict(func_params or {})
        offered = list(tools)
        if callable(tool_choice) and tool_choice not in offered:
            offered.append(tool_choice)
        found: dict[str, Tool] = {}
        taken: set[str] = set()
        for given in offered:
            tool = _tool(given, bound)
            if tool.schema.name in found:
                raise ParameterError(f"two tools are called {tool.schema.name!r}")
            found[tool.schema.name] = tool
            taken |= tool.schema.signature.parameters.keys()
        unknown = bound.keys() - taken
        if unknown:
            raise ParameterError.unknown(min(unknown), taken, where="func_params")
        return cls(found, _choice(tool_choice, found), offered, bound)

    @property
    def forced(self) -> bool:
        return self.choice not in ("auto", "none")

    def allowed(self) -> list[Tool]:
        """The tools that the model may call, by the choice."""
        if self.choice in self.tools:
            return [self.tools[self.choice]]
        return list(self.tools.values())

    def json_schema(self) -> dict[str, Any]:
        """What an answer in words may be: calls, or, when none is forced, an answer."""
        definitions: dict[str, Any] = {}
        calls = {
            "type": "array",
            "items": _any_of([_call_schema(tool, definitions) for tool in self.allowed()]),
            "minItems": 1,
            "maxItems": 1 if self.choice in self.tools else MOST_CALLS,
        }
        schema = _object({_CALLS: calls})
        if not self.forced:
            schema = _any_of([schema, _object({_ANSWER: {"type": "string"}})])
        shut: dict[str, Any] = closed({**schema, "$defs": definitions} if definitions else schema)
        return shut

    def check(self, name: str, arguments: Any) -> dict[str, Any]:
        """The arguments of a call, validated. Raises AnswerError."""
        names = [tool.schema.name for tool in self.allowed()]
        if name not in names:
            raise AnswerError(
                f"there is no function {name!r}{did_you_mean(name, names)}; there are: "
                f"{listed(names)}"
            )
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments) if arguments.strip() else {}
            except AnswerError as error:
                raise AnswerError(f"{name}: the arguments are no JSON: {error}") from None
        if not isinstance(arguments, Mapping):
            raise AnswerError(f"{name}: the arguments are no JSON object")
        try:
            return self.tools[name].schema.validate(arguments)
        except ValueError as error:
            raise AnswerError(f"{name}: {error}") from None


def _tool(given: Any, bound: Mapping[str, Any]) -> Tool:
    if isinstance(given, Mapping):
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ParameterError(
                "a tool given as a dict has OpenAI's shape: "
                '{"type": "function", "function": {"name": …, "parameters": {…}}}'
            )
        return Tool(_foreign_schema(name, function), None)
    names = [name for name in bound if name in _parameter_names(given)]
    return Tool(function_schema(given, names), given)


def _parameter_names(function: Any) -> Sequence[str]:
    return list(function_schema(function).signature.parameters)


def _foreign_schema(name: str, function: Mapping[str, Any]) -> FunctionSchema:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return FunctionSchema(
        name=name,
        description=str(function.get("description") or ""),
        parameters=dict(parameters),
        returns={},
        signature=inspect.Signature(),
        _model=None,
    )


def _choice(given: Any, tools: Mapping[str, Tool]) -> str:
    if given is None:
        return "auto"
    name = given
    if isinstance(given, Mapping):
        name = given.get("function", given).get("name")
    elif callable(given):
        name = function_schema(given).name
    if name in ("auto", "none", "required") or name in tools:
        return str(name)
    raise ParameterError.invalid(
        "tool_choice",
        f"one of the tools ({listed(tools)}), or 'auto', 'required', 'none' (got {name!r})",
        where="chat_oai",
    )


def _call_schema(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    """A call of one tool. What its schema refers to is put into `definitions` under the tool's
    name: two tools may mean different types by one."""
    name = tool.schema.name

    def renamed(node: Any) -> Any:
        if isinstance(node, list):
            return [renamed(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {
            key: value.replace("#/$defs/", f"#/$defs/{name}.")
            if key == "$ref" and isinstance(value, str)
            else renamed(value)
            for key, value in node.items()
        }

    parameters = renamed(tool.schema.parameters)
    for key, value in parameters.pop("$defs", {}).items():
        definitions[f"{name}.{key}"] = value
    return _object({"name": {"const": name}, "arguments": parameters})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def function_exchange(
    conversation: Conversation, toolbox: Toolbox, *, execute: bool = False
) -> Exchange:
    """The chat behind `tools`.

    Calls that do not validate are asked for once more. With `execute` each call runs; one that
    raises ends the run and is reported with its name and arguments in the metadata's `reason`.
    """
    total = Totals()
    native = conversation.meta.tools and "function_calling" not in conversation.settings.formats
    asked = _ask_native if native else _ask_in_words
    messages = conversation.messages if native else _prompted(conversation, toolbox)
    calls: list[FunctionCall] = []
    reason = ""
    for _ in range(ASKS):
        response, found = yield from asked(conversation, toolbox, messages, total)
        reason = ""
        try:
            calls = [
                FunctionCall(id_, name, toolbox.check(name, arguments))
                for id_, name, arguments in found
            ]
            if not calls and toolbox.forced:
                raise AnswerError("it calls no function")
        except AnswerError as error:
            reason, calls = str(error), []
        else:
            break
        if response.metadata["finish_reason"] == "length":
            reason = f"the answer was cut off by the token limit (max_length): {reason}"
            break
        messages = [
            *messages,
            {"role": "assistant", "content": response.output or _written(found)},
            {"role": "user", "content": retry_format(conversation.question, reason)},
        ]
    values: list[Any] = []
    if execute and calls:
        values, reason = yield from _execute(toolbox, calls)
    metadata = total.metadata(response, reason)
    if calls:
        metadata["finish_reason"] = "tool_calls"
    return [LLMFunctionCallResponse(response, values, metadata, calls)]


def _prompted(conversation: Conversation, toolbox: Toolbox) -> list[Message]:
    """The conversation for a model without tools, its last message asking for the calls."""
    plain = replace(conversation, messages=text_messages(conversation.messages))
    if toolbox.choice == "none":
        return plain.messages
    custom = conversation.settings.formats.get("function_calling")
    choice = toolbox.choice if toolbox.forced else None
    if custom is None:
        offered = [tool.schema.openai() for tool in toolbox.tools.values()]
        return plain.asking(function_calling_format(plain.question, offered, choice))
    chosen = toolbox.tools.get(toolbox.choice)
    function = chosen.function if chosen is not None else None
    return plain.asking(custom(plain.question, toolbox.offered, function or choice))


Found = list[tuple[str, str, Any]]
Asked = Generator[Any, Any, tuple[LLMResponse, Found]]


def _ask_native(
    conversation: Conversation, toolbox: Toolbox, messages: list[Message], total: Totals
) -> Asked:
    make = conversation.request if not total.responses else conversation.again
    request = make(
        messages,
        tools=[tool.schema.openai() for tool in toolbox.tools.values()],
        tool_choice=_openai_choice(toolbox),
    )
    result: GenerateResult = yield request
    response = total.add(conversation.response(request, result))
    return response, [(call.id, call.name, call.arguments) for call in result.tool_calls]


def _openai_choice(toolbox: Toolbox) -> str | dict[str, Any]:
    if toolbox.choice in toolbox.tools:
        return {"type": "function", "function": {"name": toolbox.choice}}
    return toolbox.choice


def _ask_in_words(
    conversation: Conversation, toolbox: Toolbox, messages: list[Message], total: Totals
) -> Asked:
    if toolbox.choice == "none":
        request = conversation.request(messages)
        return total.add(conversation.response(request, (yield request))), []
    schema = toolbox.json_schema()
    request, result = yield from ask_constrained(conversation, messages, schema, total)
    response = total.add(conversation.response(request, result))
    found, text = read_calls(response.output, list(toolbox.tools))
    if text is not None:
        response.output = text
    return response, found


def read_calls(text: str, names: Sequence[str]) -> tuple[Found, str | None]:
    """The calls in an answer in words, and the text of an answer without any (None: as it is).

    Takes the form that is asked for and those that models are trained on: a list of calls, a
    single one, OpenAI's `function` inside, `parameters` for `arguments`.
    """
    try:
        value = parse_json(text)
    except AnswerError:
        return [], None
    if isinstance(value, dict) and set(value) == {_ANSWER} and isinstance(value[_ANSWER], str):
        return [], value[_ANSWER]
    items = value.get(_CALLS, [value]) if isinstance(value, dict) else value
    found: Found = []
    for item in items if isinstance(items, list) else [items]:
        call = _call(item)
        if call is not None and (call[1] in names or _is_call_list(value)):
            found.append(call)
    return found, None


def _is_call_list(value: Any) -> bool:
    return isinstance(value, dict) and _CALLS in value


def _call(item: Any) -> tuple[str, str, Any] | None:
    if not isinstance(item, dict):
        return None
    function = item.get("function", item)
    if isinstance(function, str):
        function = {**item, "name": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("parameters", {}))
    id_ = item.get("id")
    return (id_ if isinstance(id_, str) and id_ else _new_id()), function["name"], arguments


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _execute(
    toolbox: Toolbox, calls: Sequence[FunctionCall]
) -> Generator[Any, Any, tuple[list[Any], str]]:
    values: list[Any] = []
    for call in calls:
        tool = toolbox.tools[call.name]
        if tool.function is None:
            return values, f"{call.name} is a schema without a function; it cannot be executed"
        names = tool.schema.signature.parameters
        bound = {name: value for name, value in toolbox.bound.items() if name in names}
        run = functools.partial(tool.schema.call, tool.function, {**call.arguments, **bound})
        try:
            values.append((yield Run(run)))
        except Exception as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
            return values, f"{call.name}({shown}) raised {type(error).__name__}: {error}"
    return values, ""


def text_messages(messages: Sequence[Message]) -> list[Message]:
    """The messages without tool calls and results of their own kind, which a model without tools
    does not know: a call becomes the assistant's JSON, a result the user's text."""
    names: dict[str, str] = {}
    plain: list[Message] = []
    for message in messages:
        if message.get(_CALLS):
            found = [call for call in map(_call, message[_CALLS]) if call is not None]
            names.update((id_, name) for id_, name, _ in found)
            content = text_of(message.get("content"))
            plain.append({"role": "assistant", "content": content or _written(found)})
        elif message["role"] == "tool":
            name = names.get(message.get("tool_call_id", ""), message.get("name", "function"))
            result = text_of(message.get("content"))
            plain.append({"role": "user", "content": f"{name} returned: {result}"})
        else:
            plain.append(message)
    return plain


def _written(calls: Found) -> str:
    written = [{"name": name, "arguments": _plain(arguments)} for _, name, arguments in calls]
    return json.dumps({_CALLS: written}, ensure_ascii=False, default=str)


def _plain(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
