"""Settings of a client in the requests that it makes."""

from __future__ import annotations

from byzerllm import Templates
from byzerllm.client.chat import build_request
from byzerllm.client.settings import ModelSettings


def test_output_limit_keeps_what_ends_an_answer() -> None:
    settings = ModelSettings(template=Templates.qwen(), max_output_length=10)
    sampling = build_request("Hello", settings, llm_config={"max_length": 50}).sampling
    assert sampling.max_tokens == 10
    assert "<|im_end|>" in sampling.stop
    assert 151645 in sampling.stop_token_ids


def test_output_limit_leaves_what_asks_for_less() -> None:
    settings = ModelSettings(max_output_length=10)
    assert build_request("Hello", settings, llm_config={}).sampling.max_tokens == 10
    less = build_request("Hello", settings, llm_config={"max_tokens": 5})
    assert less.sampling.max_tokens == 5


def test_role_mapping_of_a_call_replaces_the_default_system_message() -> None:
    settings = ModelSettings(template=Templates.default(), role_mapping={"user": "Person"})
    mapping = {"user": "Human", "system_msg": "Be brief."}
    request = build_request("Hello", settings, llm_config={}, role_mapping=mapping)
    assert request.prompt == "Be brief.\nHuman:Hello\nAssistant:"
    request = build_request("Hello", settings, llm_config={}, default_system=False)
    assert request.prompt == "Person:Hello\nAssistant:"
