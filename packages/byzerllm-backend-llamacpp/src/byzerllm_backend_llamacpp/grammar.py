"""Grammars in GBNF for constrained decoding, and the checks before llama.cpp parses them.

GBNF: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.

They stay with llama.cpp's own sampler, not with llguidance as JSON schemas do: its converter
`gbnf_to_lark` makes regular rules lexemes, which match greedily, so that
`root ::= word "ing"` with `word ::= [a-z]+` no longer takes "sing"; and it garbles `\\u0041`.
"""

from __future__ import annotations

import re
from typing import Any

from byzerllm.errors import ParameterError
from byzerllm_backend_llamacpp import log
from byzerllm_backend_llamacpp.native import llama_cpp

# llama.cpp parses nested groups by recursion; far deeper ones overflow the stack of the process.
_MAX_DEPTH = 2000
_MAX_RULES = 4000
_MAX_LENGTH = 1_000_000
_WHERE = "constrained decoding"
_LITERALS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*')


def grammar_sampler(vocab: Any, text: str) -> Any:
    """llama.cpp's grammar sampler for `text`, which the caller frees.

    Raises:
        ParameterError: llama.cpp does not take the grammar.
    """
    _check_size(text)
    log.forget_errors()
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), b"root")
    if not sampler:
        reason = log.last_errors() or "it cannot be parsed"
        raise ParameterError.invalid("grammar", f"llama.cpp refuses it: {reason}", where=_WHERE)
    return sampler


def _check_size(text: str) -> None:
    if not text.strip():
        raise ParameterError.invalid("grammar", "it is empty", where=_WHERE)
    if "\0" in text:
        raise ParameterError.invalid("grammar", "it holds a zero byte", where=_WHERE)
    if len(text) > _MAX_LENGTH:
        raise ParameterError.invalid(
            "grammar", f"{len(text):,} characters; at most {_MAX_LENGTH:,}", where=_WHERE
        )
    rules = _LITERALS.sub("", text)
    if rules.count("::=") > _MAX_RULES:
        raise ParameterError.invalid("grammar", f"more than {_MAX_RULES} rules", where=_WHERE)
    if _depth(rules) > _MAX_DEPTH:
        raise ParameterError.invalid(
            "grammar",
            f"groups are nested more than {_MAX_DEPTH} deep",
            where=_WHERE,
        )


def _depth(rules: str) -> int:
    """Deepest nesting of groups."""
    depth = deepest = 0
    for bracket in re.findall(r"[()]", rules):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return deepest
