"""Random pydantic models: their schemas let valid instances through and nothing else."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import Field

from byzerllm.client.schema import class_schema

pytestmark = pytest.mark.model


# The model has no tokens for the bytes that begin characters of the higher planes; llguidance takes
# DEL for a control character.
CHARACTERS = st.characters(codec="utf-8", max_codepoint=0xFFFF, exclude_characters="\x7f")


@dataclass(frozen=True)
class Kind:
    """A type, JSON values that it takes, and JSON values that it refuses."""

    annotation: Any
    valid: st.SearchStrategy[Any]
    invalid: st.SearchStrategy[Any]


@st.composite
def integers(draw: st.DrawFn) -> Kind:
    low, high = sorted((draw(st.integers(-2000, 2000)), draw(st.integers(-2000, 2000))))
    return Kind(
        Annotated[int, Field(ge=low, le=high)],
        st.integers(low, high),
        st.sampled_from([low - 1, high + 1, high + 12_345, low + 0.5, "1", True, None]),
    )


@st.composite
def numbers(draw: st.DrawFn) -> Kind:
    """In hundredths, whole ones without a point: how llguidance writes bounded numbers."""
    low, high = sorted((draw(st.integers(-9999, 9999)), draw(st.integers(-9999, 9999))))
    return Kind(
        Annotated[float, Field(ge=low / 100, le=high / 100)],
        st.integers(low, high).map(lambda value: value / 100 if value % 100 else value // 100),
        st.sampled_from([low / 100 - 0.01, high / 100 + 0.01, high / 100 + 1000, "1", False]),
    )


@st.composite
def texts(draw: st.DrawFn) -> Kind:
    low = draw(st.integers(0, 5))
    high = low + draw(st.integers(0, 10))
    refused = [0, None, "x" * (high + 1), "é" * (high + 3)] + (["y" * (low - 1)] if low else [])
    return Kind(
        Annotated[str, Field(min_length=low, max_length=high)],
        st.text(CHARACTERS, min_size=low, max_size=high),
        st.sampled_from(refused),
    )


@st.composite
def choices(draw: st.DrawFn) -> Kind:
    one = st.text(CHARACTERS, max_size=5) | st.integers(0, 99)
    values = draw(st.lists(one, min_size=1, max_size=4, unique_by=str))
    return Kind(Literal[*values], st.sampled_from(values), st.sampled_from(["other", 100, None]))


PLAIN = st.one_of(
    integers(),
    numbers(),
    texts(),
    choices(),
    st.just(Kind(bool, st.booleans(), st.sampled_from([0, "true", None]))),
    st.just(
        Kind(
            Annotated[str, Field(pattern="^[a-c]{2}-[0-9]{1,3}$")],
            st.from_regex("[a-c]{2}-[0-9]{1,3}", fullmatch=True),
            st.sampled_from(["ab-", "ad-1", "ab-1234", "xab-1", ""]),
        )
    ),
    st.just(
        Kind(
            datetime.date,
            st.dates(datetime.date(1900, 1, 1)).map(str),
            st.sampled_from(["2001-02-30", "2001-13-01", "today", 20010101]),
        )
    ),
)


def _list_of(inner: Kind, low: int, more: int) -> Kind:
    high = low + more

    def spoilt(values: list[Any]) -> st.SearchStrategy[Any]:
        one = inner.invalid.map(lambda bad: [*values[:-1], bad])
        return one if values else st.just("[]")

    lists = st.lists(inner.valid, min_size=low, max_size=high)
    long = st.lists(inner.valid, min_size=high + 1, max_size=high + 1)
    return Kind(
        Annotated[list[inner.annotation], Field(min_length=low, max_length=high)],  # type: ignore[name-defined]
        lists,
        st.one_of(lists.flatmap(spoilt), long, st.just({})),
    )


def _optional(inner: Kind) -> Kind:
    refused = inner.invalid.filter(lambda value: value is not None)
    return Kind(inner.annotation | None, st.none() | inner.valid, refused)


def _object(fields: list[Kind]) -> Kind:
    names = [f"f{index}" for index in range(len(fields))]
    model = pydantic.create_model(
        "Made",
        __config__=pydantic.ConfigDict(extra="forbid"),
        **{name: kind.annotation for name, kind in zip(names, fields, strict=True)},
    )
    kinds = dict(zip(names, fields, strict=True))
    # In the order of the schema, which is the one that is written.
    valid = st.tuples(*(kind.valid for kind in fields)).map(
        lambda values: dict(zip(names, values, strict=True))
    )

    def spoilt(instance: dict[str, Any]) -> st.SearchStrategy[Any]:
        return st.sampled_from(names).flatmap(
            lambda name: st.one_of(
                kinds[name].invalid.map(lambda bad: {**instance, name: bad}),
                st.just({key: value for key, value in instance.items() if key != name}),
                st.just({**instance, "unknown": 1}),
            )
        )

    return Kind(model, valid, valid.flatmap(spoilt))


KINDS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds(_list_of, inner, st.integers(0, 2), st.integers(0, 3)),
        st.builds(_optional, inner),
        st.builds(_object, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)
OBJECTS = st.builds(_object, st.lists(KINDS, min_size=1, max_size=4))


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.fixture(scope="module")
def tokens(model: Any) -> dict[bytes, int]:
    loaded = model.backend._model
    return {loaded.piece(token): token for token in range(loaded.vocab_size)}


class Writer:
    """Writes given texts token by token, as far as a schema lets it."""

    def __init__(self, model: Any, tokens: dict[bytes, int], schema: dict[str, Any]) -> None:
        self.schemas, self.end = model.backend._schemas, model.backend._model.eos
        self.tokens, self.schema = tokens, schema

    def takes(self, text: str) -> bool:
        """Whether all of `text` can be written, and the answer ended behind it."""
        matcher, left = self.schemas.matcher(self.schema), text.encode()
        while left:
            allowed = matcher.allowed()
            pieces = (left[:length] for length in range(min(16, len(left)), 0, -1))
            found = (piece for piece in pieces if allowed[self.tokens.get(piece, self.end)])
            piece = next((piece for piece in found if piece in self.tokens), None)
            if piece is None:
                return False
            matcher.accept(self.tokens[piece])
            left = left[len(piece) :]
        return bool(matcher.allowed()[self.end])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_valid_instances_pass_and_damaged_ones_do_not(
    model: Any, tokens: dict[bytes, int], data: st.DataObject
) -> None:
    kind = data.draw(OBJECTS)
    writer = Writer(model, tokens, class_schema(kind.annotation))
    valid = data.draw(kind.valid)
    kind.annotation.model_validate(valid)
    text = _compact(valid)
    assert writer.takes(text), (writer.schema, text)
    assert writer.takes(json.dumps(valid, ensure_ascii=False)), (writer.schema, text)

    damaged = data.draw(kind.invalid)
    with pytest.raises(pydantic.ValidationError):
        kind.annotation.model_validate_json(json.dumps(damaged), strict=True)
    assert not writer.takes(_compact(damaged)), (writer.schema, damaged)

    cut = data.draw(st.integers(0, len(text) - 1))
    assert not writer.takes(text[:cut]), (writer.schema, text[:cut])
    assert not writer.takes(text + data.draw(st.sampled_from(["}", " ", "\n", "x"])))
