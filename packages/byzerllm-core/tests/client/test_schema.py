"""Schemas of functions and classes, and arguments on their way back."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import inspect
import json
import keyword
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import given, settings
from pydantic import Field

from byzerllm.client.schema import (
    class_schema,
    describe_type,
    function_schema,
    serialize_function_to_json,
)
from byzerllm.errors import ParameterError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 1.5


class Place(pydantic.BaseModel):
    """Where something is."""

    name: str
    at: Point


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = function_schema(function).parameters["properties"]
    return found


def test_the_annotated_form() -> None:
    def compute(
        count: Annotated[int, "how many"],
        unit: Annotated[str, "of time", {"enum": ["day", "week"]}],
    ) -> list[str]:
        """Compute a range.

        Args:
            count: not used, the annotation says it
        """
        return []

    schema = function_schema(compute)
    assert schema.openai() == {
        "type": "function",
        "function": {
            "name": "compute",
            "description": "Compute a range.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["count", "unit"],
                "properties": {
                    "count": {"type": "integer", "description": "how many"},
                    "unit": {
                        "type": "string",
                        "enum": ["day", "week"],
                        "description": "of time",
                    },
                },
            },
        },
    }
    assert schema.returns == {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    "doc",
    [
        "Find.\n\nArgs:\n    city: where to look\n",
        "Find.\n\nParameters\n----------\ncity : str\n    where to look\n",
        "Find.\n\n:param city: where to look\n",
        "Find.\n\n@param city: where to look\n",
    ],
    ids=["google", "numpy", "rest", "epydoc"],
)
def test_descriptions_come_from_the_docstring(doc: str) -> None:
    def find(city: str) -> None: ...

    find.__doc__ = doc
    assert function_schema(find).description == "Find."
    assert properties(find)["city"]["description"] == "where to look"


def test_types_of_all_kinds() -> None:
    def paint(
        colour: Colour,
        place: Place,
        size: Literal["s", "m"] = "s",
        near: Optional[Point] = None,  # noqa: UP045 - what users write
        day: datetime.date = datetime.date(2024, 1, 2),
        schema: tuple[str, ...] = (),
        anything=None,  # type: ignore[no-untyped-def]
    ) -> None: ...

    schema = function_schema(paint)
    assert schema.parameters["required"] == ["colour", "place"]
    found = schema.parameters["properties"]
    assert found["size"] == {"type": "string", "enum": ["s", "m"], "default": "s"}
    assert found["day"] == {"type": "string", "format": "date", "default": "2024-01-02"}
    assert "title" not in json.dumps(schema.parameters)
    values = schema.validate(
        {"colour": "blue", "place": {"name": "n", "at": {"x": "3"}}, "day": "2024-02-03"}
    )
    assert values == {
        "colour": Colour.BLUE,
        "place": Place(name="n", at=Point(3)),
        "day": datetime.date(2024, 2, 3),
    }
    assert list(values) == ["colour", "place", "day"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"b": 1}, "a: Field required"),
        ({"a": "x"}, "a: Input should be a valid integer"),
        ({"a": 1, "c": 2}, "c: Extra inputs are not permitted"),
        ({"a": 11}, "a: Input should be less than or equal to 10"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    def f(a: Annotated[int, Field(le=10)], b: int = 0) -> None: ...

    with pytest.raises(ValueError, match=complaint):
        function_schema(f).validate(arguments)


def test_every_place_that_an_argument_may_have() -> None:
    def f(a: int, /, b: int, *rest: int, c: int = 3, **more: int) -> tuple[Any, ...]:
        return a, b, rest, c, more

    schema = function_schema(f)
    assert list(schema.parameters["properties"]) == ["a", "b", "c"]
    assert schema.parameters["additionalProperties"] is True
    arguments = schema.validate({"c": 5, "a": "1", "b": 2, "d": 4})
    assert schema.call(f, arguments) == (1, 2, (), 5, {"d": 4})


class Clock:
    def now(self, zone: str = "UTC") -> str:
        """Tell the time."""
        return f"12:00 {zone}"

    def __call__(self, zone: str) -> str:
        return self.now(zone)

    @classmethod
    def named(cls, zone: str) -> str:
        return zone


def test_methods_callables_and_classes_are_tools_too() -> None:
    for tool, name in (
        (Clock().now, "now"),
        (Clock(), "Clock"),
        (Clock.named, "named"),
    ):
        schema = function_schema(tool)
        assert (schema.name, list(schema.parameters["properties"])) == (name, ["zone"])
    assert function_schema(Place).call(Place, {"name": "n", "at": Point(1)}) == Place(
        name="n", at=Point(1)
    )
    assert properties(Point)["y"] == {"type": "number", "default": 1.5}


def test_types_of_the_enclosing_function() -> None:
    class Local(pydantic.BaseModel):
        x: int

    def f(a: Local) -> Local:
        return Local(x=a.x)

    assert function_schema(f).validate({"a": {"x": 1}}) == {"a": Local(x=1)}


def test_bound_parameters_are_hidden() -> None:
    def f(a: int, key: str) -> None: ...

    assert list(function_schema(f, ["key"]).parameters["properties"]) == ["a"]
    assert list(function_schema(f).parameters["properties"]) == ["a", "key"]


@pytest.mark.parametrize(
    ("tool", "complaint"),
    [
        (lambda a: a, "a tool needs a name"),
        (3, "a tool is a function"),
        (functools.partial(print), "a tool needs a name"),
    ],
)
def test_what_is_no_tool(tool: Any, complaint: str) -> None:
    with pytest.raises(ParameterError, match=complaint):
        function_schema(tool)


def test_types_without_a_schema_are_named() -> None:
    def f(a: inspect.Signature) -> None: ...

    def g(a: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821, UP037

    with pytest.raises(ParameterError, match="tool 'f': a parameter has a type without"):
        function_schema(f)
    with pytest.raises(ParameterError, match="Nowhere"):
        function_schema(g)


def test_a_schema_is_made_once() -> None:
    def f(a: int) -> None: ...

    clock = Clock()
    assert function_schema(f) is function_schema(f)
    assert function_schema(clock.now) is function_schema(clock.now)
    assert function_schema(Clock.now) is not function_schema(clock.now)
    assert class_schema(list[Place]) is class_schema(list[Place])


def test_serialised_for_a_prompt() -> None:
    def now(zone: Annotated[str, "时区"] = "UTC") -> str:
        """当前时间"""
        return zone

    assert json.loads(serialize_function_to_json(now)) == {
        "name": "now",
        "description": "当前时间",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"zone": {"type": "string", "default": "UTC", "description": "时区"}},
        },
        "returns": {"type": "string"},
    }
    assert "当前时间" in serialize_function_to_json(now)


def test_types_as_one_writes_them() -> None:
    assert [describe_type(t) for t in (int, Place, list[int], int | None, None)] == [
        "int",
        "Place",
        "list[int]",
        "int | None",
        "None",
    ]


TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(10**9), 10**9)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (str, st.text(max_size=20)),
    (Colour, st.sampled_from(Colour)),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (datetime.date, st.dates()),
    (list[int], st.lists(st.integers(), max_size=3)),
    (dict[str, bool], st.dictionaries(st.text(max_size=5), st.booleans(), max_size=3)),
    (Point, st.builds(Point, st.integers(), st.floats(-1, 1))),
    (Place, st.builds(Place, name=st.text(max_size=5), at=st.builds(Point, st.integers()))),
    (int | None, st.none() | st.integers()),
    (tuple[int, str], st.tuples(st.integers(), st.text(max_size=3))),
]
NAMES = st.text("abcdefgh_", min_size=1, max_size=6).filter(
    lambda name: not keyword.iskeyword(name)
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_signatures_round_trip(data: st.DataObject) -> None:
    """Arguments, as JSON that fits the schema, come back as they were."""
    names = data.draw(st.lists(NAMES, unique=True, max_size=5))
    chosen = [data.draw(st.sampled_from(TYPES)) for _ in names]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=type_)
        for name, (type_, _) in zip(names, chosen, strict=True)
    ]

    def function(**given: Any) -> dict[str, Any]:
        return given

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    schema = function_schema(function)
    assert list(schema.parameters["properties"]) == names
    values = {name: data.draw(strategy) for name, (_, strategy) in zip(names, chosen, strict=True)}
    wire = json.loads(pydantic.TypeAdapter(dict[str, Any]).dump_json(values))
    assert schema.call(function, schema.validate(wire)) == values
