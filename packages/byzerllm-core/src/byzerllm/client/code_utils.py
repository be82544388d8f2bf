"""Code in the text of an answer.

Source: fenced code blocks of CommonMark (https://spec.commonmark.org/0.31.2/#fenced-code-blocks).
"""

from __future__ import annotations

import ast
import functools
import json
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

__all__ = ["UNKNOWN", "extract_code", "infer_lang"]

UNKNOWN = "unknown"

_FENCE = re.compile(r"[\s>*+\-\d.)]*(?P<fence>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)")
_INTERPRETERS = ("python", "bash", "node", "ruby", "perl", "sh")
# fmt: off
_COMMANDS = frozenset({
    "apt", "apt-get", "awk", "brew", "cat", "cd", "chmod", "chown", "conda", "cp", "curl", "docker",
    "echo", "export", "git", "grep", "kubectl", "ls", "make", "mkdir", "mv", "npm", "npx", "pip",
    "pip3", "poetry", "python", "python3", "ray", "rm", "sed", "source", "ssh", "sudo", "tar",
    "touch", "uv", "wget", "yarn",
})
# fmt: on
_SQL = re.compile(
    r"(select\b.+\bfrom|insert\s+into|update\b.+\bset|delete\s+from"
    r"|(create|drop|alter)\s+(or\s+replace\s+)?(temporary\s+)?(table|view|index|database)"
    r"|with\b.+\bas\s*\()\b",
    re.IGNORECASE | re.DOTALL,
)


def extract_code(text: str) -> list[tuple[str, str]]:
    """The code blocks of a text as (language, code), in their order.

    A block is fenced by three or more backticks or tildes. It may be indented, stand in a list or a
    quotation, begin in the middle of a line, hold shorter fences, and lack its end, which is the
    text's then. Code indented without a fence is no block.

    The language is the first word after the fence in lower case, or `unknown`. The code is without
    the fence's indentation and without its last line break; lines end with a line feed.

    A text without any fence is one block when `infer_lang` knows what it is, and none otherwise.
    """
    tokens = _markdown().parse(_with_fences_on_lines(text))
    fences = [token for token in tokens if token.type == "fence"]
    if fences:
        return [(_language(token.info), token.content.removesuffix("\n")) for token in fences]
    code = text.strip("\r\n").rstrip()
    language = infer_lang(code)
    return [] if language == UNKNOWN else [(language, code)]


def infer_lang(code: str) -> str:
    """The language that a piece of code is in, or `unknown`.

    Knows `python`, `json`, `sh`, `sql`, `html`, `xml`, and the interpreters that a first line `#!`
    names. It would rather not know than take a sentence for code: Python must do something (a
    call, an assignment, a definition), a shell's every line must begin with a common command or a
    prompt sign, and SQL must be in capitals or end with a semicolon.
    """
    code = code.strip()
    first = code.partition("\n")[0].strip()
    if first.startswith("#!"):
        named = first.rpartition("/")[2].split()
        interpreter = (named[1:] if named[:1] == ["env"] else named)[:1]
        return next((n for n in _INTERPRETERS if interpreter and n in interpreter[0]), UNKNOWN)
    if _is_json(code):
        return "json"
    if _is_python(code):
        return "python"
    start = code[:200].lower()
    if start.startswith("<?xml"):
        return "xml"
    if start.startswith(("<!doctype html", "<html")):
        return "html"
    if _is_shell(code):
        return "sh"
    return "sql" if _is_sql(code) else UNKNOWN


@functools.lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Models indent fences and put them between tags; neither hides a block here.
    return MarkdownIt("commonmark").disable(["code", "html_block", "reference", "inline"])


def _with_fences_on_lines(text: str) -> str:
    """The text with a line break before each fence that begins a block after words, as in
    `So: ```python`."""
    lines: list[str] = []
    opened = ""
    for line in re.split(r"\r\n|\r|\n", text):
        found = _FENCE.match(line)
        late = -1 if found or opened else _late_fence(line)
        if late > 0:
            lines.append(line[:late])
            line = line[late:]
            found = _FENCE.match(line)
        lines.append(line)
        if not opened:
            opened = found["fence"] if found else ""
        elif found and found["fence"].startswith(opened) and not found["info"].strip():
            opened = ""
    return "\n".join(lines)


def _late_fence(line: str) -> int:
    """Where a fence begins that ends a line of words; -1 where none does."""
    start = line.find("```")
    info = line[start:].lstrip("`")
    return -1 if "`" in info or len(info.split()) > 1 else start


def _language(info: str) -> str:
    words = info.strip("{} \t").split()
    return words[0].lstrip(".").lower() if words and words[0].lstrip(".") else UNKNOWN


def _is_json(code: str) -> bool:
    if code[:1] not in ("{", "["):
        return False
    try:
        json.loads(code)
    except (ValueError, RecursionError):
        return False
    return True


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(map(_does_something, tree.body))


def _does_something(statement: ast.stmt) -> bool:
    """Single words, numbers and `well-known` parse as Python too."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is not None
    if not isinstance(statement, ast.Expr):
        return True
    value = statement.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name | ast.Attribute | ast.Call)
    return isinstance(value, ast.Await)


def _is_shell(code: str) -> bool:
    lines = [line.strip() for line in code.replace("\\\n", " ").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    return bool(lines) and all(
        line.startswith("$ ") or (line.split()[0] in _COMMANDS and line[-1] not in ".?!:")
        for line in lines
    )


def _is_sql(code: str) -> bool:
    found = _SQL.match(code)
    return found is not None and (code.split()[0].isupper() or code.endswith(";"))
