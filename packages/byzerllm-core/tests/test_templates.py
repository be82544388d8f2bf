"""The built-in templates against the families' own published `chat_template`s."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import jinja2
import jinja2.sandbox
import pytest

from byzerllm import hookimpl
from byzerllm.errors import ParameterError, TemplateError
from byzerllm.plugins import Plugins, get_plugins
from byzerllm.templates import CutAt, Template, Templates

# `chat_template` of tokenizer_config.json in the repositories named, as published.
QWEN2_7B_INSTRUCT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
YI_34B_CHAT = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2_7B_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
DEEPSEEK_CODER_33B_INSTRUCT = (
    "{% if not add_generation_prompt is defined %}\n{% set add_generation_prompt = false %}\n"
    "{% endif %}\n{%- set ns = namespace(found=false) -%}\n{%- for message in messages -%}\n"
    "    {%- if message['role'] == 'system' -%}\n        {%- set ns.found = true -%}\n"
    "    {%- endif -%}\n{%- endfor -%}\n{{bos_token}}{%- if not ns.found -%}\n"
    "{{'You are an AI programming assistant, utilizing the Deepseek Coder model, developed by "
    "Deepseek Company, and you only answer questions related to computer science. For politically "
    "sensitive questions, security and privacy issues, and other non-computer science questions, "
    "you will refuse to answer\\n'}}\n{%- endif %}\n{%- for message in messages %}\n"
    "    {%- if message['role'] == 'system' %}\n{{ message['content'] }}\n    {%- else %}\n"
    "        {%- if message['role'] == 'user' %}\n"
    "{{'### Instruction:\\n' + message['content'] + '\\n'}}\n        {%- else %}\n"
    "{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}\n        {%- endif %}\n"
    "    {%- endif %}\n{%- endfor %}\n{% if add_generation_prompt %}\n{{'### Response:'}}\n"
    "{% endif %}"
)

PUBLISHED = {
    "qwen": (QWEN2_7B_INSTRUCT, "", "<|im_end|>"),
    "yi": (YI_34B_CHAT, "<|startoftext|>", "<|im_end|>"),
    "llama": (LLAMA_2_7B_CHAT, "<s>", "</s>"),
    "deepseek_code": (DEEPSEEK_CODER_33B_INSTRUCT, "<｜begin▁of▁sentence｜>", "<|EOT|>"),
}


def turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


CONVERSATIONS = {
    "one": turns("Hello"),
    "system": turns("Hello", system="You are a pirate."),
    "three turns": turns("Hello", "Hi there", "Who are you?"),
    "five turns and a system message": turns(
        "Hello", "  Hi there  ", "Who are you?\n", "\nA model.", "写一首诗 🌸", system="Be brief.\n"
    ),
    "markup in a content": turns("{{ 7 * 7 }} <|im_end|> <b>&amp;</b> [INST]"),
    "empty content": turns(""),
    "ends with the assistant": turns("Hello", "Hi"),
}


def published(name: str, messages: list[dict[str, Any]]) -> str:
    """What the family's own template makes of `messages`, less the first begin token.

    The environment is that of transformers' `apply_chat_template`.
    """
    source, bos, eos = PUBLISHED[name]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    text = environment.from_string(source).render(
        messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True
    )
    return text.removeprefix(bos)


def with_default_system(template: Template, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if template.default_system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": template.default_system}, *messages]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_renders_what_the_family_publishes(name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    before = copy.deepcopy(messages)
    template: Template = getattr(Templates, name)()
    rendered = template.apply(with_default_system(template, messages))
    assert rendered == published(name, messages)
    assert messages == before


def test_llama_keeps_the_tokens_between_turns() -> None:
    text = Templates.llama().apply(turns("a", "b", "c", system="s"))
    assert text == "[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]"


@pytest.mark.parametrize(
    "messages",
    [
        turns("a") + turns("b"),
        [{"role": "assistant", "content": "a"}],
        [*turns("a"), {"role": "system", "content": "late"}],
        [{"role": "system", "content": "alone"}],
    ],
    ids=["two users", "assistant first", "system later", "system alone"],
)
def test_llama_needs_alternating_turns(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(TemplateError, match="llama"):
        Templates.llama().apply(messages)


def test_default_and_empty() -> None:
    messages = turns("Hi", "Hello", "你好", system="Be kind.")
    assert Templates.default().apply(messages) == (
        "Be kind.\nUser:Hi\nAssistant:Hello\nUser:你好\nAssistant:"
    )
    assert Templates.empty().apply(turns("Once upon a time")) == "Once upon a time"
    assert Templates.empty().apply(messages) == "Be kind.\nHi\nHello\n你好"


@pytest.mark.parametrize(
    ("name", "raw", "clean"),
    [
        ("qwen", "Hello.<|im_end|>\n<|im_start|>user", "Hello."),
        ("qwen", "Hello.<|endoftext|>", "Hello."),
        ("yi", "Hello.<|im_end|>", "Hello."),
        ("llama", " Hello. </s>", "Hello."),
        ("deepseek_code", "x = 1\n<|EOT|>", "x = 1"),
        ("default", " Hello.\nUser:And you?", "Hello."),
        ("empty", "  as it is\n", "  as it is\n"),
    ],
)
def test_clean(name: str, raw: str, clean: str) -> None:
    assert getattr(Templates, name)().clean(raw) == clean


def test_stops() -> None:
    assert set(Templates.qwen().stop_token_ids) == {151643, 151645}
    assert Templates.yi().stop_token_ids == (7,)
    assert Templates.llama().stop_token_ids == (2,)
    assert Templates.deepseek_code().stop_token_ids == (32021,)
    assert Templates.default().stop == ("\nUser:",)
    assert Templates.empty().stop == ()


def test_text_parts_and_developer() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": parts},
    ]
    assert Templates.yi().apply(messages) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "tool", "content": "4"}, "conversations[1]: template 'qwen' has no role 'tool'"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, "conversations[1]"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            "no 'image_url' part",
        ),
    ],
)
def test_what_text_cannot_express(message: dict[str, Any], says: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Templates.qwen().apply([*turns("Hi"), message])
    assert says in str(caught.value)


def test_empty_conversation() -> None:
    with pytest.raises(ParameterError, match="empty"):
        Templates.qwen().apply([])


@pytest.mark.parametrize(
    "mapping",
    [{"user": "Human", "assistant": "AI"}, {"user_role": "Human", "assistant_role": "AI"}],
)
def test_role_mapping(mapping: dict[str, str]) -> None:
    assert Templates.default().apply(turns("Hi"), mapping) == "Human:Hi\nAI:"
    assert Templates.qwen().apply(turns("Hi"), mapping) == (
        "<|im_start|>Human\nHi<|im_end|>\n<|im_start|>AI\n"
    )
    renamed = Templates.default().with_roles(mapping)
    assert renamed.stop == ("\nHuman:",)
    assert renamed.clean("Hello\nHuman: Bye") == "Hello"


def test_role_mapping_brings_the_system_message() -> None:
    renamed = Templates.qwen().with_roles({"system_msg": "You are a poet."})
    assert renamed.default_system == "You are a poet."
    assert renamed.roles == Templates.qwen().roles


def test_wrong_role_mapping() -> None:
    with pytest.raises(ParameterError, match=r"did you mean 'assistant'\?"):
        Templates.qwen().apply(turns("Hi"), {"asistant": "AI"})
    with pytest.raises(TemplateError, match="fixed role names"):
        Templates.llama().apply(turns("Hi"), {"user": "Human"})
    assert Templates.llama().apply(turns("Hi"), {"user": "user"}) == "[INST] Hi [/INST]"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"no template 'qwem' \(did you mean 'qwen'\?\)"):
        Templates.qwem()
    assert not hasattr(Templates, "_private")


def test_names_are_listed() -> None:
    names = {"qwen", "yi", "llama", "deepseek_code", "default", "empty"}
    assert names <= set(dir(Templates))
    assert all(getattr(Templates, name)().name == name for name in names)


def test_a_plugin_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def zephyr() -> Template:
        return Template(
            name="zephyr",
            render=lambda messages: "".join(f"<|{m['role']}|>{m['content']}" for m in messages),
            clean=CutAt(("</s>",)),
        )

    @hookimpl
    def register_templates(register: Any) -> None:
        register("zephyr", zephyr)

    module = ModuleType("a_plugin")
    module.register_templates = register_templates  # type: ignore[attr-defined]
    plugins = Plugins()
    plugins.discover()
    plugins.register(module, "a_plugin")
    monkeypatch.setattr("byzerllm.templates.get_plugins", lambda: plugins)
    assert Templates.zephyr().apply(turns("Hi")) == "<|user|>Hi"
    assert plugins.templates.plugin_of("zephyr") == "a_plugin"


def test_built_ins_come_through_the_hook() -> None:
    assert get_plugins().templates.plugin_of("qwen") == "templates"
    without = Plugins(disabled=frozenset({"templates"}))
    without.discover()
    assert "qwen" not in without.templates


def test_copies_and_pickles() -> None:
    template = Templates.default()
    assert copy.deepcopy(template) == pickle.loads(pickle.dumps(template)) == template
