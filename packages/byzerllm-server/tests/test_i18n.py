"""Every text of the server's commands has a Chinese one, and none is left over."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import polib
import pytest

from byzerllm.cli import i18n
from byzerllm_server import commands

CORE = i18n.CATALOGUE
SOURCES = sorted(Path(commands.__file__).parent.glob("*.py"))


def marked_texts() -> set[str]:
    """The arguments of `_()`."""
    return {
        node.args[0].value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"
        if isinstance(node.args[0], ast.Constant)
    }


def catalogue(path: Path = commands.CATALOGUE) -> polib.POFile:
    return polib.pofile(str(path))


def test_every_text_is_translated_and_none_is_left_over() -> None:
    texts, known = marked_texts(), {entry.msgid for entry in catalogue(CORE)}
    translated = {entry.msgid for entry in catalogue() if entry.msgstr}
    assert len(texts) > 50
    assert sorted(texts - translated - known) == []
    assert sorted(translated - texts) == []


@pytest.mark.parametrize("entry", [e for e in catalogue() if "{" in e.msgid], ids=lambda e: e.msgid)
def test_placeholders_are_the_same(entry: polib.POEntry) -> None:
    def placeholders(text: str) -> list[str]:
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)

    assert placeholders(entry.msgstr) == placeholders(entry.msgid)
