"""What crosses processes, and what becomes of errors on the way."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import msgspec
import pytest

from byzerllm import errors
from byzerllm.errors import BackendError, ByzerLLMError, ParameterError, ProtocolError
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    EmbedRequest,
    EmbedResult,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    ImageRequest,
    ImageResult,
    MetaRequest,
    ModelMeta,
    Request,
    RequestKind,
    RerankRequest,
    RerankResult,
    Result,
    SamplingParams,
    SpeechRequest,
    SpeechResult,
    TokenizeRequest,
    TokenizeResult,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TranscribeRequest,
    TranscribeResult,
    Usage,
)
from byzerllm.runtime.deployment import MASK, DeploymentSpec
from byzerllm.runtime.wire import (
    PROTOCOL,
    Cancel,
    Failure,
    decode_calls,
    decode_replies,
    encode_calls,
    encode_replies,
    kind_of,
    to_error,
    to_failure,
)

SPEC = DeploymentSpec(model="m", infer_params={"saas.api_key": "sk-hidden", "saas.model": "open"})
SAMPLING = SamplingParams.parse({"max_length": 5, "gen.top_p": 0.5, "stop": "x", "custom": [1]})
REQUESTS: list[Request] = [
    GenerateRequest(
        id="1", messages=[{"role": "user", "content": "你好"}], sampling=SAMPLING, stream=True
    ),
    GenerateRequest(id="2", prompt="p", extra={"deep": {"er": [None, True, 1.5]}}),
    GenerateRequest(id="7", messages=[], tools=[{"type": "function"}], tool_choice="required"),
    SpeechRequest(id="8", text="你好", voice="v", format="wav", speed=1.5, stream=True),
    ImageRequest(id="9", prompt="a cat", n=2, size="64x64"),
    TranscribeRequest(id="10", audio=b"\x00\xff", language="en"),
    EmbedRequest(id="3", texts=["a", ""], dimensions=8),
    RerankRequest(id="11", pairs=[("q", "d")]),
    TokenizeRequest(id="4", text="t"),
    ApplyTemplateRequest(id="5", messages=[]),
    MetaRequest(id="6"),
]
USAGE = Usage(prompt_tokens=1, completion_tokens=2)
CALL = ToolCall(id="c", name="f", arguments="{}")
LOGPROB = TokenLogprob(token="a", id=1, logprob=-0.5, top=[("b", 2, -1.5)])
RESULTS: list[GenerateChunk | Result | Failure] = [
    GenerateChunk(text="你", token_ids=[1, 2], logprobs=[LOGPROB]),
    GenerateChunk(finish_reason="length", usage=USAGE, elapsed=1.5, first_token=0.5),
    GenerateChunk(tool_calls=[ToolCallDelta(index=1, name="f", arguments='{"a"')], audio=b"\xff"),
    GenerateResult(text="t", finish_reason="stop", usage=USAGE, reasoning="hm"),
    GenerateResult(text="", finish_reason="tool_calls", usage=USAGE, tool_calls=[CALL]),
    SpeechResult(audio=b"\x00", format="wav", usage=USAGE),
    ImageResult(images=[b"\x89PNG"], revised_prompt="a white cat"),
    TranscribeResult(text="t", segments=[{"start": 0.0, "end": 1.5, "text": "t"}]),
    EmbedResult(vectors=[[0.1, -2.0]], usage=USAGE),
    RerankResult(scores=[0.5, -8.25], usage=USAGE),
    TokenizeResult(token_ids=[7]),
    ApplyTemplateResult(text="<>"),
    ModelMeta(model_deploy_type="saas", backend="saas", max_model_len=None, constrained=True),
    Failure(code="OverloadedError", message="full", details={"retry_after": 0.5}),
]


def test_every_request_crosses_unchanged() -> None:
    assert {type(request) for request in REQUESTS} == set(get_args(Request))
    items: list[tuple[int, Request | Cancel]] = [*enumerate(REQUESTS), (9, Cancel())]
    assert decode_calls(encode_calls(items)) == items


def test_every_reply_crosses_unchanged() -> None:
    assert {type(result) for result in RESULTS} >= set(get_args(Result))
    batch = decode_replies(encode_replies(3, list(enumerate(RESULTS))))
    assert (batch.protocol, batch.version) == (PROTOCOL, 3)
    assert batch.items == list(enumerate(RESULTS))


def test_kinds_are_those_of_pinning() -> None:
    assert {kind_of(request) for request in REQUESTS} == set(get_args(RequestKind))


def test_unknown_fields_are_ignored() -> None:
    raw = [PROTOCOL, [[1, {"type": "meta", "id": "x", "added_later": {"a": 1}}]], "added", "later"]
    assert decode_calls(msgspec.msgpack.encode(raw)) == [(1, MetaRequest(id="x"))]
    chunk = {"type": "chunk", "text": "t", "added_later": 5}
    batch = decode_replies(msgspec.msgpack.encode([PROTOCOL, 1, [[2, chunk]], "added"]))
    assert batch.items == [(2, GenerateChunk(text="t"))]


@pytest.mark.parametrize("rest", [[[]], [1, []], ["another", {"shape": 1}]])
@pytest.mark.parametrize("decode", [decode_calls, decode_replies])
def test_another_protocol_is_named(decode: Any, rest: list[Any]) -> None:
    with pytest.raises(ProtocolError, match=f"speaks protocol {PROTOCOL + 1}, this one") as got:
        decode(msgspec.msgpack.encode([PROTOCOL + 1, *rest]))
    assert (got.value.theirs, got.value.ours) == (PROTOCOL + 1, PROTOCOL)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read"),
        (b"\xff\x00nonsense", "cannot be read"),
        (msgspec.msgpack.encode({"a": 1}), "cannot be read"),
        (msgspec.msgpack.encode([PROTOCOL, 1, [[1, {"type": "no such"}]]]), "malformed"),
    ],
)
@pytest.mark.parametrize("decode", [decode_calls, decode_replies])
def test_what_is_no_message(decode: Any, data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode(data)


def test_what_is_no_plain_data_is_refused_by_the_caller() -> None:
    request = GenerateRequest(id="1", prompt="p", extra={"what": object()})
    with pytest.raises(ParameterError, match="not plain data"):
        encode_calls([(1, request)])


def test_own_errors_keep_class_message_and_details() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)("what was wrong", retry_after=1.5, text="so far")
        again = to_error(to_failure(error, SPEC))
        assert type(again) is type(error)
        assert (again.message, again.details) == (error.message, error.details)


def test_foreign_errors_become_backend_errors() -> None:
    try:
        {}["missing"]
    except KeyError as error:
        failure = to_failure(error, SPEC)
    again = to_error(failure)
    assert type(again) is BackendError
    assert again.message == "KeyError: 'missing'"
    assert "test_wire.py" in again.remote_traceback


def test_a_plugin_s_own_class_becomes_the_nearest_of_ours() -> None:
    class QuotaError(ParameterError):
        """As a vendor's plugin has it."""

    failure = to_failure(QuotaError("too much", quota=5), SPEC)
    again = to_error(failure)
    assert type(again) is ParameterError
    assert again.quota == 5


def test_an_unknown_class_is_the_root() -> None:
    error = to_error(Failure(code="ErrorOfTheFuture", message="new", details={"a": 1}))
    assert type(error) is ByzerLLMError
    assert error.a == 1


def test_cancelled() -> None:
    for error, says in (
        (asyncio.CancelledError(), "it was cancelled"),
        (asyncio.CancelledError("it was aborted"), "it was aborted"),
    ):
        failure = to_failure(error, SPEC)
        assert failure.code == "RequestCancelledError"
        assert says in failure.message


def test_details_that_are_no_plain_data_are_shown() -> None:
    failure = to_failure(BackendError("x", thing={1j}), SPEC)
    assert failure.details == {"thing": "{1j}"}
    assert decode_replies(encode_replies(1, [(1, failure)])).items == [(1, failure)]


def test_secrets_are_cut_out() -> None:
    for error in (BackendError("refused sk-hidden"), ValueError("bad key sk-hidden")):
        failure = to_failure(error, SPEC)
        assert "sk-hidden" not in str(failure)
        assert MASK in failure.message


@pytest.mark.parametrize(
    "details",
    [
        {"text": "a key sk-hidden"},
        {"remote_traceback": "line 1\nkey = 'sk-hidden'"},
        {"nested": {"list": ["sk-hidden"]}},
    ],
)
def test_secrets_are_cut_out_of_details(details: dict[str, Any]) -> None:
    assert "sk-hidden" not in str(to_failure(BackendError("x", **details), SPEC))
