"""English and Chinese: every text has a translation, and the right language is chosen."""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import polib
import pytest

import byzerllm.cli
from byzerllm import errors
from byzerllm.cli import i18n
from byzerllm.cli.failures import _gists
from byzerllm.errors import UsageError

Run = Callable[..., CompletedProcess[str]]
SOURCES = sorted(Path(byzerllm.cli.__file__).parent.glob("*.py"))


def marked_texts(source: str) -> Iterator[str]:
    """The arguments of `_()`; raises when one is not a plain text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), ast.unparse(node)
            assert isinstance(argument.value, str)
            yield argument.value


def all_texts() -> set[str]:
    return {text for path in SOURCES for text in marked_texts(path.read_text(encoding="utf-8"))}


def catalogue() -> polib.POFile:
    return polib.pofile(str(i18n.CATALOGUE))


def test_every_text_is_translated_and_none_is_left_over() -> None:
    translated = {entry.msgid for entry in catalogue() if entry.msgstr}
    texts = all_texts()
    assert len(texts) > 200
    assert sorted(texts - translated) == []
    assert sorted(translated - texts) == []


def test_no_translation_is_fuzzy_or_twice() -> None:
    entries = list(catalogue())
    assert len({entry.msgid for entry in entries}) == len(entries)
    assert not [entry.msgid for entry in entries if entry.fuzzy or entry.obsolete]


def placeholders(text: str) -> list[str]:
    return sorted(
        f"{n}!{c}:{s}" for _text, n, s, c in string.Formatter().parse(text) if n is not None
    )


@pytest.mark.parametrize("entry", [e for e in catalogue() if "{" in e.msgid], ids=lambda e: e.msgid)
def test_placeholders_are_the_same(entry: polib.POEntry) -> None:
    assert placeholders(entry.msgstr) == placeholders(entry.msgid)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "", "LC_MESSAGES": ""}, "zh"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "BYZERLLM_LANG": "en"}, "en"),
        ({"LANG": "C.UTF-8", "BYZERLLM_LANG": "zh"}, "zh"),
        ({"BYZERLLM_LANG": "zh-CN"}, "zh"),
        ({"BYZERLLM_LANG": "ZH_cn.utf8"}, "zh"),
    ],
)
def test_the_language(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LANG")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert i18n.language() == expected


def test_an_unknown_language_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYZERLLM_LANG", "fr")
    with pytest.raises(UsageError, match="BYZERLLM_LANG='fr' is no language; allowed: en, zh"):
        i18n.language()


def test_an_unknown_language_is_an_error_of_the_program(byzerllm_command: Run) -> None:
    done = byzerllm_command("--help", BYZERLLM_LANG="fr")
    assert done.returncode == 2
    assert done.stderr.startswith("error: BYZERLLM_LANG='fr' is no language")


def test_help_in_chinese(byzerllm_command: Run) -> None:
    done = byzerllm_command("deploy", "--help", BYZERLLM_LANG="zh")
    assert done.returncode == 0
    for text in ("用法：", "选项", "示例", "在集群上部署一个模型", "[必填]", "显示本帮助并退出。"):
        assert text in done.stdout
    assert "[默认：auto]" in done.stdout.replace("\n", "")


def test_errors_in_chinese(byzerllm_command: Run) -> None:
    done = byzerllm_command("deplyo", BYZERLLM_LANG="zh")
    assert done.returncode == 2
    assert done.stderr.startswith("错误：没有命令 'deplyo'（是不是 'deploy'？）")


def test_errors_of_core_begin_with_their_kind(byzerllm_command: Run) -> None:
    arguments = ("models", "--ray_address", "127.0.0.1:1")
    english = byzerllm_command(*arguments).stderr
    assert english.startswith("error: no Ray cluster answers at 127.0.0.1:1")
    chinese = byzerllm_command(*arguments, BYZERLLM_LANG="zh").stderr
    assert chinese.startswith("错误：没有找到 Ray 集群: no Ray cluster answers at 127.0.0.1:1")


def test_every_kind_of_error_has_a_name() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    unnamed = {errors.ByzerLLMError, errors.UsageError}
    for kind in kinds:
        assert kind in unnamed or any(base in _gists() for base in kind.__mro__), kind


def test_a_terminal_that_cannot_show_chinese(byzerllm_command: Run) -> None:
    done = byzerllm_command("--help", BYZERLLM_LANG="zh", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "deploy" in done.stdout
