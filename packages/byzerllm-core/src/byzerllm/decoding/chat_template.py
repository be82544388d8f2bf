"""Renders messages with a model's own Jinja chat template.

The environment is the one that Hugging Face documents for chat templates, which GGUF files carry
unchanged: https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from byzerllm.errors import CapabilityError, ParameterError, TemplateError


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks an assistant's text for training, renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled chat template.

    Args:
        source: Jinja text; '' when the model has none.
        bos, eos: texts of the model's first and end token.

    Raises:
        TemplateError: the template is no valid Jinja.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self.available = bool(source)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(
                f"the chat template cannot be compiled: {error}; give another with "
                "chat_template in infer_params"
            ) from error

    def render(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt for `messages`, open for the assistant's answer.

        Args:
            messages: OpenAI's shape; a content is a text or a list of text parts.
            variables: further variables of the template (`enable_thinking`, `tools`, …).

        Raises:
            ParameterError: no messages, or one that is none.
            CapabilityError: a part that is no text.
            TemplateError: the model has no template, or it refuses the messages.
        """
        if not messages:
            raise ParameterError("an empty conversation; give at least one message")
        if not self.available:
            raise TemplateError(
                "the model has no chat template; set one with setup_template(model, …), give "
                "chat_template in infer_params, or send a prompt"
            )
        plain = [_plain(message, position) for position, message in enumerate(messages)]
        given = {"tools": None, "add_generation_prompt": True, **(variables or {})}
        try:
            return self._template.render(messages=plain, **self._tokens, **given)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateError(
                f"the model's chat template cannot render these messages: {error}"
            ) from error


def template_source(given: str | None, own: str) -> str:
    """The template that was asked for, read from its file where it is a path, or the model's.

    Raises:
        TemplateError: a path that cannot be read.
    """
    if given is None:
        return own
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"chat_template {given!r} is neither a Jinja template nor a file that can be read "
            f"({error})"
        ) from error


def _plain(message: Any, position: int) -> dict[str, Any]:
    """`message` with its text parts joined."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ParameterError(
            f"message {position} is no dict with a role and a content: {message!r:.80}"
        )
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": "\n".join(_text(part, position) for part in content)}
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return message
    raise ParameterError(
        f"the content of message {position} is a {type(content).__name__}; "
        "it must be a text or a list of text parts"
    )


def _text(part: Any, position: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise CapabilityError(
        f"message {position} has a part of type {kind!r}; this model takes text parts only"
    )


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
