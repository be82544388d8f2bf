"""Requests, their results and the chunks of a stream: the plain data that crosses processes.

All are msgspec structs. A struct tolerates fields that it does not know, so that a newer caller
can talk to an older worker; `runtime.wire` puts a protocol number in front for changes that
cannot be tolerated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from byzerllm.errors import ParameterError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Task = Literal["chat", "embedding", "rerank", "speech", "image", "transcription"]
RequestKind = Literal[
    "chat",
    "speech",
    "image",
    "transcription",
    "embedding",
    "rerank",
    "tokenizer",
    "apply_chat_template",
    "meta",
]
"""What a request is, as `setup_pin_model_worker_mapping` names it."""

NonNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]


class SamplingParams(Struct, kw_only=True, omit_defaults=True, frozen=True):
    """How an answer is generated. `None` leaves a value to the engine.

    Attributes:
        max_tokens: limit of new tokens (the seed's `max_length`).
        temperature: 0 is greedy.
        top_p, top_k, min_p: truncation of the distribution.
        repetition_penalty: 1 is off; above 1 discourages tokens of prompt and answer.
        presence_penalty, frequency_penalty: OpenAI's, over the answer.
        seed: makes sampling repeatable on engines that can.
        stop: texts that end the answer; not part of it.
        stop_token_ids: tokens that end the answer; not part of it.
        ignore_eos: go on after the model's own end token.
        logprobs: number of alternatives per token (0: the chosen token's alone).
        logit_bias: added to a token's logit, by token id.
        json_schema: the answer is one JSON value of this schema. Constrained decoding, on
            models whose meta says `constrained`.
        grammar: the answer matches this grammar in the engine's own notation (GBNF).
        extra: names that only this backend or provider knows, checked in the worker.
    """

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: NonNegative | None = None
    top_p: Probability | None = None
    top_k: int | None = None
    min_p: Probability | None = None
    repetition_penalty: NonNegative | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[int, float] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    extra: dict[str, Any] = {}

    @classmethod
    def parse(cls, *layers: Mapping[str, Any]) -> SamplingParams:
        """Merge the user's spellings, later layers winning.

        `gen.X`, `generation.X` and `X` are the same name; `max_length` and `max_new_tokens` are
        `max_tokens`; `stop` may be one text. Names that are not generation parameters land in
        `extra`, where the worker accepts or refuses them by what its backend declares.

        Raises:
            ParameterError: a value has the wrong type or is out of range.
        """
        known: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for layer in layers:
            for key, value in layer.items():
                name = _canonical(key)
                if name not in _FIELDS:
                    extra[name] = value
                elif value is not None:
                    known[name] = _value(name, value)
        if not known and not extra:
            return _DEFAULT
        try:
            params = msgspec.convert(known, cls, strict=False)
        except msgspec.ValidationError as error:
            raise _explain(known, error) from None
        for name, value in known.items():
            if not _is_finite(getattr(params, name)):
                reason = f"a finite number is needed (got {value!r})"
                raise ParameterError.invalid(name, reason, where="generation")
        return msgspec.structs.replace(params, extra=extra) if extra else params


_FIELDS = frozenset(SamplingParams.__struct_fields__) - {"extra"}
_DEFAULT = SamplingParams()
_SPELLINGS = {
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_length": "max_tokens",
    "n_predict": "max_tokens",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "random_seed": "seed",
}


def generation_names() -> frozenset[str]:
    """Every generation parameter in its own spelling."""
    return _FIELDS


def _canonical(key: str) -> str:
    name = key.removeprefix("gen.").removeprefix("generation.")
    return _SPELLINGS.get(name, name)


def _value(name: str, value: Any) -> Any:
    if name == "stop" and isinstance(value, str):
        return [value]
    if name == "logprobs" and isinstance(value, bool):
        return 0 if value else None
    return value


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _explain(known: Mapping[str, Any], error: msgspec.ValidationError) -> ParameterError:
    for name, value in known.items():
        try:
            msgspec.convert({name: value}, SamplingParams, strict=False)
        except msgspec.ValidationError as single:
            reason = str(single).split(" - at ")[0]
            return ParameterError.invalid(name, f"{reason} (got {value!r})", where="generation")
    return ParameterError(f"generation parameters: {error}")


class GenerateRequest(Struct, kw_only=True, omit_defaults=True, tag="generate"):
    """A chat (`messages`) or a completion (`prompt`); exactly one of the two is set.

    Attributes:
        id: unique; `abort` takes it.
        messages: OpenAI's shape, rendered with the engine's own chat template.
        prompt: text that goes to the model as it is.
        tools: function schemas in OpenAI's shape; for models whose meta says `tools`.
        tool_choice: `auto`, `none`, `required`, or `{"type": "function", "function": {"name": …}}`.
        stream: the caller reads chunks; else it gets one `GenerateResult`.
        extra: vendor parameters from `extra_request_params`, passed on unchecked.
    """

    id: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    sampling: SamplingParams = _DEFAULT
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    stream: bool = False
    extra: dict[str, Any] = {}


class SpeechRequest(Struct, kw_only=True, omit_defaults=True, tag="speak"):
    """A text to be spoken.

    Attributes:
        voice: a voice's name as the model knows it; empty is its default.
        format: `mp3`, `wav`, `opus`, `pcm`, …, as far as the model can.
        speed: 1.0 is the voice's own.
        stream: the caller reads chunks with `audio`; else it gets one `SpeechResult`.
    """

    id: str
    text: str
    voice: str = ""
    format: str = "mp3"
    speed: float = 1.0
    stream: bool = False
    extra: dict[str, Any] = {}


class ImageRequest(Struct, kw_only=True, omit_defaults=True, tag="draw"):
    """A text to make images of. `size` is `WIDTHxHEIGHT` in pixels; empty is the model's own."""

    id: str
    prompt: str
    n: Annotated[int, Meta(ge=1)] = 1
    size: str = ""
    quality: str = ""
    extra: dict[str, Any] = {}


class TranscribeRequest(Struct, kw_only=True, omit_defaults=True, tag="transcribe"):
    """Speech to turn into text.

    Attributes:
        audio: the bytes of an audio file.
        format: its format (`wav`, `mp3`, …); empty leaves it to the model to find out.
        language: ISO 639-1; empty leaves it to the model to find out.
        prompt: text that guides spelling and style.
    """

    id: str
    audio: bytes
    format: str = ""
    language: str = ""
    prompt: str = ""
    extra: dict[str, Any] = {}


class EmbedRequest(Struct, kw_only=True, omit_defaults=True, tag="embed"):
    """Texts to turn into vectors.

    Attributes:
        dimensions: how many numbers each vector shall have; None is the model's own. A model that
            has no vectors of this length refuses.
        query: the texts are what passages are looked up by; a model that was trained with an
            instruction before queries puts it there.
    """

    id: str
    texts: list[str]
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    query: bool = False
    extra: dict[str, Any] = {}


class RerankRequest(Struct, kw_only=True, omit_defaults=True, tag="rerank"):
    """How much texts have to do with each other: `pairs` of a query and a document, or one `query`
    and its `documents`; exactly one of the two is set."""

    id: str
    pairs: list[tuple[str, str]] = []
    query: str = ""
    documents: list[str] = []
    extra: dict[str, Any] = {}

    def all_pairs(self) -> list[tuple[str, str]]:
        """The pairs, whichever way they were given."""
        return self.pairs or [(self.query, document) for document in self.documents]


class TokenizeRequest(Struct, kw_only=True, omit_defaults=True, tag="tokenize"):
    """A text to turn into token ids."""

    id: str
    text: str


class ApplyTemplateRequest(Struct, kw_only=True, omit_defaults=True, tag="apply_chat_template"):
    """Messages to render with the engine's own chat template, without generating."""

    id: str
    messages: list[dict[str, Any]]


class MetaRequest(Struct, kw_only=True, omit_defaults=True, tag="meta"):
    """Asks what the model is."""

    id: str


Request = (
    GenerateRequest
    | SpeechRequest
    | ImageRequest
    | TranscribeRequest
    | EmbedRequest
    | RerankRequest
    | TokenizeRequest
    | ApplyTemplateRequest
    | MetaRequest
)
StreamRequest = GenerateRequest | SpeechRequest
"""What a caller may read chunk by chunk."""


class TokenLogprob(Struct, kw_only=True, omit_defaults=True):
    """One generated token: its text, id, natural log-probability, and the best alternatives."""

    token: str
    id: int
    logprob: float
    top: list[tuple[str, int, float]] = []


class Usage(Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Token counts of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ToolCall(Struct, kw_only=True, omit_defaults=True):
    """A function that the model wants called. `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(Struct, kw_only=True, omit_defaults=True):
    """A piece of a tool call in a stream: `id` and `name` come once, `arguments` in pieces.

    Attributes:
        index: which of the answer's tool calls, 0 first.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


def add_tool_calls(calls: list[ToolCall], deltas: list[ToolCallDelta]) -> None:
    """Put the pieces of a chunk's tool calls to those that came before; changes `calls`."""
    for delta in deltas:
        while len(calls) <= delta.index:
            calls.append(ToolCall(id="", name="", arguments=""))
        call = calls[delta.index]
        call.id = call.id or delta.id
        call.name = call.name or delta.name
        call.arguments += delta.arguments


class GenerateChunk(Struct, kw_only=True, omit_defaults=True, tag="chunk"):
    """The next piece of an answer, or of spoken `audio`. The last one has `finish_reason` and
    `usage`.

    A backend never splits a character: `text` is whole Unicode. `elapsed` and `first_token`
    (seconds since the worker took the request) and `queued` (seconds that it waited before) are
    filled in by the worker on the last chunk. `stop_text`, on the last chunk, is the stop text that
    ended the answer, where the engine says it.
    """

    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    audio: bytes = b""
    finish_reason: FinishReason | None = None
    stop_text: str = ""
    usage: Usage | None = None
    first_token: float = 0.0
    elapsed: float = 0.0
    queued: float = 0.0


class GenerateResult(Struct, kw_only=True, omit_defaults=True, tag="generated"):
    """A whole answer. Times in seconds since the worker took the request; `queued` before."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    stop_text: str = ""
    first_token: float = 0.0
    elapsed: float = 0.0
    queued: float = 0.0


class SpeechResult(Struct, kw_only=True, omit_defaults=True, tag="spoken"):
    """A whole spoken text. Times in seconds; `first_token` is the first audio's."""

    audio: bytes
    format: str
    usage: Usage = Usage()
    first_token: float = 0.0
    elapsed: float = 0.0
    queued: float = 0.0


class ImageResult(Struct, kw_only=True, omit_defaults=True, tag="drawn"):
    """Images as the bytes of files of one `format`. `revised_prompt`: what was really drawn."""

    images: list[bytes]
    format: str = "png"
    revised_prompt: str = ""
    elapsed: float = 0.0


class TranscribeResult(Struct, kw_only=True, omit_defaults=True, tag="transcribed"):
    """What was said. `segments`: dicts with `start` and `end` (seconds) and `text`."""

    text: str
    language: str = ""
    duration: float = 0.0
    segments: list[dict[str, Any]] = []
    elapsed: float = 0.0


class EmbedResult(Struct, kw_only=True, omit_defaults=True, tag="embedded"):
    """One vector per text, in their order."""

    vectors: list[list[float]]
    usage: Usage = Usage()


class RerankResult(Struct, kw_only=True, omit_defaults=True, tag="reranked"):
    """One score per pair, in their order: the model's raw logits, the higher the closer."""

    scores: list[float]
    usage: Usage = Usage()


class TokenizeResult(Struct, kw_only=True, omit_defaults=True, tag="tokenized"):
    token_ids: list[int]


class ApplyTemplateResult(Struct, kw_only=True, omit_defaults=True, tag="applied"):
    text: str


class ModelMeta(Struct, kw_only=True, tag="model_meta"):
    """What `get_meta` shows: the seed's keys, and what the client must know of a model.

    Attributes:
        task: what the model does.
        constrained: `json_schema` is honoured by constrained decoding.
        tools: the engine or the vendor takes `tools` and answers with tool calls.
        message_format: the engine takes messages in OpenAI's shape.
    """

    model_deploy_type: Literal["proprietary", "saas"]
    backend: str
    support_stream: bool = True
    support_chat_template: bool = False
    max_model_len: int | None = None
    architectures: list[str] = []
    model_name: str = ""
    embedding_mode: bool = False
    message_format: bool = True
    constrained: bool = False
    tools: bool = False
    task: Task = "chat"


Result = (
    GenerateResult
    | SpeechResult
    | ImageResult
    | TranscribeResult
    | EmbedResult
    | RerankResult
    | TokenizeResult
    | ApplyTemplateResult
    | ModelMeta
)
