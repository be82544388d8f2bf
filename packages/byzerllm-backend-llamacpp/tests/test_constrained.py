"""JSON schemas and grammars."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from byzerllm.errors import BackendError, ParameterError
from byzerllm_backend_llamacpp.grammar import grammar_text

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
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema"},
        {"type": "string", "maxLength": 100_000},
        {"enum": []},
        {"properties": 3},
    ],
    ids=range(6),
)
def test_a_bad_schema_is_refused(model: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"json_schema|grammar"):
        model.ask("Well?", json_schema=schema)


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


def test_no_constraint_is_no_grammar() -> None:
    assert grammar_text(None, None) is None
    assert grammar_text(None, "root ::= [a]") == "root ::= [a]"
    assert "root ::=" in str(grammar_text({"type": "boolean"}, None))
