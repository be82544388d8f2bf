"""Python values as JSON, between a program and the sandbox of a generated function.

JSON's own types stand for themselves. Anything else is `{"$": NAME, "v": DATA}`: bytes, tuples,
sets, dates, decimals, and records (pydantic models and dataclasses, field by field). Reading makes
plain values and never an object of a class that the text names, so that nothing which comes out of
the sandbox can run code. The standard library alone: the child loads this without the package.
"""

from __future__ import annotations

import binascii
import math

# Type checkers take the name for true; importing typing would cost the child milliseconds.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Writer = Callable[[Any], tuple[str, Any]]

TAG = "$"
DATA = "v"
_PLAIN_INT = 2**63
_NO_CLASSES: Mapping[str, Any] = {}


class NotDataError(TypeError):
    """The value has no form as data."""


class WireError(ValueError):
    """What was received is not what `encode` writes."""


class Record(dict):  # type: ignore[type-arg]
    """The fields of an object whose class the reader does not have: keys and attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this value has no field {name!r}") from None


def encode(value: Any, by_alias: bool = False) -> Any:
    """What `json.dumps` can write and `decode` can read.

    Args:
        by_alias: name the fields of pydantic models by their aliases, as their JSON schema does.

    Raises:
        NotDataError: the value, or one inside it, is not data: a function, a generator, a file.
        RecursionError: it is nested too deeply, or holds itself.
    """
    if value is None or isinstance(value, bool):
        return value
    kind = type(value)
    if kind is str or kind is float or kind is int:
        return _encoded_plain(value)
    if kind is list:
        return [encode(item, by_alias) for item in value]
    if isinstance(value, dict) and not _is_enum(value):
        return _encoded_dict(value, by_alias)
    return _encoded_object(value, by_alias)


def is_data(value: Any) -> bool:
    """Whether `encode` takes the value."""
    try:
        encode(value)
    except (NotDataError, RecursionError):
        return False
    return True


def dumps(data: Any) -> str:
    """JSON of what `encode` returns. (The json module would cost the child 15 ms: it loads re.)"""
    kind = type(data)
    if kind is str:
        return f'"{data.translate(_ESCAPES)}"'
    if kind is list:
        return f"[{','.join([dumps(item) for item in data])}]"
    if kind is dict:
        items = [f"{dumps(key)}:{dumps(item)}" for key, item in data.items()]
        return "{" + ",".join(items) + "}"
    return _NAMES[data] if data is None or kind is bool else repr(data)


_NAMES = {None: "null", True: "true", False: "false"}
_ESCAPES = {number: f"\\u{number:04x}" for number in (*range(32), ord('"'), ord("\\"))}


def _encoded_plain(value: str | float | int) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _tagged("float", repr(value))
    # Decimal digits of a large number take quadratic time to read, hexadecimal ones do not.
    return value if -_PLAIN_INT < value < _PLAIN_INT else _tagged("int", hex(value))


def _encoded_dict(value: dict[Any, Any], by_alias: bool) -> Any:
    if all(type(key) is str for key in value) and TAG not in value:
        return {key: encode(item, by_alias) for key, item in value.items()}
    pairs = [[encode(key, by_alias), encode(item, by_alias)] for key, item in value.items()]
    return _tagged("dict", pairs)


def _encoded_object(value: Any, by_alias: bool) -> Any:
    if _is_enum(value):
        return _tagged("enum", encode(value.value, by_alias), type(value).__name__)
    for base in type(value).__mro__:
        writer = _WRITERS.get(f"{base.__module__}.{base.__qualname__}")
        if writer is not None:
            name, written = writer(value)
            return _tagged(name, encode(written, by_alias)) if name else encode(written, by_alias)
    fields = _fields(value, by_alias)
    if fields is not None:
        encoded = [[key, encode(item, by_alias)] for key, item in fields]
        return _tagged("record", encoded, type(value).__name__)
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), by_alias)
    raise NotDataError(
        f"a {type(value).__qualname__} is not data; data are numbers, text, bytes, dates, lists, "
        "tuples, sets, dicts, enums, dataclasses and pydantic models"
    )


def _fields(value: Any, by_alias: bool) -> Iterable[tuple[str, Any]] | None:
    """The fields of a pydantic model or a dataclass, or None."""
    cls = type(value)
    model = getattr(cls, "__pydantic_fields__", None)
    if isinstance(model, dict) and hasattr(cls, "model_fields"):
        extra = getattr(value, "__pydantic_extra__", None) or {}
        own = [(_field_name(name, model[name], by_alias), getattr(value, name)) for name in model]
        return [*own, *extra.items()]
    names = getattr(cls, "__dataclass_fields__", None)
    if names is None:
        return None
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def _field_name(name: str, field: Any, by_alias: bool) -> str:
    alias = getattr(field, "alias", None)
    return alias if by_alias and isinstance(alias, str) else name


def _is_enum(value: Any) -> bool:
    return hasattr(type(value), "__members__") and hasattr(value, "value")


def _base64(value: bytes | bytearray) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _tagged(name: str, data: Any, cls: str = "") -> dict[str, Any]:
    return {TAG: name, DATA: data, "class": cls} if cls else {TAG: name, DATA: data}


_WRITERS: dict[str, Writer] = {
    "builtins.str": lambda value: ("", str.__str__(value)),
    "builtins.int": lambda value: ("", int(value)),
    "builtins.float": lambda value: ("", float(value)),
    "builtins.complex": lambda value: ("complex", [value.real, value.imag]),
    "builtins.list": lambda value: ("", list(value)),
    "builtins.tuple": lambda value: ("tuple", list(value)),
    "builtins.set": lambda value: ("set", list(value)),
    "builtins.frozenset": lambda value: ("frozenset", list(value)),
    "builtins.range": lambda value: ("", list(value)),
    "builtins.dict_keys": lambda value: ("", list(value)),
    "builtins.dict_values": lambda value: ("", list(value)),
    "builtins.dict_items": lambda value: ("", list(value)),
    "builtins.bytes": lambda value: ("bytes", _base64(value)),
    "builtins.bytearray": lambda value: ("bytes", _base64(value)),
    "collections.deque": lambda value: ("", list(value)),
    "datetime.datetime": lambda value: ("datetime", value.isoformat()),
    "datetime.date": lambda value: ("date", value.isoformat()),
    "datetime.time": lambda value: ("time", value.isoformat()),
    "datetime.timedelta": lambda value: (
        "timedelta", [value.days, value.seconds, value.microseconds]
    ),
    "decimal.Decimal": lambda value: ("decimal", str(value)),
    "fractions.Fraction": lambda value: ("fraction", [value.numerator, value.denominator]),
    "uuid.UUID": lambda value: ("uuid", value.hex),
    "pathlib.PurePath": lambda value: ("path", str(value)),
}  # fmt: skip
"""By a class's full name, so that writing a value imports nothing."""


def decode(data: Any, classes: Mapping[str, Any] = _NO_CLASSES) -> Any:
    """The value that `encode` wrote.

    Args:
        classes: by name, what records and enums are made of; without one, a record is a `Record`
            and an enum its value. Only for data that is trusted.

    Raises:
        WireError: it is not `encode`'s.
    """
    try:
        return _decoded(data, classes)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise WireError(f"not a value: {type(error).__name__}: {error}") from None
    except RecursionError:
        raise WireError("not a value: it is nested too deeply") from None


def _decoded(data: Any, classes: Mapping[str, Any]) -> Any:
    if isinstance(data, list):
        return [_decoded(item, classes) for item in data]
    if not isinstance(data, dict):
        return data
    if TAG not in data:
        return {key: _decoded(item, classes) for key, item in data.items()}
    name, content = data[TAG], data[DATA]
    if name == "record":
        fields = {str(key): _decoded(item, classes) for key, item in content}
        return _rebuilt(classes.get(data["class"]), fields)
    if name == "enum":
        value = _decoded(content, classes)
        cls = classes.get(data["class"])
        return cls(value) if hasattr(cls, "__members__") and callable(cls) else value
    if name == "dict":
        return {_decoded(key, classes): _decoded(item, classes) for key, item in content}
    return _READERS[name](_decoded(content, classes))


def _rebuilt(cls: Any, fields: dict[str, Any]) -> Any:
    if isinstance(cls, type) and hasattr(cls, "model_validate"):
        return cls.model_validate(fields)
    if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
        return cls(**fields)
    return Record(fields)


def _datetime(name: str, *parts: Any) -> Any:
    import datetime

    cls = getattr(datetime, name)
    return cls(*parts) if name == "timedelta" else cls.fromisoformat(*parts)


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _fraction(parts: list[int]) -> Any:
    from fractions import Fraction

    return Fraction(*parts)


def _uuid(text: str) -> Any:
    from uuid import UUID

    return UUID(hex=text)


def _path(text: str) -> Any:
    from pathlib import PurePath

    return PurePath(text)


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda parts: complex(*parts),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": lambda text: binascii.a2b_base64(text, strict_mode=True),
    "datetime": lambda text: _datetime("datetime", text),
    "date": lambda text: _datetime("date", text),
    "time": lambda text: _datetime("time", text),
    "timedelta": lambda parts: _datetime("timedelta", *parts),
    "decimal": _decimal,
    "fraction": _fraction,
    "uuid": _uuid,
    "path": _path,
}
