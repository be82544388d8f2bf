"""What every hosted deployment can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from byzerllm.errors import ParameterError
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.providers.openai import OpenAIParameters
from byzerllm_saas.tasks import task_of

KEY = "key-0123456789"


def parse(**given: Any) -> KeyParameters:
    return OpenAIParameters.parse({f"saas.{k}": v for k, v in given.items()}, where="saas/openai")


def refusal(**given: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        parse(**given)
    assert KEY not in f"{caught.value!r} {caught.value.details!r}"
    return str(caught.value)


def test_as_text_from_the_command_line() -> None:
    made = parse(api_key=KEY, rpm="60", connect_timeout="2.5", verify="false", task="embedding")
    assert (made.rpm, made.connect_timeout, made.verify) == (60, 2.5, False)
    assert made.task == "embedding"
    assert parse(api_key=KEY, verify="True").verify is True
    assert parse(api_key=KEY, verify="~/ca.pem").verify == "~/ca.pem"


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("third-key\nfourth-key\n")
    made = parse(api_key=KEY, api_keys=f"second-key, {KEY}", api_key_file=str(file))
    assert made.keys() == [KEY, "second-key", "third-key", "fourth-key"]
    assert parse(api_keys=["one-key", "two-keys"]).keys() == ["one-key", "two-keys"]
    for secret in (KEY, "second-key"):
        assert secret not in f"{made!r} {made.model_dump_json()}"


def test_missing_key() -> None:
    assert "'api_key'" in refusal()
    assert "saas.api_key='${OPENAI_API_KEY}'" in refusal()
    assert "OPENAI_API_KEY" in refusal(api_key=" ")


def test_key_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"saas\.api_key_file.*No such file"):
        parse(api_key_file=str(tmp_path / "none")).keys()
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ParameterError, match="holds no key"):
        parse(api_key_file=str(empty)).keys()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("base_url", "api.openai.com/v1", "begins with http:// or https://"),
        ("base_url", "ftp://api.test", "begins with http:// or https://"),
        ("base_url", "https://", "begins with http"),
        ("proxies", "proxy.test:3128", "begins with http"),
        ("proxies", "socks5://proxy.test", "begins with http"),
        ("local_address", "eth0", "an IP address of this machine"),
        ("task", "dance", "'chat'"),
        ("rpm", -1, "greater than or equal to 0"),
        ("read_timeout", 0, "greater than 0"),
    ],
)
def test_refused(name: str, value: Any, said: str) -> None:
    message = refusal(api_key=KEY, **{name: value})
    assert f"'saas.{name}'" in message
    assert said in message


def test_proxies() -> None:
    both = {"http": "http://a.test:1", "https": "http://b.test:2"}
    assert parse(api_key=KEY, proxies=both).proxies == "http://b.test:2"
    made = parse(api_key=KEY, proxies="http://user:password@a.test:1")
    assert "password" not in repr(made)
    assert "password" not in refusal(api_key=KEY, proxies="socks5://user:password@a.test:1")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("gpt-4o", "chat"),
        ("qwen-max", "chat"),
        ("text-embedding-v2", "embedding"),
        ("text-embedding-3-large", "embedding"),
        ("embedding-2", "embedding"),
        ("Baichuan-Text-Embedding", "embedding"),
        ("BAAI/bge-m3", "embedding"),
        ("amazon.titan-embed-text-v1", "embedding"),
        ("dall-e-3", "image"),
        ("gpt-image-1", "image"),
        ("tts-1-hd", "speech"),
        ("gpt-4o-mini-tts", "speech"),
        ("volcano_tts", "speech"),
        ("whisper-1", "transcription"),
        ("gpt-4o-transcribe", "transcription"),
        ("gpt-4o-audio-preview", "chat"),
        ("some-new-model", "chat"),
        ("", "chat"),
    ],
)
def test_task_of_a_name(name: str, task: str) -> None:
    assert task_of(name) == task
