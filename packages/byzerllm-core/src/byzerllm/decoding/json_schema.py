"""JSON schemas for constrained decoding: which tokens may follow, by llguidance.

llguidance: https://github.com/guidance-ai/llguidance. It parses the answer byte by byte beside the
model, so number ranges, lengths, patterns, formats and references are kept exactly.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from byzerllm.errors import BackendError, ParameterError
from byzerllm.requests import SamplingParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

Flags = npt.NDArray[np.bool_]

# At most one blank after a comma and a colon, none elsewhere: models write either style, and a
# small one that may write as many blanks as it likes does so until its token limit.
_LAYOUT: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}

# What one request may cost the others: a second to compile, a fraction of one per token. The
# library's own limits are several times as wide.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=10_000,
    max_grammar_size=20_000,
    verbose_errors=False,
)
_MAX_LENGTH = 200_000
_MAX_DEPTH = 100
# The library follows references by recursion, levels of the schema in between; some thousand
# levels overflow a thread's stack and take the process with them.
_MAX_REFERENCED_DEPTH = 1000
# Patterns that must hold together multiply; 20 of them took half a minute and gigabytes.
_MAX_COMBINED = 8
_MAX_MULTIPLE = 100_000

_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""Formats that llguidance knows."""
_VALUES = frozenset({"const", "enum", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_COMBINING = frozenset({"$ref", "anyOf", "oneOf"})
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$defs", "definitions", "$schema", "$id", "$comment", "discriminator", "type"}
)
_WHERE = "constrained decoding"


class SchemaCompiler:
    """Makes matchers for the answers of one model. May be used by several threads.

    Args:
        read_vocabulary: the model's tokens as llguidance takes them; called once, when the first
            schema comes, for it takes half a second for 50,000 tokens. Raises `refused(…)` for a
            model that cannot be held to a schema.
        vocab_size: number of logits of the model.
    """

    def __init__(self, read_vocabulary: Callable[[], LLTokenizer], vocab_size: int) -> None:
        self._read_vocabulary = read_vocabulary
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def constraint(self, params: SamplingParams) -> SchemaMatcher | None:
        """A matcher for what a request wants its answer held to, None for nothing; see below."""
        if params.json_schema is not None:
            return self.matcher(params.json_schema)
        return None if params.grammar is None else self.grammar_matcher(params.grammar)

    def matcher(self, schema: dict[str, Any]) -> SchemaMatcher:
        """A matcher at the beginning of an answer. Blocking.

        Raises:
            ParameterError: with the parameter `json_schema`: a schema that is none, that says what
                llguidance cannot enforce, that no value satisfies, or that is too large.
        """
        text = _checked_text(schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_LAYOUT)
        except ValueError as error:
            raise refused(str(error)) from None
        return self._matcher(grammar)

    def grammar_matcher(self, lark: str) -> SchemaMatcher:
        """The same for a grammar in llguidance's variant of Lark:
        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.

        Raises:
            ParameterError: a text that is no such grammar, or one that is too large.
        """
        if len(lark) > _MAX_LENGTH:
            raise refused(f"{len(lark):,} characters; at most {_MAX_LENGTH:,}", "grammar")
        return self._matcher(LLMatcher.grammar_from_lark(lark), "grammar")

    def _matcher(self, grammar: str, name: str = "json_schema") -> SchemaMatcher:
        tokenizer = self._vocabulary()
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise refused(matcher.get_error(), name)
        made = SchemaMatcher(matcher, self._vocab_size)
        # Some limits show only when a token is asked for.
        made.allowed()
        return made

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read_vocabulary()
            return self._tokenizer


class SchemaMatcher:
    """Follows one answer. Used by one thread at a time.

    Args:
        matcher: llguidance's, at the beginning.
        vocab_size: tokens of the model.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        # As llguidance wants it: little-endian words, the first token the lowest bit.
        self._bits = np.zeros((vocab_size + 31) // 32, "<u4")

    @property
    def complete(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> Flags:
        """Of every token of the vocabulary, whether it may follow; an end token where the value
        may end.

        Raises:
            ParameterError: the schema needs more work per token than an answer may cost.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        flags = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return flags[: self._vocab_size].view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on behind `token`, one of those allowed.

        Raises:
            BackendError: it was not.
        """
        if not self._matcher.consume_token(token):
            self._check()
            raise BackendError(f"the JSON schema does not allow token {token} at this point")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise refused(self._matcher.get_error())


def refused(reason: str, name: str = "json_schema") -> ParameterError:
    """The error for a schema, or a model, with which answers cannot be constrained."""
    # A dump of the parser may follow the reason.
    reason = re.split(r"\s*<(?:non-verbose|state|backtrace)", reason)[0]
    reason = " ".join(reason.split())[:300]
    return ParameterError.invalid(name, f"it cannot be enforced: {reason}", where=_WHERE)


def _checked_text(schema: dict[str, Any]) -> str:
    """The schema as llguidance takes it. Raises ParameterError for one that is too large."""
    _check_work(schema)
    try:
        text = json.dumps(_with_known_formats(schema), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise refused(f"it is no JSON: {error}") from None
    if len(text) > _MAX_LENGTH:
        raise refused(f"{len(text):,} characters; at most {_MAX_LENGTH:,}")
    return text


def _check_work(schema: dict[str, Any]) -> None:
    """Refuse what is small to write and endless to compile."""
    references: set[str] = set()
    depth = patterns = 0
    multiple, combines = 1, False
    for node, level in _objects(schema):
        depth = max(depth, level)
        reference = node.get("$ref")
        if isinstance(reference, str):
            references.add(reference)
        patterns += "pattern" in node
        if isinstance(node.get("patternProperties"), dict):
            patterns += len(node["patternProperties"])
        multiple = math.lcm(multiple, _coefficient(node.get("multipleOf")))
        combines = combines or _combines(node)
        if multiple > _MAX_MULTIPLE:
            raise refused(f"multipleOf has a common multiple above {_MAX_MULTIPLE:,}")
    if len(references) * depth > _MAX_REFERENCED_DEPTH:
        raise refused(
            f"{len(references)} definitions in {depth} levels; their product may be at most "
            f"{_MAX_REFERENCED_DEPTH:,}"
        )
    if combines and patterns > _MAX_COMBINED:
        raise refused(f"{patterns} patterns beside allOf; at most {_MAX_COMBINED}")


def _objects(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every JSON object in the schema and its level, the outermost 1."""
    left: list[tuple[Any, int]] = [(schema, 1)]
    while left:
        node, level = left.pop()
        if level > _MAX_DEPTH:
            raise refused(f"it is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(node, dict):
            yield node, level
            left += [(value, level + 1) for value in node.values()]
        elif isinstance(node, list | tuple):
            left += [(value, level + 1) for value in node]


def _coefficient(multiple: Any) -> int:
    """The digits of a `multipleOf` as a number: 25 for 0.25."""
    if isinstance(multiple, int) and not isinstance(multiple, bool):
        return abs(multiple) or 1
    if not isinstance(multiple, float) or not math.isfinite(multiple):
        return 1
    return int("".join(map(str, Decimal(repr(multiple)).as_tuple().digits))) or 1


def _combines(node: dict[str, Any]) -> bool:
    """Whether one value must satisfy several schemas at once."""
    found = node.keys() & _COMBINING
    return "allOf" in node or (bool(found) and len(node.keys() - _ANNOTATIONS) > 1)


def _with_known_formats(node: Any) -> Any:
    """The schema without formats that llguidance does not know.

    JSON Schema has them mean nothing then (Draft 2020-12, Validation, 7.2.3).
    """
    if isinstance(node, list | tuple):
        return [_with_known_formats(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key in _VALUES:
            kept[key] = value
        elif key in _NAMED and isinstance(value, dict):
            kept[key] = {name: _with_known_formats(inner) for name, inner in value.items()}
        elif key != "format" or value in _FORMATS:
            kept[key] = _with_known_formats(value)
    return kept
