"""The prompts that ask a model for tool calls, pydantic answers and functions.

They are used where the model or its vendor has no form of its own for it. Each is written in
English and in Chinese, by the language of the conversation. `setup_*_format_func` replaces one; a
replacement takes the same arguments and returns the prompt.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

from byzerllm.client.schema import class_schema, serialize_function_to_json

Language = Literal["en", "zh"]


def language_of(text: str) -> Language:
    """`zh` for a text with Chinese characters (CJK Unified Ideographs), else `en`."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"


def function_calling_format(
    prompt: str,
    tools: Sequence[Callable[..., Any] | str | dict[str, Any]],
    tool_choice: Callable[..., Any] | str | None = None,
) -> str:
    """Asks for tool calls as JSON.

    Args:
        prompt: the user's question.
        tools: functions, their JSON, or dicts in OpenAI's shape.
        tool_choice: a function (or name) that must be called, `required`, `none`, or None and
            `auto` for the model's own choice.

    Returns:
        the prompt. The answer is `{"tool_calls": [{"name": …, "arguments": {…}}]}`, or
        `{"answer": "…"}` when no function fits and none was forced.
    """
    listing = "\n".join(_tool_text(tool) for tool in tools)
    forced = _forced(tool_choice)
    if language_of(prompt) == "zh":
        return _CALLS_ZH.format(tools=listing, rule=_rule_zh(forced), prompt=prompt)
    return _CALLS_EN.format(tools=listing, rule=_rule_en(forced), prompt=prompt)


def response_class_format(prompt: str, cls: Any) -> str:
    """Asks for an answer that is one JSON value of a class.

    Args:
        prompt: the user's question.
        cls: a pydantic class, another type, or a JSON schema as text.
    """
    form = _RESPONSE_ZH if language_of(prompt) == "zh" else _RESPONSE_EN
    return form.format(schema=_schema_text(cls), prompt=prompt)


def response_class_format_after_chat(cls: Any) -> str:
    """Asks for the content of the answer before it, as one JSON value of a class."""
    schema = _schema_text(cls)
    form = _AFTER_ZH if language_of(schema) == "zh" else _AFTER_EN
    return form.format(schema=schema)


def function_impl_format(prompt: str, func: Callable[..., Any] | str, cls: Any) -> str:
    """Asks for the body of a Python function.

    Args:
        prompt: what the function is needed for.
        func: the empty function, or a description of it as JSON text.
        cls: the type that it returns, or its JSON schema as text.
    """
    doc = "" if isinstance(func, str) else inspect.getdoc(func) or ""
    form = _IMPLEMENT_ZH if language_of(prompt + doc) == "zh" else _IMPLEMENT_EN
    head = func if isinstance(func, str) else _head(func)
    return form.format(
        head=head,
        function=serialize_function_to_json(func),
        schema=_schema_text(cls),
        doc=doc,
        prompt=prompt,
    )


def retry_format(question: str, reason: str) -> str:
    """Tells the model what was wrong with its answer and asks for it again."""
    if language_of(question) == "zh":
        ask = "请改正后重新给出完整的回答，只输出 JSON，不要任何解释。"
        return f"上面的回答不符合要求：{reason}\n{ask}"
    return (
        f"That answer does not fit: {reason}\nCorrect it and give the whole answer again, "
        "as JSON only, without any explanation."
    )


def _tool_text(tool: Callable[..., Any] | str | dict[str, Any]) -> str:
    if isinstance(tool, dict):
        return json.dumps(tool.get("function", tool), ensure_ascii=False)
    return serialize_function_to_json(tool)


def _forced(tool_choice: Any) -> str | None:
    """The name that must be called, `required`, or None."""
    if tool_choice is None or tool_choice in ("auto", "none", ""):
        return None
    if isinstance(tool_choice, dict):
        return str(tool_choice.get("function", tool_choice).get("name", "required"))
    return tool_choice if isinstance(tool_choice, str) else str(tool_choice.__name__)


def _rule_en(forced: str | None) -> str:
    if forced is None:
        return 'If none of them helps, reply with {"answer": "your answer in words"} instead.'
    if forced == "required":
        return "You must call at least one of them."
    return f"You must call {forced}."


def _rule_zh(forced: str | None) -> str:
    if forced is None:
        return '如果没有合适的函数，请改为回复 {"answer": "用文字给出的回答"}。'
    if forced == "required":
        return "必须至少调用其中一个函数。"
    return f"必须调用函数 {forced}。"


def _schema_text(cls: Any) -> str:
    if isinstance(cls, str):
        return cls
    return json.dumps(cls if isinstance(cls, dict) else class_schema(cls), ensure_ascii=False)


def _head(func: Callable[..., Any]) -> str:
    """The function as its author wrote it, where the source can be read."""
    try:
        source = textwrap.dedent(inspect.getsource(func))
    except (OSError, TypeError):
        return f"def {func.__name__}{inspect.signature(func)}: ..."
    start = min((i for i in (source.find("def "), source.find("async def ")) if i >= 0), default=0)
    return source[start:].rstrip()


_CALLS_EN = """\
You can call these functions. Each is described by its name, what it does, and the JSON schema of \
its parameters:

{tools}

Decide which of them answer the question below, and with what arguments. Take the arguments from \
the question; do not make any up. Reply with JSON only, in this form:

{{"tool_calls": [{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}]}}

{rule}

Question: {prompt}"""

_CALLS_ZH = """\
你可以调用下面这些函数。每个函数都给出了名称、用途和参数的 JSON Schema：

{tools}

请判断回答下面的问题需要调用哪些函数、使用什么参数。\
参数取自问题本身，不要编造。只输出 JSON，格式如下：

{{"tool_calls": [{{"name": "函数名", "arguments": {{"参数名": "参数值"}}}}]}}

{rule}

问题：{prompt}"""

_RESPONSE_EN = """\
{prompt}

Answer with one JSON value and nothing else. It must fit this JSON schema:

{schema}"""

_RESPONSE_ZH = """\
{prompt}

请只用一个 JSON 值来回答，不要输出其他内容。它必须符合下面的 JSON Schema：

{schema}"""

_AFTER_EN = """\
Put the content of your last answer into one JSON value and reply with nothing else. It must fit \
this JSON schema:

{schema}"""

_AFTER_ZH = """\
请把你上一条回答的内容整理成一个 JSON 值，不要输出其他内容。它必须符合下面的 JSON Schema：

{schema}"""

_IMPLEMENT_EN = """\
Write the Python function below. Think about how it works first, then give the whole function in \
one ```python block, with every import that it needs inside the block, and no examples of its use.

{head}

Its name and parameters, as JSON:

{function}

What it returns must be plain data that fits this JSON schema:

{schema}

What it is for: {doc}
What is asked: {prompt}"""

_IMPLEMENT_ZH = """\
请实现下面的 Python 函数。先想清楚思路，然后在一个 ```python 代码块里给出完整的函数，\
需要的 import 都写在代码块里，\
不要给出使用示例。

{head}

函数的名称和参数（JSON）：

{function}

函数的返回值必须是符合下面 JSON Schema 的普通数据：

{schema}

函数的用途：{doc}
用户的问题：{prompt}"""
