"""JSON schemas of functions and of answer types, made once for each.

A function's schema comes from its signature: types, `Annotated[type, "text", {"enum": […]}]`,
`Literal`, enums, defaults, dataclasses and pydantic models; what the annotations do not say is
taken from the docstring (Google, NumPy, reST or Epydoc style).

Source: JSON Schema 2020-12 as pydantic writes it; tools in the shape of OpenAI's chat completions.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import docstring_parser
import pydantic
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from byzerllm.errors import ParameterError

_KEPT_TYPES = 512


class _Generator(GenerateJsonSchema):
    """pydantic's own, silent about defaults that JSON cannot hold: they are left out."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}  # noqa: RUF012


@dataclass(frozen=True)
class FunctionSchema:
    """What a model must know of a function to call it.

    Attributes:
        name, description: as the model reads them.
        parameters: JSON schema of the arguments, an object.
        returns: JSON schema of the result, empty when the annotation is missing.
        signature: the function's.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    returns: dict[str, Any]
    signature: inspect.Signature
    _model: type[pydantic.BaseModel] | None

    def openai(self) -> dict[str, Any]:
        """The tool in OpenAI's shape."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments in the types of the signature; those not given are left out.

        Raises:
            ValueError: an argument is unknown, missing or of the wrong type; says which.
        """
        if self._model is None:
            return dict(arguments)
        try:
            checked = self._model.model_validate(dict(arguments))
        except pydantic.ValidationError as error:
            raise ValueError(explain(error)) from None
        values = {
            info.alias or field: getattr(checked, field)
            for field, info in self._model.model_fields.items()
            if field in checked.model_fields_set
        }
        return {**values, **(checked.model_extra or {})}

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call with validated arguments, each in the place that the signature has for it."""
        values = dict(arguments)
        positional = [
            values.pop(name)
            for name, parameter in self.signature.parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and name in values
        ]
        return function(*positional, **values)


def explain(error: pydantic.ValidationError) -> str:
    """pydantic's complaints on one line, without the values, which may be long or secret."""
    lines = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        lines.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(lines)


def function_schema(function: Callable[..., Any], bound: Sequence[str] = ()) -> FunctionSchema:
    """The schema of a function, method, dataclass, pydantic model or other callable.

    Args:
        bound: parameters that the caller fills in, hidden from the model.

    Raises:
        ParameterError: it has no name or signature, or a type without a JSON schema.
    """
    if not callable(function):
        raise ParameterError(
            f"a tool is a function, or a dict in OpenAI's shape (got {type(function).__name__})"
        )
    # A bound method is another object each time, its function is not.
    home = getattr(function, "__func__", function)
    key = (home is not function, tuple(bound))
    try:
        known = _known.setdefault(home, {})
    except TypeError:
        known = {}
    if key not in known:
        known[key] = _function_schema(function, frozenset(bound))
    return known[key]


_known: weakref.WeakKeyDictionary[Any, dict[Any, FunctionSchema]] = weakref.WeakKeyDictionary()


def _function_schema(function: Callable[..., Any], bound: frozenset[str]) -> FunctionSchema:
    name = _name(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ParameterError(f"tool {name!r} has no signature that can be read") from None
    hints = type_hints(function, name)
    docs = docstring_parser.parse(inspect.getdoc(function) or "")
    said = {item.arg_name: item.description or "" for item in docs.params}
    fields: dict[str, Any] = {}
    extra: Literal["forbid", "allow"] = "forbid"
    for parameter in signature.parameters.values():
        if parameter.name in bound or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
            continue
        # Numbered: a parameter may be called like a method of pydantic's models.
        fields[f"p{len(fields)}"] = _field(parameter, hints, said.get(parameter.name, ""))
    try:
        model = pydantic.create_model(
            name,
            __config__=pydantic.ConfigDict(extra=extra, arbitrary_types_allowed=False),
            **fields,
        )
        parameters = _tidy(model.model_json_schema(schema_generator=_Generator))
    except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(
            f"tool {name!r}: a parameter has a type without a JSON schema: {reason}", parameter=name
        ) from None
    parameters.pop("description", None)
    parameters.setdefault("properties", {})
    return FunctionSchema(
        name=name,
        description=(docs.description or "").strip(),
        parameters=parameters,
        returns=_returns(hints.get("return", Any)),
        signature=signature,
        _model=model,
    )


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    if not name.isidentifier() or name == "partial":
        raise ParameterError(
            f"a tool needs a name that a model can call (got {name!r}); write it as a function"
        )
    return str(name)


def type_hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The annotations of a callable by name, `return` too, with what `Annotated` says.

    Raises:
        ParameterError: an annotation names something that does not exist; `name` is what the
            error calls the callable.
    """
    target: Any = function
    if inspect.isclass(function):
        target = function.__init__
        if issubclass(function, pydantic.BaseModel):
            return {
                field: Annotated[info.annotation, info] if info.metadata or info.description
                else info.annotation
                for field, info in function.model_fields.items()
            }  # fmt: skip
    elif isinstance(function, functools.partial):
        target = function.func
    elif not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        target = type(function).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        # Types of the enclosing function are known by the closure only.
        scope = inspect.getclosurevars(inspect.unwrap(target)).nonlocals
        try:
            return typing.get_type_hints(target, localns=dict(scope), include_extras=True)
        except NameError:
            raise ParameterError(f"tool {name!r}: {error} in an annotation") from None
    except TypeError:
        return {}


def _field(
    parameter: inspect.Parameter, hints: Mapping[str, Any], described: str
) -> tuple[Any, Any]:
    annotation = hints.get(parameter.name, Any)
    text, enum, annotation = _annotated(annotation)
    if enum is not None:
        annotation = _narrowed(annotation, enum)
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    if isinstance(default, FieldInfo):
        return annotation, default
    options: dict[str, Any] = {"alias": parameter.name}
    if text or described:
        options["description"] = text or described
    return annotation, pydantic.Field(default, **options)


def _annotated(annotation: Any) -> tuple[str, list[Any] | None, Any]:
    """The seed's `Annotated[type, "text", {"enum": […]}]`: the text, the values, the rest."""
    if get_origin(annotation) is not Annotated:
        return "", None, annotation
    base, *notes = get_args(annotation)
    text = next((note for note in notes if isinstance(note, str)), "")
    hints = [note for note in notes if isinstance(note, dict)]
    enum = next((list(note["enum"]) for note in hints if "enum" in note), None)
    text = text or next((str(note["description"]) for note in hints if "description" in note), "")
    kept = [note for note in notes if not isinstance(note, str | dict)]
    return text, enum, Annotated[(base, *kept)] if kept else base


def _narrowed(annotation: Any, enum: list[Any]) -> Any:
    """The type with its values narrowed to those of the enum, where `Literal` can hold them."""
    literal = all(isinstance(value, str | int | bool | None) for value in enum)
    if not literal or get_origin(annotation) in (list, set, tuple, frozenset):
        return annotation
    values: Any = Literal[tuple(enum)]
    return values | None if type(None) in get_args(annotation) else values


def _returns(annotation: Any) -> dict[str, Any]:
    if annotation is Any or annotation is None or annotation is type(None):
        return {}
    try:
        return dict(class_schema(_annotated(annotation)[2]))
    except ParameterError:
        return {}


def type_adapter(response_class: Any) -> pydantic.TypeAdapter[Any]:
    """pydantic's adapter of a class or any other type.

    Raises:
        ParameterError: pydantic cannot handle it.
    """
    try:
        return _type_adapter(response_class)
    except TypeError:
        return _new_adapter(response_class)


def _new_adapter(response_class: Any) -> pydantic.TypeAdapter[Any]:
    try:
        return pydantic.TypeAdapter(response_class)
    except (pydantic.errors.PydanticUserError, NameError) as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(
            f"response_class {response_class!r} is no type that pydantic can check: {reason}"
        ) from None


_type_adapter = functools.lru_cache(maxsize=_KEPT_TYPES)(_new_adapter)


def class_schema(response_class: Any) -> dict[str, Any]:
    """The JSON schema of a class or any other type; made once, do not change it."""
    try:
        return _class_schema(response_class)
    except TypeError:
        return _new_schema(response_class)


def _new_schema(response_class: Any) -> dict[str, Any]:
    adapter = type_adapter(response_class)
    try:
        return _tidy(adapter.json_schema(schema_generator=_Generator))
    except pydantic.errors.PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(f"response_class {response_class!r}: {reason}") from None


_class_schema = functools.lru_cache(maxsize=_KEPT_TYPES)(_new_schema)


def _tidy(schema: JsonSchemaValue) -> dict[str, Any]:
    """Without pydantic's titles, which say nothing that the names do not."""

    def walk(node: Any, named: bool) -> Any:
        if isinstance(node, list):
            return [walk(item, False) for item in node]
        if not isinstance(node, dict):
            return node
        return {
            key: walk(value, key in ("properties", "$defs", "patternProperties") and not named)
            for key, value in node.items()
            if named or key != "title" or not isinstance(value, str)
        }

    tidied: dict[str, Any] = walk(schema, False)
    return tidied


def serialize_function_to_json(func: Callable[..., Any] | str) -> str:
    """A function as JSON text for a prompt: name, description, parameters, returns."""
    if isinstance(func, str):
        return func
    schema = function_schema(func)
    described = {
        "name": schema.name,
        "description": schema.description,
        "parameters": schema.parameters,
        "returns": schema.returns,
    }
    return json.dumps(described, ensure_ascii=False)


def describe_type(annotation: Any) -> str:
    """A type as a Python programmer writes it: `list[str]`, `Story`, `int | None`."""
    if annotation is None or annotation is type(None):
        return "None"
    if inspect.isclass(annotation) and get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "")
