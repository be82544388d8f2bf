"""The Jinja environment of chat templates, without a model."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from byzerllm.decoding.chat_template import ChatTemplate, template_source
from byzerllm.errors import CapabilityError, ParameterError, TemplateError

PLAIN = (
    "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}] {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}\n[assistant]{% endif %}"
)


def say(*contents: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content} for content in contents]


def test_messages_and_special_tokens() -> None:
    template = ChatTemplate(PLAIN, bos="<s>", eos="</s>")
    assert template.render(say("a", "b")) == "<s>[user] a[user] b[assistant]"


def test_text_parts_are_joined_and_the_callers_message_is_left_alone() -> None:
    messages = say([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert "[user] a\nb" in ChatTemplate(PLAIN).render(messages)
    assert isinstance(messages[0]["content"], list)


def test_other_parts_are_a_missing_capability() -> None:
    messages = say([{"type": "image_url", "image_url": {"url": "data:"}}])
    with pytest.raises(CapabilityError, match="image_url"):
        ChatTemplate(PLAIN).render(messages)


@pytest.mark.parametrize("messages", [[], [{"content": "a"}], ["a"], say(None), say(3)])
def test_what_is_no_conversation(messages: list[dict[str, object]]) -> None:
    with pytest.raises(ParameterError):
        ChatTemplate(PLAIN).render(messages)


def test_no_template_names_the_remedy() -> None:
    template = ChatTemplate("")
    assert not template.available
    with pytest.raises(TemplateError, match="setup_template"):
        template.render(say("a"))


def test_a_template_may_refuse() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(say("a"))


def test_a_template_is_sandboxed() -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateError):
        ChatTemplate(escape).render(say("a"))


def test_a_broken_template_says_so() -> None:
    with pytest.raises(TemplateError, match="compiled"):
        ChatTemplate("{% if %}")


def test_what_hugging_face_templates_use() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%Y') }}{% generation %}{{ {'ä': 1} | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% break %}{% endfor %}{{ enable_thinking }}"
    )
    year = datetime.datetime.now().astimezone().year
    assert template.render(say("a"), {"enable_thinking": False}) == f'{year}{{"ä": 1}}False'


def test_an_override_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(PLAIN)
    assert template_source(None, "own") == "own"
    assert template_source(PLAIN, "own") == PLAIN
    assert template_source(str(file), "own") == PLAIN
    with pytest.raises(TemplateError, match="neither"):
        template_source(str(tmp_path / "missing"), "own")
