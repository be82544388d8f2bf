"""What users hand in and get back."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from byzerllm.templates import Template, Templates

__all__ = [
    "Embeddings",
    "FunctionCall",
    "InferBackend",
    "LLMClassResponse",
    "LLMFunctionCallResponse",
    "LLMHistoryItem",
    "LLMRequest",
    "LLMResponse",
    "Metadata",
    "StreamItem",
    "Template",
    "Templates",
]


class InferBackend(enum.StrEnum):
    """Backends by the names that the seed uses."""

    Transformers = "transformers"
    transformers = "transformers"
    VLLM = "ray/vllm"
    LLAMA_CPP = "llama_cpp"
    DeepSpeed = "ray/deepspeed"


class Metadata(dict[str, Any]):
    """What is known of an answer; keys can be read as attributes.

    Keys: `request_id`, `input_tokens_count`, `generated_tokens_count`, `time_cost` and
    `first_token_time` (seconds), `speed` (tokens/s), `finish_reason`, `reasoning_content`,
    `model`; `logprobs` when they were asked for.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this answer's metadata has no {name!r}") from None


@dataclass
class LLMHistoryItem:
    """One message of a conversation."""

    role: str
    content: str


@dataclass
class LLMRequest:
    """One instruction, or several that are answered side by side.

    Attributes:
        max_length: limit of new tokens. None leaves it, like the others, to the model.
    """

    instruction: str | list[str]
    max_length: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    extra_params: dict[str, Any] = field(default_factory=dict)

    def generation_params(self) -> dict[str, Any]:
        given = {
            "max_length": self.max_length,
            "top_p": self.top_p,
            "temperature": self.temperature,
            **self.extra_params,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class LLMResponse:
    """One answer: the text (or vector), what was sent, and what is known of it."""

    output: Any
    input: Any = ""
    metadata: Metadata = field(default_factory=Metadata)


class StreamItem(tuple[Any, Metadata]):
    """One item of a stream: unpacks as (text, metadata), and adds and prints as its text."""

    __slots__ = ()

    def __new__(cls, text: Any, metadata: Metadata) -> StreamItem:
        return super().__new__(cls, (text, metadata))

    @property
    def text(self) -> Any:
        return self[0]

    @property
    def metadata(self) -> Metadata:
        return self[1]

    def __add__(self, other: Any) -> Any:
        return self[0] + other

    def __radd__(self, other: Any) -> Any:
        return other + self[0]

    def __str__(self) -> str:
        return str(self[0])


class Embeddings(list[LLMResponse]):
    """A list of vectors as LLMResponses; `.output` and `.metadata` are its first item's."""

    @property
    def output(self) -> Any:
        return self[0].output

    @property
    def metadata(self) -> Metadata:
        return self[0].metadata

    def vectors(self) -> Iterator[list[float]]:
        for response in self:
            yield response.output


@dataclass(frozen=True)
class FunctionCall:
    """A tool call as the model asked for it, its arguments validated.

    Attributes:
        id: what a `tool` message of a conversation refers to.
        arguments: by parameter name.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass
class LLMFunctionCallResponse:
    """What `chat_oai` returns with `tools`.

    Attributes:
        response: the model's answer.
        values: what the called tools returned, in the order of `tool_calls`; empty when no tool
            was chosen, or `execute_tool` is false.
        metadata: as the response's; `reason` says why calls are missing.
        tool_calls: what the model wants called.
    """

    response: LLMResponse
    values: list[Any]
    metadata: Metadata
    tool_calls: list[FunctionCall] = field(default_factory=list)

    @property
    def output(self) -> Any:
        return self.response.output

    @property
    def input(self) -> Any:
        return self.response.input

    def message(self) -> dict[str, Any]:
        """The answer as a message for the next round of the conversation, in OpenAI's shape."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False, default=str),
                },
            }
            for call in self.tool_calls
        ]
        message: dict[str, Any] = {"role": "assistant", "content": self.output or None}
        return {**message, "tool_calls": calls} if calls else message


@dataclass
class LLMClassResponse:
    """What `chat_oai` returns with `response_class` or `impl_func`.

    Attributes:
        response: the model's answer.
        value: the instance, or None; `metadata` has the `reason` then.
        metadata: as the response's.
    """

    response: LLMResponse
    value: Any
    metadata: Metadata

    @property
    def output(self) -> Any:
        return self.response.output

    @property
    def input(self) -> Any:
        return self.response.input
