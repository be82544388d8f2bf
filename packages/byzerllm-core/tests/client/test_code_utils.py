"""Code blocks in answers."""

from __future__ import annotations

import random
import time

import pytest

from byzerllm.client.code_utils import UNKNOWN, extract_code, infer_lang

PYTHON = "for i in range(3):\n    print(i)"


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (f"Sure:\n```python\n{PYTHON}\n```\nDone.", [("python", PYTHON)]),
        (f"```Python title=a.py\n{PYTHON}\n```", [("python", PYTHON)]),
        ("```{.python .numbered}\nx\n```", [("python", "x")]),
        ("```\nx\n```", [(UNKNOWN, "x")]),
        (f"~~~python\n{PYTHON}\n~~~", [("python", PYTHON)]),
        (f"```python\n{PYTHON}", [("python", PYTHON)]),
        ("```python\nx", [("python", "x")]),
        ("````markdown\n```python\nx\n```\n````", [("markdown", "```python\nx\n```")]),
        ("~~~md\n```\nx\n```\n~~~", [("md", "```\nx\n```")]),
        ("- first:\n  ```sh\n  ls\n    -l\n  ```\n- second", [("sh", "ls\n  -l")]),
        ("1. one\n\n        ```sh\n        ls\n        ```", [("sh", "ls")]),
        ("    ```python\n    a\n      b\n    ```", [("python", "a\n  b")]),
        ("> ```js\n> a\n> ```", [("js", "a")]),
        ("<answer>\n```js\na\n```\n</answer>", [("js", "a")]),
        ("So: ```python\nx = 1\n```\nand\n```sh\nls\n```", [("python", "x = 1"), ("sh", "ls")]),
        ("So: ```\r\nx\r\n\r\ny\r\n```\r\n", [(UNKNOWN, "x\n\ny")]),
        ("```a\n1\n```\n\n```b\n2\n```", [("a", "1"), ("b", "2")]),
        ("```python\n\n\tx\n\n```", [("python", "\n\tx\n")]),
        ("```python\n```", [("python", "")]),
        ("Write ```x``` in line.", []),
        ("Write ```x```", []),
        ("```x``` and\nso: ```js\na\n```", [("js", "a")]),
        ("````md\nso: ```js\na\n```\n````", [("md", "so: ```js\na\n```")]),
        ("", []),
    ],
)
def test_blocks(text: str, blocks: list[tuple[str, str]]) -> None:
    assert extract_code(text) == blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (f"\n{PYTHON}\n\n", [("python", PYTHON)]),
        ("    x = 1\n    y = 2", []),
        ('{"a": 1}', [("json", '{"a": 1}')]),
        ("pip install x\npython run.py", [("sh", "pip install x\npython run.py")]),
        ("I cannot write that.", []),
    ],
)
def test_a_text_without_fences(text: str, blocks: list[tuple[str, str]]) -> None:
    assert extract_code(text) == blocks


@pytest.mark.parametrize(
    ("code", "language"),
    [
        (PYTHON, "python"),
        ("x = 1", "python"),
        ("print('a')", "python"),
        ("import os", "python"),
        (r"p = '\d'", "python"),
        ("hello", UNKNOWN),
        ("well-known", UNKNOWN),
        ("42", UNKNOWN),
        ("Note: important", UNKNOWN),
        ("a, b", UNKNOWN),
        ("x = = 1", UNKNOWN),
        ("", UNKNOWN),
        ("\0", UNKNOWN),
        ("[1, 2]", "json"),
        ("[link](url)", UNKNOWN),
        ("#!/usr/bin/env python3\nx", "python"),
        ("#!/bin/bash\necho", "bash"),
        ("#!/bin/sh -e\necho", "sh"),
        ("#!", UNKNOWN),
        ("$ make it", "sh"),
        ("# build\nmkdir a && \\\n  cd a", "sh"),
        ("make sure that it works.", UNKNOWN),
        ("cat a.txt\nThen look.", UNKNOWN),
        ("SELECT a FROM t", "sql"),
        ("select a\nfrom t;", "sql"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "sql"),
        ("Select the best from these.", UNKNOWN),
        ("create a table with two columns", UNKNOWN),
        ("<!DOCTYPE html>\n<p>a", "html"),
        ('<?xml version="1.0"?><a/>', "xml"),
    ],
)
def test_infer_lang(code: str, language: str) -> None:
    assert infer_lang(code) == language


def test_no_text_breaks_it() -> None:
    pieces = [
        "```",
        "~~~",
        "````",
        "\n",
        "    ",
        "> ",
        "- ",
        "python",
        "x = 1",
        "{",
        "`",
        "\0",
        "é",
        "\r",
    ]
    dice = random.Random(7)
    for _ in range(2000):
        text = "".join(dice.choices(pieces, k=dice.randrange(1, 30)))
        for language, code in extract_code(text):
            assert language == language.lower() != ""
            assert isinstance(code, str)


def test_long_texts_are_quick() -> None:
    start = time.perf_counter()
    extract_code("So: ```python\nx = 1\n```\n" * 2000)
    extract_code("`" * 20_000)
    extract_code("[" * 100_000)
    extract_code("a ```" + " " * 100_000 + "!")
    extract_code(" " * 100_000)
    extract_code("> " * 5_000 + "```")
    assert time.perf_counter() - start < 10


def test_import_paths() -> None:
    from byzerllm.client import code_utils as code_home
    from byzerllm.client import message_utils as message_home
    from byzerllm.utils.client import code_utils, message_utils

    assert code_utils.extract_code is code_home.extract_code
    assert message_utils.padding_messages_merge is message_home.padding_messages_merge
