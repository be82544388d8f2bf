"""Chat templates: what turns messages into the prompt text of a model family.

A rendered prompt carries the family's special tokens as text; the worker tokenises it with special
tokens parsed and puts the model's begin-of-sequence token in front where the model wants one. So
that it does not stand there twice, the first one is left out of the text; those that a family
writes between turns (Llama 2) stay.

Sources: `chat_template` in the `tokenizer_config.json` of Qwen2-7B-Instruct, Yi-34B-Chat,
Llama-2-7b-chat-hf and deepseek-coder-33b-instruct on the Hugging Face hub; token ids from the
same repositories.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from byzerllm.errors import ParameterError, TemplateError, did_you_mean, listed
from byzerllm.hookspecs import hookimpl
from byzerllm.messages import text_of
from byzerllm.plugins import get_plugins

Messages = list[dict[str, Any]]

_OPENAI_ROLES = ("user", "assistant", "system")
_SEED_ROLES = {"user_role": "user", "assistant_role": "assistant"}
_SEED_SYSTEM = "system_msg"


@dataclass(frozen=True)
class CutAt:
    """An output cleaner: what stands before the first of `markers`, without outer white space."""

    markers: tuple[str, ...]

    def __call__(self, text: str) -> str:
        ends = [text.find(marker) for marker in self.markers]
        return text[: min((end for end in ends if end >= 0), default=len(text))].strip()

    def partial(self, text: str) -> str:
        """What can be shown of an answer that goes on: no beginning of a marker, and no white
        space that may turn out to be the end."""
        held = max((_overlap(text, marker) for marker in self.markers), default=0)
        return self(text[: len(text) - held])


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` begin `marker` without being all of it."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)


def unchanged(text: str) -> str:
    """The cleaner of a template that has none."""
    return text


@dataclass(frozen=True)
class Template:
    """How one model family is spoken to.

    Attributes:
        name: what `Templates.<name>()` and the command line call it.
        render: `render(messages)` or `render(messages, roles)` → prompt text that ends where the
            model goes on. Messages are in OpenAI's shape, their contents text, their roles keys of
            `roles`; `roles` holds the names to write, which `setup_role_mapping` may change.
        roles: the roles that the family knows, and the name that each is written with.
        stop: texts that end an answer.
        stop_token_ids: tokens that end an answer.
        clean: makes of a raw answer the one that users see. Of a stream it gets the text so far,
            again and again; where it has a method `partial(text)`, as `CutAt` has, that one gets
            it until the answer is whole.
        default_system: the system message of a conversation that has none, where the family
            has one.
    """

    name: str
    render: Callable[..., str]
    roles: Mapping[str, str] = field(default_factory=lambda: {role: role for role in _OPENAI_ROLES})
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    clean: Callable[[str], str] = unchanged
    default_system: str | None = None

    def apply(
        self, messages: Sequence[Mapping[str, Any]], role_mapping: Mapping[str, str] | None = None
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: OpenAI's shape, as `messages.normalise` returns them; contents are text or
                lists of text parts.
            role_mapping: as `with_roles` takes it.

        Raises:
            ParameterError: no message, or a role mapping that names no role.
            TemplateError: a role, an order of roles or a content that the family cannot express.
        """
        if role_mapping:
            return self.with_roles(role_mapping).apply(messages)
        if not messages:
            raise ParameterError("conversations: empty; at least one message is needed")
        turns = [self._turn(index, message) for index, message in enumerate(messages)]
        return self.render(turns, self.roles) if self._takes_roles else self.render(turns)

    def with_roles(self, role_mapping: Mapping[str, str]) -> Template:
        """This template with other role names, in its stop texts too.

        Args:
            role_mapping: names by `user`, `assistant`, `system` (or `user_role`,
                `assistant_role`); `system_msg` replaces `default_system`.

        Raises:
            ParameterError: another key.
            TemplateError: the template's names are fixed.
        """
        names = dict(self.roles)
        default_system = self.default_system
        for key, value in role_mapping.items():
            role = _SEED_ROLES.get(key, key)
            if key == _SEED_SYSTEM:
                default_system = value
            elif role in names:
                names[role] = value
            else:
                allowed = [*self.roles, *_SEED_ROLES, _SEED_SYSTEM]
                raise ParameterError.unknown(key, allowed, where="a role mapping")
        if names != self.roles and not self._takes_roles:
            raise TemplateError(f"template {self.name!r} has fixed role names")
        renamed = self._renamed(names)
        return dataclasses.replace(renamed, roles=names, default_system=default_system)

    def _renamed(self, names: Mapping[str, str]) -> Template:
        def rename(texts: tuple[str, ...]) -> tuple[str, ...]:
            for role, name in self.roles.items():
                if name and name != names[role]:
                    texts = tuple(text.replace(name, names[role]) for text in texts)
            return texts

        clean = CutAt(rename(self.clean.markers)) if isinstance(self.clean, CutAt) else self.clean
        return dataclasses.replace(self, stop=rename(self.stop), clean=clean)

    @functools.cached_property
    def _takes_roles(self) -> bool:
        return len(inspect.signature(self.render).parameters) > 1

    def _turn(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        role = message["role"]
        if role == "developer" and role not in self.roles:
            role = "system"
        if role not in self.roles:
            raise TemplateError(
                f"conversations[{index}]: template {self.name!r} has no role {role!r}; "
                f"its roles: {listed(self.roles)}"
            )
        content = message.get("content")
        if content is None:
            raise TemplateError(
                f"conversations[{index}]: template {self.name!r} renders text; this message has "
                "none (use setup_template(model, 'auto') for tool calls)"
            )
        if not isinstance(content, str):
            self._check_parts(index, content)
            content = text_of(content)
        return {**message, "role": role, "content": content}

    def _check_parts(self, index: int, parts: Sequence[Mapping[str, Any]]) -> None:
        for part in parts:
            if part.get("type") != "text":
                raise TemplateError(
                    f"conversations[{index}]: template {self.name!r} renders text and no "
                    f"{part.get('type')!r} part (use setup_template(model, 'auto') for models that "
                    "take such parts)"
                )


class _ByName(type):
    def __getattr__(cls, name: str) -> Callable[[], Template]:
        if name.startswith("_"):
            raise AttributeError(name)
        templates = get_plugins().templates
        if name not in templates:
            raise AttributeError(
                f"no template {name!r}{did_you_mean(name, templates)}; there are: "
                f"{listed(templates)}"
            )
        return templates.get(name)

    def __dir__(cls) -> list[str]:
        return [*super().__dir__(), *get_plugins().templates]


class Templates(metaclass=_ByName):
    """Every template by name: `Templates.qwen()`, and so on for those that plugins bring."""


def _chatml(messages: Messages, roles: Mapping[str, str]) -> str:
    turns = [f"<|im_start|>{roles[m['role']]}\n{m['content']}<|im_end|>\n" for m in messages]
    return f"{''.join(turns)}<|im_start|>{roles['assistant']}\n"


def qwen() -> Template:
    """Qwen chat models (1 to 2.5): ChatML. Stops at `<|endoftext|>` and `<|im_end|>`."""
    markers = ("<|im_end|>", "<|endoftext|>")
    return Template(
        name="qwen",
        render=_chatml,
        stop=markers,
        stop_token_ids=(151643, 151645),
        clean=CutAt(markers),
        default_system="You are a helpful assistant.",
    )


def yi() -> Template:
    """Yi chat models: ChatML without a system message of their own. Stops at `<|im_end|>`."""
    return Template(
        name="yi",
        render=_chatml,
        stop=("<|im_end|>",),
        stop_token_ids=(7,),
        clean=CutAt(("<|im_end|>", "<|endoftext|>")),
    )


def _llama2(messages: Messages) -> str:
    system = ""
    if messages[0]["role"] == "system":
        system = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n"
        messages = messages[1:]
    if not messages:
        raise TemplateError("template 'llama' needs a user message after the system message")
    prompt = []
    for index, message in enumerate(messages):
        if message["role"] != ("assistant" if index % 2 else "user"):
            raise TemplateError(
                "template 'llama' needs an optional system message, then user and assistant "
                f"messages by turns, beginning with user (got {message['role']!r} at turn {index})"
            )
        content = message["content"]
        if index % 2:
            prompt.append(f" {content.strip()} </s>")
        else:
            bos = "<s>" if index else ""
            content = content if index else system + content
            prompt.append(f"{bos}[INST] {content.strip()} [/INST]")
    return "".join(prompt)


def llama() -> Template:
    """Llama 2 chat models: `[INST]` and `<<SYS>>`. Turns must alternate; names are fixed."""
    return Template(
        name="llama",
        render=_llama2,
        stop=("</s>",),
        stop_token_ids=(2,),
        clean=CutAt(("</s>",)),
    )


def _deepseek_coder(messages: Messages, roles: Mapping[str, str]) -> str:
    prompt = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            prompt.append(content)
        elif role == "user":
            prompt.append(f"{roles['user']}\n{content}\n")
        else:
            prompt.append(f"{roles['assistant']}\n{content}\n<|EOT|>\n")
    return f"{''.join(prompt)}{roles['assistant']}\n"


def deepseek_code() -> Template:
    """DeepSeek Coder instruct models: `### Instruction:` and `### Response:`."""
    return Template(
        name="deepseek_code",
        render=_deepseek_coder,
        roles={"user": "### Instruction:", "assistant": "### Response:", "system": ""},
        stop=("<|EOT|>",),
        stop_token_ids=(32021,),
        clean=CutAt(("<|EOT|>",)),
        # The family ends its own system message, and no other, with a line break.
        default_system="You are an AI programming assistant, utilizing the Deepseek Coder model, "
        "developed by Deepseek Company, and you only answer questions related to computer science. "
        "For politically sensitive questions, security and privacy issues, and other non-computer "
        "science questions, you will refuse to answer\n",
    )


def _role_and_colon(messages: Messages, roles: Mapping[str, str]) -> str:
    lines = [
        f"{m['content']}\n" if m["role"] == "system" else f"{roles[m['role']]}:{m['content']}\n"
        for m in messages
    ]
    return f"{''.join(lines)}{roles['assistant']}:"


def default() -> Template:
    """For models without a family format: the system message, then `User:` and `Assistant:`."""
    markers = ("\nUser:",)
    return Template(
        name="default",
        render=_role_and_colon,
        roles={"user": "User", "assistant": "Assistant", "system": ""},
        stop=markers,
        clean=CutAt(markers),
        default_system="You are a helpful assistant. Think it over and answer the user question "
        "correctly.",
    )


def _contents(messages: Messages) -> str:
    return "\n".join(message["content"] for message in messages)


def empty() -> Template:
    """Nothing but the contents, one after the other on lines of their own; for base models."""
    return Template(name="empty", render=_contents)


@hookimpl
def register_templates(register: Callable[[str, Callable[[], Template]], None]) -> None:
    for make in (qwen, yi, llama, deepseek_code, default, empty):
        register(make.__name__, make)
