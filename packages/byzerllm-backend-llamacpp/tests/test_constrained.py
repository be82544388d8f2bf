"""JSON schemas and grammars."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest

from byzerllm.decoding.json_schema import SchemaCompiler, SchemaMatcher
from byzerllm.errors import BackendError, ParameterError
from byzerllm.requests import SamplingParams
from byzerllm_backend_llamacpp.sampling import LlamaSampling, Recipe, Sampler
from byzerllm_backend_llamacpp.vocabulary import read_vocabulary

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer"},
        "likes": {"type": "array", "items": {"enum": ["tea", "cake"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/Node",
}


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_a_schema_shapes_the_answer(model: Any, temperature: float) -> None:
    answer = model.ask("Describe a person.", json_schema=PERSON, temperature=temperature, seed=5)
    assert answer.finish == "stop"
    person = json.loads(answer.text)
    assert set(person) == set(PERSON["properties"])
    assert isinstance(person["age"], int)
    assert set(person["likes"]) <= {"tea", "cake"}


def test_a_schema_that_refers_to_itself(model: Any) -> None:
    """What pydantic makes of a recursive class: a reference at the root."""
    answer = model.ask("A list.", json_schema=TREE, max_tokens=30)
    node = r'\{ ?"value": ?(true|false) ?, ?"next": ?'
    assert re.match(f"{node}({node}|null)", answer.text), answer.text


def test_a_grammar_shapes_the_answer(model: Any) -> None:
    grammar = 'root ::= ("yes" | "no") ", " [0-9]{3}'
    answer = model.ask("Well?", grammar=grammar, temperature=1.5, logprobs=1)
    assert re.fullmatch(r"(yes|no), \d{3}", answer.text)
    assert answer.finish == "stop"
    assert [entry.id for entry in answer.logprobs] == answer.tokens


def test_constrained_and_free_answers_run_together(model: Any) -> None:
    import asyncio

    async def both() -> Any:
        return await asyncio.gather(
            model.gather(model.request("Describe a person.", json_schema=PERSON)),
            model.gather(model.request("Say hi.", max_tokens=10)),
            model.gather(model.request("Well?", grammar='root ::= "certainly"')),
        )

    person, free, certain = model.run(both())
    json.loads(person.text)
    assert free.text
    assert certain.text == "certainly"


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "   ",
        "garbage",
        "root ::= missing",
        'other ::= "a"',
        'root ::= root "a"',
        'root ::= "a',
        'root ::= "\0"',
        "root ::= " + "(" * 3000 + '"a"' + ")" * 3000,
        "\n".join(f'r{n} ::= "a"' for n in range(5000)),
        "#" * 1_100_000,
    ],
    ids=range(11),
)
def test_a_bad_grammar_is_refused(model: Any, grammar: str) -> None:
    with pytest.raises(ParameterError, match="grammar"):
        model.ask("Well?", grammar=grammar)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"enum": []}, "empty"),
        ({"properties": 3}, "object"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#"}, "NoExtension"),
        ({"const": "\ud800"}, "hex escape"),
        ({"const": float("nan")}, "no JSON"),
        ({"const": object()}, "no JSON"),
    ],
    ids=range(13),
)
def test_a_bad_schema_is_refused(model: Any, schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says) as got:
        model.ask("Well?", json_schema=schema)
    assert got.value.details["parameter"] == "json_schema"


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(definitions: int) -> dict[str, Any]:
    """Each definition refers to the next: small enough to write, too deep for a stack."""
    made = {
        f"L{n}": {"type": "array", "items": {"$ref": f"#/$defs/L{n + 1}"}}
        for n in range(definitions)
    }
    return {"$defs": {**made, f"L{definitions}": {"type": "null"}}, "$ref": "#/$defs/L0"}


HOSTILE = {
    "deep": _deep(50_000),
    "chain": _chain(4_000),
    "long": {"const": "x" * 1_000_000},
    "long text": {"const": "x" * 150_000},
    "many optional": {"type": "object", "properties": {f"p{n}": {} for n in range(9_000)}},
    "many names": {"enum": [f"value {n}" for n in range(20_000)]},
    "patterns": {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]},
    "repeated": {"type": "string", "pattern": "((((.{0,50}a){0,50}b){0,50}c){0,50}d){0,50}"},
    "nested groups": {"type": "string", "pattern": "(" * 5_000 + ")" * 5_000},
    "multiples": {
        "allOf": [{"type": "integer", "multipleOf": 9973}, {"type": "integer", "multipleOf": 9967}]
    },
    "digits": {"type": "integer", "multipleOf": 10**4000 + 1},
    "products": {
        "allOf": [
            {
                "anyOf": [
                    {"properties": {f"a{j}{i}": {}}, "required": [f"a{j}{i}"]} for i in range(4)
                ]
            }
            for j in range(10)
        ]
    },
    "circular": {
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}},
        "$ref": "#/$defs/a",
    },
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_schema_is_refused_soon(model: Any, schema: dict[str, Any]) -> None:
    begin = time.monotonic()
    with pytest.raises(ParameterError) as got:
        model.ask("Well?", json_schema=schema, max_tokens=200)
    assert got.value.details["parameter"] == "json_schema"
    assert len(str(got.value)) < 1000
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "schema",
    [
        _chain(100),
        _deep(40),
        {"type": "string", "maxLength": 100_000},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^(.*a){20}$"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1_000_000},
        {"enum": [f"value {n}" for n in range(5_000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(300)}},
    ],
    ids=range(8),
)
def test_a_large_schema_costs_little_per_token(model: Any, schema: dict[str, Any]) -> None:
    """Walks along a random path; what an answer costs must not hold up the others."""
    matcher = _matcher(model, schema)
    random, slowest = np.random.default_rng(3), 0.0
    for _ in range(60):
        begin = time.perf_counter()
        allowed = matcher.allowed()
        slowest = max(slowest, time.perf_counter() - begin)
        if matcher.complete:
            break
        matcher.accept(int(random.choice(np.flatnonzero(allowed))))
    assert slowest < 0.5


def test_what_does_not_go_together(model: Any) -> None:
    with pytest.raises(ParameterError, match="not both"):
        model.ask("Well?", grammar='root ::= "a"', json_schema={"type": "object"})
    with pytest.raises(ParameterError, match="ignore_eos"):
        model.ask("Well?", grammar='root ::= "a"', ignore_eos=True)


def test_a_grammar_that_leads_nowhere_fails_its_request_only(model: Any) -> None:
    """No token begins with a lone surrogate's bytes, so nothing can follow."""
    free = model.ask("Say hi.", max_tokens=5)
    with pytest.raises(BackendError, match="no token"):
        model.ask(
            "Well?",
            grammar='root ::= "a" [\\U0010FFF0-\\U0010FFFF]',
            max_tokens=20,
            logit_bias=_without_bytes(model),
        )
    assert model.ask("Say hi.", max_tokens=5).text == free.text
    model.run(model.backend.health())


def _without_bytes(model: Any) -> dict[int, float]:
    """Biases that take away every token that could begin a four-byte character."""
    loaded = model.backend._model
    return {
        token: float("-inf")
        for token in range(loaded.vocab_size)
        if loaded.piece(token)[:1] >= b"\xf0"
    }


@pytest.mark.parametrize("seed", range(4))
def test_ranges_lengths_and_patterns_are_kept(model: Any, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 18, "maximum": 21},
            "share": {"type": "number", "exclusiveMinimum": 0.25, "maximum": 0.5},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "word": {"type": "string", "minLength": 3, "maxLength": 6},
            "day": {"type": "string", "format": "date"},
            "marks": {
                "type": "array",
                "items": {"type": "integer", "minimum": -2, "maximum": 2},
                "minItems": 2,
                "maxItems": 3,
            },
            "either": {"anyOf": [{"const": "x"}, {"type": "null"}]},
        },
        "additionalProperties": False,
    }
    schema["required"] = list(schema["properties"])  # type: ignore[call-overload]
    answer = model.ask("Anything.", json_schema=schema, temperature=2, seed=seed, top_k=0, top_p=1)
    assert answer.finish == "stop"
    jsonschema.validate(json.loads(answer.text), schema, format_checker=jsonschema.FormatChecker())
    assert "  " not in answer.text.replace(json.loads(answer.text)["word"], "")


def test_formats_that_nobody_knows_mean_nothing(model: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "path", "maxLength": 9}},
        "required": ["format"],
        "const": {"format": "path"},
    }
    assert json.loads(model.ask("A path.", json_schema=schema).text) == {"format": "path"}


def test_an_answer_ends_with_its_value(model: Any) -> None:
    """Without a token for the end, so that a limit just large enough cuts nothing off."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    schema["additionalProperties"] = False
    whole = model.ask("One.", json_schema=schema)
    assert json.loads(whole.text) == {"a": 1}
    exact = model.ask("One.", json_schema=schema, max_tokens=len(whole.tokens))
    assert (exact.text, exact.finish) == (whole.text, "stop")
    assert exact.usage.completion_tokens == len(whole.tokens)
    shorter = model.ask("One.", json_schema=schema, max_tokens=len(whole.tokens) - 1)
    assert shorter.finish == "length"


def test_a_value_that_could_go_on_ends_by_an_end_token(model: Any) -> None:
    schema = {"type": "integer", "minimum": 1, "maximum": 999_999}
    for seed in range(3):
        answer = model.ask("A number.", json_schema=schema, temperature=2, seed=seed, max_tokens=9)
        assert answer.finish == "stop"
        assert 1 <= int(answer.text) < 1_000_000


def test_a_constrained_answer_can_be_cancelled(model: Any) -> None:
    async def leave() -> bool:
        request = model.request("A story.", json_schema={"type": "string", "minLength": 5000})
        async with model.chunks(request) as chunks:
            async for _ in chunks:
                break
        return bool(await model.idle())

    assert model.run(leave())


def test_draws_follow_the_distribution_over_what_is_allowed(model: Any) -> None:
    """The model's most likely token is refused here, and must take nobody's share with it."""
    loaded = model.backend._model
    schema = {"enum": [10, 20, 30, 40]}
    first = {value: loaded.tokenize(str(value))[0] for value in schema["enum"]}
    row = np.full(loaded.vocab_size, -20, np.float32)
    row[loaded.tokenize("Hello")[0]] = 9
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    row[list(first.values())] = np.log(weights)
    counts = dict.fromkeys(first.values(), 0)
    draws = 500
    compiler = model.backend._schemas
    for seed in range(draws):
        params = SamplingParams.parse({"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0})
        recipe = Recipe.of(params, LlamaSampling(), chat=True, seed=seed)
        sampler = Sampler(loaded, recipe, [], 64, compiler.matcher(schema))
        token = sampler._matching(sampler._matcher, row)
        sampler.close()
        counts[token] += 1
    found = np.array(list(counts.values())) / draws
    assert np.abs(found - weights).max() < 0.08, found


def test_bans_and_a_schema_that_leave_nothing(model: Any) -> None:
    loaded = model.backend._model
    bans = {t: float("-inf") for t in range(loaded.vocab_size) if b"t" in loaded.piece(t)}
    only_false = model.ask("True?", json_schema={"type": "boolean"}, logit_bias=bans)
    assert only_false.text == "false"
    with pytest.raises(BackendError, match="no token"):
        model.ask("True?", json_schema={"const": True}, logit_bias=bans)


def test_two_first_requests_read_the_vocabulary_once(model: Any) -> None:
    compiler = SchemaCompiler(
        lambda: read_vocabulary(model.backend._model), model.backend._model.vocab_size
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compiler.matcher, [{"type": "boolean"}] * 4))
        first = compiler._vocabulary()
    assert compiler._vocabulary() is first


def _matcher(model: Any, schema: dict[str, Any]) -> SchemaMatcher:
    matcher: SchemaMatcher = model.backend._schemas.matcher(schema)
    return matcher
