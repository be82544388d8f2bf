"""What crosses processes: msgpack of plain structs behind a protocol number.

A batch is what one end has for the other at one time: numbered items of one channel. Unknown
fields are ignored; a batch of another protocol number is a `ProtocolError`. Errors of plugins and
vendors become core errors here, so that a caller with core alone can read them.
"""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import msgspec
from msgspec import Struct

from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    ParameterError,
    ProtocolError,
    error_types,
)
from byzerllm.requests import GenerateChunk, Request, RequestKind, Result
from byzerllm.runtime.deployment import DeploymentSpec, redact, redact_data

PROTOCOL = 1


class Cancel(Struct, tag="cancel"):
    """Stop the request whose number this item carries."""


class Failure(Struct, kw_only=True, omit_defaults=True, tag="failure"):
    """An error on its way: the name of its class in `byzerllm.errors` and its content."""

    code: str
    message: str
    details: dict[str, Any] = {}


class CallBatch(Struct, array_like=True):
    """From a caller: requests and cancellations."""

    protocol: int
    items: list[tuple[int, Request | Cancel]]


class ReplyBatch(Struct, array_like=True):
    """From a worker: chunks, results and failures. `version` is the deployment's, so that a
    caller sees that its routing table is old."""

    protocol: int
    version: int
    items: list[tuple[int, GenerateChunk | Result | Failure]]


class _Header(Struct, array_like=True):
    protocol: int


class WorkerEntry(Struct, array_like=True):
    """A worker in the routing table."""

    id: str
    index: int


class TableEntry(Struct, kw_only=True):
    """A deployment in the routing table. `generation` is another one after a redeployment."""

    model: str
    version: int
    generation: str = ""
    balancer: str
    retryable: bool
    workers: list[WorkerEntry]
    fallbacks: list[str] = []


_encode = msgspec.msgpack.Encoder().encode
_decode_calls = msgspec.msgpack.Decoder(CallBatch).decode
_decode_replies = msgspec.msgpack.Decoder(ReplyBatch).decode
_decode_header = msgspec.msgpack.Decoder(_Header).decode


def encode_calls(items: list[tuple[int, Request | Cancel]]) -> bytes:
    try:
        return _encode(CallBatch(PROTOCOL, items))
    except (TypeError, OverflowError) as error:
        raise ParameterError(f"the request holds what is not plain data: {error}") from None


def encode_replies(
    version: int, items: list[tuple[int, GenerateChunk | Result | Failure]]
) -> bytes:
    return _encode(ReplyBatch(PROTOCOL, version, items))


def decode_calls(data: bytes) -> list[tuple[int, Request | Cancel]]:
    """Raises ProtocolError."""
    try:
        batch = _decode_calls(data)
    except msgspec.DecodeError as error:
        raise _mismatch(data, error) from None
    if batch.protocol != PROTOCOL:
        raise _mismatch(data, None)
    return batch.items


def decode_replies(data: bytes) -> ReplyBatch:
    """Raises ProtocolError."""
    try:
        batch = _decode_replies(data)
    except msgspec.DecodeError as error:
        raise _mismatch(data, error) from None
    if batch.protocol != PROTOCOL:
        raise _mismatch(data, None)
    return batch


def _mismatch(data: bytes, error: Exception | None) -> ProtocolError:
    try:
        theirs = _decode_header(data).protocol
    except msgspec.DecodeError:
        return ProtocolError(f"a message of the other end cannot be read: {error}")
    if theirs == PROTOCOL:
        return ProtocolError(f"a message of protocol {PROTOCOL} is malformed: {error}")
    return ProtocolError(
        f"the other end speaks protocol {theirs}, this one {PROTOCOL}; "
        "install the same byzerllm-core version for callers and workers",
        theirs=theirs,
        ours=PROTOCOL,
    )


def to_failure(error: BaseException, spec: DeploymentSpec) -> Failure:
    """Any exception as plain data, without the deployment's secrets."""
    if isinstance(error, asyncio.CancelledError):
        reason = str(error) or "it was cancelled"
        return Failure(code="RequestCancelledError", message=f"the request ended early: {reason}")
    if isinstance(error, ByzerLLMError):
        details = {key: redact_data(_plain(v), spec) for key, v in error.details.items()}
        return Failure(
            code=_public_name(error), message=redact(error.message, spec), details=details
        )
    trace = "".join(traceback.format_exception(error))
    return Failure(
        code=BackendError.__name__,
        message=redact(f"{type(error).__name__}: {error}", spec),
        details={"remote_traceback": redact(trace, spec)},
    )


def to_error(failure: Failure) -> ByzerLLMError:
    """The error that a failure describes; of an unknown class, the root."""
    cls = error_types().get(failure.code, ByzerLLMError)
    return cls(failure.message, **failure.details)


def kind_of(request: Request) -> RequestKind:
    """The request's kind, as pinning names it."""
    return _KINDS[type(request).__name__]


_KINDS: dict[str, RequestKind] = {
    "GenerateRequest": "chat",
    "SpeechRequest": "speech",
    "ImageRequest": "image",
    "TranscribeRequest": "transcription",
    "EmbedRequest": "embedding",
    "RerankRequest": "rerank",
    "TokenizeRequest": "tokenizer",
    "ApplyTemplateRequest": "apply_chat_template",
    "MetaRequest": "meta",
}


def _public_name(error: ByzerLLMError) -> str:
    known = error_types()
    return next(
        cls.__name__
        for cls in type(error).__mro__
        if cls.__module__ == "byzerllm.errors" and cls.__name__ in known
    )


def _plain(value: Any) -> Any:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, OverflowError):
        return repr(value)
    return value
