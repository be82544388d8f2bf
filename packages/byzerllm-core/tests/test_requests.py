from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from byzerllm.errors import ParameterError
from byzerllm.requests import (
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    MetaRequest,
    ModelMeta,
    Request,
    Result,
    SamplingParams,
    TokenizeRequest,
    TokenLogprob,
    Usage,
    generation_names,
)


@pytest.mark.parametrize("prefix", ["", "gen.", "generation."])
@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"temperature": 1}, "temperature", 1.0),
        ({"temperature": "0.1"}, "temperature", 0.1),
        ({"top_p": "1"}, "top_p", 1.0),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": "5"}, "max_tokens", 5),
        ({"max_length": 5}, "max_tokens", 5),
        ({"max_new_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 5}, "max_tokens", 5),
        ({"repeat_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"random_seed": 7}, "seed", 7),
        ({"stop": "END"}, "stop", ["END"]),
        ({"stop": ["a", "b"]}, "stop", ["a", "b"]),
        ({"stop": ("a", "b")}, "stop", ["a", "b"]),
        ({"stop_sequences": ["a"]}, "stop", ["a"]),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids", [1, 2]),
        ({"stop_token_ids": (151643, 151645)}, "stop_token_ids", [151643, 151645]),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"logprobs": 5}, "logprobs", 5),
        ({"ignore_eos": "true"}, "ignore_eos", True),
        ({"logit_bias": {"12": -100}}, "logit_bias", {12: -100.0}),
        ({"json_schema": {"type": "object"}}, "json_schema", {"type": "object"}),
    ],
)
def test_spellings(prefix: str, given: dict[str, Any], name: str, value: Any) -> None:
    params = SamplingParams.parse({f"{prefix}{key}": v for key, v in given.items()})
    assert getattr(params, name) == value
    assert params == SamplingParams(**{name: value})


def test_later_layers_win() -> None:
    params = SamplingParams.parse(
        {"stop": ["a"], "temperature": 0.1, "x.y": 1},
        {"gen.temperature": 0.2, "max_length": 3, "gen.x.y": 2},
        {"max_tokens": 4, "temperature": None},
    )
    assert params == SamplingParams(stop=["a"], temperature=0.2, max_tokens=4, extra={"x.y": 2})


def test_nothing_is_one_shared_default() -> None:
    assert SamplingParams.parse() is SamplingParams.parse({}, {}) is SamplingParams.parse({})
    assert SamplingParams.parse() == SamplingParams()


def test_the_callers_values_stay() -> None:
    stop, schema = ["a"], {"type": "object"}
    given = {"stop": stop, "json_schema": schema, "mirostat": {"tau": 5}}
    SamplingParams.parse(given)
    assert given == {"stop": ["a"], "json_schema": {"type": "object"}, "mirostat": {"tau": 5}}


def test_unknown_names_are_left_to_the_worker() -> None:
    params = SamplingParams.parse({"gen.mirostat": 2, "enable_search": True, "top_k": 3})
    assert params.extra == {"mirostat": 2, "enable_search": True}
    assert params.top_k == 3
    assert SamplingParams.parse({"extra": {"a": 1}}).extra == {"extra": {"a": 1}}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"frequency_penalty": "-inf"}, "frequency_penalty"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"max_length": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_wrong_values_are_named(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams.parse({"top_k": 1}, given)
    assert caught.value.parameter == name
    assert str(caught.value).startswith(f"parameter {name!r} for generation: ")
    assert "(got " in str(caught.value)


def test_names() -> None:
    assert generation_names() >= {"max_tokens", "temperature", "stop", "grammar"}
    assert "extra" not in generation_names()


REQUESTS = [
    GenerateRequest(
        id="1",
        messages=[{"role": "user", "content": [{"type": "text", "text": "你好"}]}],
        sampling=SamplingParams(max_tokens=3, logit_bias={7: -1.0}, extra={"a": 1}),
        stream=True,
        extra={"user": "x"},
    ),
    GenerateRequest(id="2", prompt=""),
    EmbedRequest(id="3", texts=["a"]),
    TokenizeRequest(id="4", text=""),
    MetaRequest(id="5"),
]
RESULTS = [
    GenerateResult(
        text="hi",
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=2),
        logprobs=[TokenLogprob(token="h", id=1, logprob=-0.1, top=[("h", 1, -0.1)])],
    ),
    ModelMeta(model_deploy_type="proprietary", backend="llama_cpp"),
]


@pytest.mark.parametrize(
    ("thing", "kind"),
    [*((one, Request) for one in REQUESTS), *((one, Result) for one in RESULTS)],
)
def test_they_cross_the_wire_and_pickle(thing: Any, kind: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(thing), type=kind) == thing
    assert msgspec.json.decode(msgspec.json.encode(thing), type=kind) == thing
    assert pickle.loads(pickle.dumps(thing)) == thing


def test_fields_of_a_newer_peer_are_ignored() -> None:
    raw = msgspec.to_builtins(GenerateRequest(id="1", prompt="x"))
    raw["sampling"] = {"max_tokens": 2, "a_new_one": 1}
    raw["another"] = True
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=Request)
    assert found == GenerateRequest(id="1", prompt="x", sampling=SamplingParams(max_tokens=2))


def test_defaults_are_not_shared() -> None:
    one, two = GenerateRequest(id="1"), GenerateRequest(id="2")
    one.extra["a"] = 1
    assert two.extra == {}
    chunk = GenerateChunk()
    chunk.token_ids.append(1)
    assert GenerateChunk().token_ids == []
    # This one is shared by every request without parameters: nobody may write into it.
    assert SamplingParams().extra == {}


def test_a_chunk_costs_few_bytes() -> None:
    assert len(msgspec.msgpack.encode(GenerateChunk(text="hello", token_ids=[12345]))) < 50
