"""What bad input gets where models are hosted: one clear error, a non-zero exit, nothing behind."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import (
    BadRequestError,
    ByzerLLMError,
    CapabilityError,
    ContextLengthError,
    ParameterError,
)
from vendors.openai import OpenAIVendor
from vendors.server import Refuse

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def vendor() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor


def deploy(cluster: Any, *params: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [
            sys.executable, "-m", "byzerllm", "deploy", "--model", "bad",
            "--cpus_per_worker", "0.001",
            "--pretrained_model_type", "saas/openai", "--infer_params", *params,
            "--ray_address", cluster.address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )  # fmt: skip
    assert not ByzerLLM().is_model_exist("bad")
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (["saas.model=gpt-4o"], ["saas.api_key", "OPENAI_API_KEY"]),
        (["saas.api_key=${NO_SUCH_KEY}"], ["NO_SUCH_KEY is not set"]),
        (["saas.api_key=k", "saas.modell=gpt-4o"], ["'modell'", "did you mean 'model'"]),
        (["saas.api_key=k", "saas.base_url=api.openai.com/v1"], ["saas.base_url", "https://"]),
        (["saas.api_key=k", "saas.read_timeout=soon"], ["saas.read_timeout", "number"]),
        (["saas.api_key_file=/no/such/file"], ["saas.api_key_file", "No such file"]),
        (["saas.api_key=k", "saas.task=dance"], ["saas.task", "'chat'"]),
    ],
)
def test_parameters(cluster: Any, params: list[str], said: list[str]) -> None:
    done = deploy(cluster, *params)
    assert done.returncode in (1, 2)
    assert all(part in done.stderr for part in said), done.stderr


def test_a_wrong_key(cluster: Any, vendor: OpenAIVendor) -> None:
    params = ("saas.api_key=${KEY}", f"saas.base_url={vendor.url}/v1", "saas.model=gpt-4o")
    done = deploy(cluster, *params, KEY="sk-wrong-0123456789")
    assert done.returncode == 1
    assert "does not accept the key" in done.stderr
    assert "sk-wrong" not in done.stderr + done.stdout


def test_an_unknown_model(cluster: Any, vendor: OpenAIVendor) -> None:
    params = ("saas.api_key=${KEY}", f"saas.base_url={vendor.url}/v1", "saas.model=gpt-none")
    done = deploy(cluster, *params, KEY=vendor.key)
    assert done.returncode == 1
    assert "gpt-none" in done.stderr


def test_an_unreachable_proxy(cluster: Any, vendor: OpenAIVendor) -> None:
    done = deploy(
        cluster, "saas.api_key=${KEY}", f"saas.base_url={vendor.url}/v1", "saas.model=gpt-4o",
        "saas.proxies=http://127.0.0.1:9", KEY=vendor.key,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr


@pytest.fixture
def llm(vendor: OpenAIVendor) -> Iterator[ByzerLLM]:
    llm = ByzerLLM(runtime="local")
    for name in ("gpt-4o", "text-embedding-3-small", "tts-1"):
        llm.deploy(
            pretrained_model_type="saas/openai",
            udf_name=name,
            infer_params={
                "saas.api_key": vendor.key,
                "saas.base_url": f"{vendor.url}/v1",
                "saas.model": name,
            },
        )
    yield llm
    for row in llm.models():
        llm.undeploy(row["model"])


def refused(llm: ByzerLLM, vendor: OpenAIVendor, model: str, content: Any) -> ByzerLLMError:
    with pytest.raises(ByzerLLMError) as caught:
        llm.chat_oai([{"role": "user", "content": content}], model=model)
    return caught.value


def test_a_model_of_the_wrong_kind(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    asked = len(vendor.asked)
    error = refused(llm, vendor, "text-embedding-3-small", "hello")
    assert isinstance(error, CapabilityError)
    assert "text-embedding-3-small" in str(error)
    with pytest.raises(CapabilityError):
        llm.emb("gpt-4o", ["hello"])
    assert len(vendor.asked) == asked


def test_a_text_over_the_limit(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    vendor.faults(Refuse("too_long"))
    assert isinstance(refused(llm, vendor, "gpt-4o", "long"), ContextLengthError)


@pytest.mark.parametrize(
    "image", ["not an image", base64.b64encode(b"plain text, no image").decode(), ""]
)
def test_an_image_that_is_none(llm: ByzerLLM, vendor: OpenAIVendor, image: str) -> None:
    asked = len(vendor.asked)
    content = json.dumps([{"text": "what is this"}, {"image": image}])
    error = refused(llm, vendor, "gpt-4o", content)
    assert isinstance(error, ParameterError)
    assert "image" in str(error)
    assert len(vendor.asked) == asked


def test_a_voice_that_does_not_exist(llm: ByzerLLM, vendor: OpenAIVendor) -> None:
    content = json.dumps({"input": "hello", "voice": "nobody"})
    error = refused(llm, vendor, "tts-1", content)
    assert isinstance(error, BadRequestError)
    assert "alloy" in str(error)
    assert isinstance(refused(llm, vendor, "tts-1", '{"input": " "}'), ParameterError)
    wrong = json.dumps({"input": "hello", "speed": "fast"})
    assert "speed" in str(refused(llm, vendor, "tts-1", wrong))
